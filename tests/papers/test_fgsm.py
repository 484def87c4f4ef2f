import numpy as np
import pytest
import torch
from torch import nn

import nets
import opsin
from nets import MEAN, STD

NET = nets.seeded(nets.Chain(flat=nn.Flatten(), fc=nn.Linear(3 * 4 * 4, 5)))  # a softmax classifier
NET.fc.weight.data *= 0.1
MODEL = nets.model(NET, size=4)
IMAGES = nets.images(3, 4)
W, B = (p.detach().numpy() for p in (NET.fc.weight, NET.fc.bias))
ZERO, UNIT = (np.array(value)[:, None, None] for value in (MEAN, STD))


def scores(x):
    return W @ ((x - ZERO) / UNIT).ravel() + B


def loss_gradient(x, label):
    """∂(-log p_y)/∂x = Wᵀ (p - e_y) / std of a softmax classifier, by hand."""
    z = scores(x)
    p = np.exp(z) / np.exp(z).sum()
    p[label] -= 1
    return (W.T @ p).reshape(x.shape) / UNIT


@pytest.mark.parametrize("epsilon", [0.0, 1 / 255, 0.1, 1.0])
def test_one_step_up_the_loss_of_the_class_that_is_seen(epsilon):
    result = opsin.fgsm(MODEL, IMAGES, epsilon=epsilon)
    for x, attacked, outcome in zip(IMAGES.numpy(), result.attacked, result.outcomes, strict=True):
        label = int(scores(x).argmax())
        expected = np.clip(x + epsilon * np.sign(loss_gradient(x, label)), 0, 1)
        np.testing.assert_allclose(attacked, expected, rtol=1e-12, atol=1e-12)
        assert outcome.label.class_index == label == outcome.before[0].class_index
        assert outcome.success == (int(scores(expected).argmax()) != label)


def test_one_step_down_the_loss_of_a_wanted_class():
    seen = [int(scores(x).argmax()) for x in IMAGES.numpy()]
    wanted = [(index + 1) % 5 for index in seen]
    result = opsin.fgsm(MODEL, IMAGES, epsilon=0.1, towards=wanted)
    for x, attacked, t, outcome in zip(IMAGES.numpy(), result.attacked, wanted, result.outcomes, strict=True):
        expected = np.clip(x - 0.1 * np.sign(loss_gradient(x, t)), 0, 1)
        np.testing.assert_allclose(attacked, expected, rtol=1e-12, atol=1e-12)
        assert outcome.towards.class_index == t
        assert outcome.success == (int(scores(expected).argmax()) == t)


def test_a_linear_network_loses_epsilon_times_the_weights_in_the_difference_of_two_scores():
    # Goodfellow et al. 2014, section 3: wᵀη = ε‖w‖₁, in as many dimensions as there are
    w = torch.from_numpy(W[1] - W[0]).reshape(3, 4, 4) / torch.from_numpy(UNIT)
    inside = IMAGES[:1] * 0.5 + 0.25
    two = nets.model(nets.chain(flat=nn.Flatten(), fc=nets.linear(W[:2].tolist())), size=4)
    attacked = opsin.fgsm(two, inside, epsilon=0.01, label=0).attacked
    assert float((w * (attacked - inside)[0]).sum()) == pytest.approx(0.01 * float(w.abs().sum()))


def test_of_the_softmax_classifier_every_photo_is_fooled_by_little_and_none_by_noise_of_that_size():
    epsilon = 0.15
    assert all(opsin.fgsm(MODEL, IMAGES, epsilon=epsilon).success)
    assert not any(opsin.random_noise(MODEL, IMAGES, epsilon=epsilon).success)
