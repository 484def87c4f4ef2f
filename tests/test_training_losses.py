"""The losses of training: each against its formula, with its gradient in the parameters."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import nets
import opsin
from nets import MEAN, STD
from opsin.optimise.ball import Ball
from opsin.training.losses import adversarial_loss, noisy_loss, plain_loss, stability_loss

NET = nets.plain()
MODEL = nets.model(NET)
IMAGES = nets.images(3)
LABELS = torch.tensor([1, 4, 0])
ZERO, UNIT = (torch.tensor(value, dtype=torch.float64).view(3, 1, 1) for value in (MEAN, STD))


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def seen(x):
    return NET((x - ZERO) / UNIT)


def same(loss, expected):
    """Equal, and with equal gradients in every parameter."""
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    parameters = list(NET.parameters())
    ours, theirs = (torch.autograd.grad(one, parameters) for one in (loss, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def noise(deviation):
    return deviation * torch.randn(IMAGES.shape, generator=drawn()).double()


def test_the_plain_loss_is_the_cross_entropy():
    same(plain_loss(MODEL, IMAGES, LABELS), cross_entropy(seen(IMAGES), LABELS))


def test_the_noisy_loss_is_that_of_the_noisy_images():
    loss = noisy_loss(MODEL, IMAGES, LABELS, noise=0.3, draw=drawn())
    same(loss, cross_entropy(seen(IMAGES + noise(0.3)), LABELS))


@pytest.mark.parametrize(("norm", "radius"), [("linf", 0.03), ("l2", 0.4)])
def test_the_adversarial_loss_is_that_of_attacked_images(norm, radius):
    loss = adversarial_loss(MODEL, IMAGES, LABELS, epsilon=radius, norm=norm, steps=4, draw=drawn())
    given = {"epsilon": radius} if norm == "linf" else {"l2": radius}
    attacked = opsin.pgd(MODEL, IMAGES, **given, steps=4, label=LABELS, seed=0).attacked
    same(loss, cross_entropy(seen(attacked), LABELS))
    assert loss > plain_loss(MODEL, IMAGES, LABELS)


def test_the_inner_attack_starts_in_the_ball_and_leaves_no_gradient():
    for parameter in NET.parameters():
        parameter.grad = None
    start = adversarial_loss(MODEL, IMAGES, LABELS, epsilon=0.1, steps=1, rate=0.0, draw=drawn())
    same(start, cross_entropy(seen(Ball(IMAGES, 0.1).random(drawn())), LABELS))
    assert all(parameter.grad is None for parameter in NET.parameters())


@pytest.mark.parametrize("layers", [("output",), ("conv2",), ("relu1", "output")])
def test_the_stability_loss_adds_how_far_both_are_apart(layers):
    loss = stability_loss(MODEL, IMAGES, LABELS, noise=0.2, weight=0.7, layers=layers, draw=drawn())
    other = IMAGES + noise(0.2)
    expected = cross_entropy(seen(IMAGES), LABELS)
    features = {
        "relu1": lambda x: NET.relu1(NET.conv1((x - ZERO) / UNIT)),
        "conv2": lambda x: NET.conv2(NET.pool(NET.relu1(NET.conv1((x - ZERO) / UNIT)))),
    }
    for layer in layers:
        if layer == "output":
            p, q = seen(IMAGES).softmax(1), seen(other).softmax(1)
            apart = -(p * q.log()).sum(1)
        else:
            apart = (features[layer](IMAGES) - features[layer](other)).square().sum((1, 2, 3)).sqrt()
        expected = expected + 0.7 * apart.mean()
    same(loss, expected)
    assert not NET.conv2._forward_hooks


def test_training_mode_is_the_callers():
    net = nets.normed(inplace=False)
    model = nets.model(net)
    before = net.bn1.running_mean.clone()
    adversarial_loss(model, IMAGES, LABELS, epsilon=0.1, steps=2)
    assert torch.equal(net.bn1.running_mean, before)
    net.train()
    adversarial_loss(model, IMAGES, LABELS, epsilon=0.1, steps=2)
    assert not torch.equal(net.bn1.running_mean, before)
    assert net.training


def test_bad_settings_are_refused():
    with pytest.raises(opsin.InputError, match="epsilon"):
        adversarial_loss(MODEL, IMAGES, LABELS, epsilon=-1.0)
    with pytest.raises(opsin.InputError, match="deviation"):
        noisy_loss(MODEL, IMAGES, LABELS, noise=-0.1)
    with pytest.raises(opsin.InputError, match=r"'conv9'.*conv"):
        stability_loss(MODEL, IMAGES, LABELS, noise=0.1, weight=1.0, layers=("conv9",))
