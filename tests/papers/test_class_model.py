import numpy as np
import pytest
import torch
from torch import nn

import nets
import opsin
import reference
from nets import MEAN, STD
from opsin.techniques.optimised.class_model import PUBLISHED, regularised

# without pooling: on the even picture that the climb starts from, every window would be a tie
NET = nets.seeded(
    nets.Chain(
        conv1=nn.Conv2d(3, 4, 3, padding=1),
        relu1=nn.ReLU(),
        mean=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        fc=nn.Linear(4, 5),
    )
)
MODEL = nets.model(NET)
ZERO, UNIT = (np.array(value)[:, None, None] for value in (MEAN, STD))
GREY = torch.tensor(MEAN, dtype=torch.float64).view(3, 1, 1)


def scored(image, target):
    """The class score of the network above and its gradient, by hand."""
    p = {name: reference.array(value) for name, value in NET.named_parameters()}
    before = reference.convolve(reference.normalised(image), p["conv1.weight"], p["conv1.bias"])
    means = np.maximum(before, 0).mean((1, 2))
    score = p["fc.weight"][target] @ means + p["fc.bias"][target]
    signal = p["fc.weight"][target][:, None, None] / before[0].size * (before > 0)
    return score, reference.convolve_transposed(signal, p["conv1.weight"]) / UNIT


def climbed(target, steps, rate, l2):
    """x ← x + rate g / mean|g| with g the gradient of S(I) - λ‖I‖², I = (x - mean) / std, from zero."""
    x, scores = np.broadcast_to(ZERO, (3, 16, 16)).copy(), []
    for _ in range(steps):
        score, gradient = scored(x, target)
        scores.append(score - l2 * (((x - ZERO) / UNIT) ** 2).sum())
        gradient = gradient - 2 * l2 * (x - ZERO) / UNIT**2
        x = (x + rate * np.mean(STD) * gradient / np.abs(gradient).mean()).clip(0, 1)
    return x, scores


@pytest.mark.parametrize("l2", [0.0, 1e-2])
def test_climbs_the_class_score_less_the_squared_norm_from_the_mean_colour(l2):
    result = opsin.class_model(MODEL, target=3, steps=5, rate=0.1, l2=l2)
    image, scores = climbed(3, 5, 0.1, l2)
    np.testing.assert_allclose(result.numbers["scores"][:, 0], scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.images[0], image, rtol=1e-5, atol=1e-6)


def test_the_norm_keeps_the_picture_nearer_to_the_mean():
    free, bound = (opsin.class_model(MODEL, target=3, steps=20, l2=l2).images[0] for l2 in (0.0, 0.1))
    assert (bound - GREY).norm() < 0.9 * (free - GREY).norm()


@pytest.mark.parametrize("settings", ["own", *PUBLISHED])
def test_the_score_rises(settings):
    scores = opsin.class_model(MODEL, target=3, steps=20, settings=settings).numbers["scores"]
    assert scores[-1] > scores[0]


def constrained(x, step=1, gradient=None, **settings):
    """The regularisers on a copy of x."""
    off = {"decay": 0.0, "blur": 0.0, "every": 0, "small_norm": 0.0, "small": 0.0}
    changed, gradient = x.clone(), torch.ones_like(x) if gradient is None else gradient
    regularised(GREY, **{**off, **settings})(changed, gradient, step)
    return changed


X = nets.images(2)


def test_decay_takes_a_share_of_the_distance_to_the_mean_colour():
    torch.testing.assert_close(constrained(X, decay=0.3), GREY + 0.7 * (X - GREY))


def test_without_any_regulariser_nothing_changes():
    torch.testing.assert_close(constrained(X), X)


def blurred(channel, sigma):
    """A Gaussian followed for three deviations, the edges reflected, pixel by pixel."""
    radius = int(np.ceil(3 * sigma))
    near = np.arange(-radius, radius + 1)
    weights = np.exp(-(near[:, None] ** 2 + near[None] ** 2) / (2 * sigma**2))
    wide = np.pad(channel, radius, mode="reflect")
    result = np.zeros_like(channel)
    for i in range(channel.shape[0]):
        for j in range(channel.shape[1]):
            window = wide[i : i + 2 * radius + 1, j : j + 2 * radius + 1]
            result[i, j] = (weights * window).sum() / weights.sum()
    return result


def test_blurs_every_so_many_steps_and_leaves_the_steps_between():
    for step in (1, 2, 3, 5):
        torch.testing.assert_close(constrained(X, step, blur=0.8, every=4), X)
    for step in (4, 8):
        found = constrained(X, step, blur=0.8, every=4)[1, 2]
        np.testing.assert_allclose(found, blurred(X[1, 2].numpy(), 0.8), rtol=1e-9)


def least_are_zero(x, size, share):
    """Pixels whose size is below the percentile take the mean colour."""
    expected = x.numpy().copy()
    for image, measure in zip(expected, size, strict=True):
        image[:, measure < np.percentile(measure, share)] = np.array(MEAN)[:, None]
    return expected


def test_pixels_with_a_small_norm_become_the_mean_colour():
    size = np.sqrt(((X.numpy() - ZERO) ** 2).sum(1))
    found = constrained(X, small_norm=30.0)
    np.testing.assert_allclose(found, least_are_zero(X, size, 30), rtol=1e-9)
    assert (found == GREY).all(1).float().mean() == pytest.approx(0.3, abs=0.01)


def test_pixels_with_a_small_contribution_become_the_mean_colour():
    gradient = nets.images(2, seed=5) - 0.5
    contribution = np.abs(((X.numpy() - ZERO) * gradient.numpy()).sum(1))
    found = constrained(X, small=80.0, gradient=gradient)
    np.testing.assert_allclose(found, least_are_zero(X, contribution, 80), rtol=1e-9)


def test_the_published_settings_are_those_of_table_1():
    # Yosinski et al. 2015: decay, blur width, blur every, percentile of norm, percentile of contribution
    assert list(PUBLISHED.values()) == [
        (0, 0.5, 4, 50, 0),
        (0.3, 0, 0, 20, 0),
        (0.0001, 1.0, 4, 0, 0),
        (0, 0.5, 4, 0, 90),
    ]


@pytest.mark.parametrize("settings", PUBLISHED)
def test_the_published_settings_are_their_numbers_given_one_by_one(settings):
    names = ("decay", "blur", "blur_every", "small_norm", "small_contribution")
    numbers = {"l2": 0} | {k: v for k, v in zip(names, PUBLISHED[settings], strict=True) if v}
    published = opsin.class_model(MODEL, target=3, steps=9, settings=settings)
    assert torch.equal(published.images, opsin.class_model(MODEL, target=3, steps=9, **numbers).images)
    assert not torch.equal(published.images, opsin.class_model(MODEL, target=3, steps=9).images)


@pytest.mark.parametrize("setting", ["l2", "decay", "blur", "blur_every", "small_norm", "small_contribution"])
def test_published_settings_are_not_mixed_with_own_ones(setting):
    with pytest.raises(opsin.InputError, match="yosinski_1"):
        opsin.class_model(MODEL, target=3, settings="yosinski_1", **{setting: 1})


def test_a_target_whose_gradient_is_exactly_zero_is_refused_by_name():
    net = nets.seeded(nets.Chain(conv=nn.Conv2d(3, 4, 3), off=nn.ReLU(), mean=nn.AdaptiveAvgPool2d(1)))
    net.conv.weight.data.zero_()  # a unit that is merely off would be climbed through its closed rectifier
    with pytest.raises(opsin.InputError, match=r"'off:2' is exactly zero"):
        opsin.class_model(nets.model(net), target="off:2", l2=0.0)


def test_a_target_that_is_not_of_the_image_is_refused_by_name():
    constant = opsin.Objective("three", ("image",), lambda a: torch.full((len(a["image"]),), 3.0))
    with pytest.raises(opsin.InputError, match=r"'three' does not depend on the image"):
        opsin.class_model(MODEL, target=constant, l2=0.0)
