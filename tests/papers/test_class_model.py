import numpy as np
import pytest
import torch
from torch import nn

import nets
import opsin
import reference
from nets import MEAN, STD
from opsin.techniques.optimised.class_model import PRESETS, Regularisers, regularised

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
    """x ← x + rate g / mean|g| with g the gradient of S(I) - λ‖I‖², I = 255 (x - mean), from zero."""
    x, scores = np.broadcast_to(ZERO, (3, 16, 16)).copy(), []
    for _ in range(steps):
        score, gradient = scored(x, target)
        scores.append(score - l2 * ((255 * (x - ZERO)) ** 2).sum())
        gradient = gradient - 2 * l2 * 255**2 * (x - ZERO)
        x = (x + rate * gradient / np.abs(gradient).mean()).clip(0, 1)
    return x, scores


@pytest.mark.parametrize("l2", [0.0, 1e-6])
def test_climbs_the_class_score_less_the_squared_norm_from_the_mean_colour(l2):
    result = opsin.class_model(MODEL, target=3, steps=5, rate=0.02, l2=l2, blur=0.0, shift=0)
    image, scores = climbed(3, 5, 0.02, l2)
    np.testing.assert_allclose(result.numbers["scores"][:, 0], scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.images[0], image, rtol=1e-5, atol=1e-6)


def test_the_norm_keeps_the_picture_nearer_to_the_mean():
    free, bound = (opsin.class_model(MODEL, target=3, steps=20, l2=l2).images[0] for l2 in (0.0, 1e-5))
    assert (bound - GREY).norm() < 0.9 * (free - GREY).norm()


@pytest.mark.parametrize("settings", PRESETS)
def test_the_score_rises(settings):
    scores = opsin.class_model(MODEL, target=3, steps=20, settings=settings).numbers["scores"]
    assert scores[-1] > scores[0]


def constrained(x, step=1, gradient=None, **settings):
    """The regularisers on a copy of x."""
    changed, gradient = x.clone(), torch.ones_like(x) if gradient is None else gradient
    regularised(GREY, Regularisers(**settings))(changed, gradient, step)
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
        torch.testing.assert_close(constrained(X, step, blur=0.8, blur_every=4), X)
    for step in (4, 8):
        found = constrained(X, step, blur=0.8, blur_every=4)[1, 2]
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
    found = constrained(X, small_contribution=80.0, gradient=gradient)
    np.testing.assert_allclose(found, least_are_zero(X, contribution, 80), rtol=1e-9)


def test_the_published_settings_are_those_of_table_1():
    # Yosinski et al. 2015: decay, blur width, blur every, percentile of norm, percentile of contribution
    theirs = {name: found for name, found in PRESETS.items() if name != "own"}
    assert [(r.decay, r.blur, r.blur_every * (r.blur > 0), *r[4:6]) for r in theirs.values()] == [
        (0, 0.5, 4, 50, 0),
        (0.3, 0, 0, 20, 0),
        (0.0001, 1.0, 4, 0, 0),
        (0, 0.5, 4, 0, 90),
    ]
    assert {(r.l2, r.shift) for r in theirs.values()} == {(0.0, 0)}


@pytest.mark.parametrize("settings", PRESETS)
def test_settings_are_their_numbers_given_one_by_one(settings):
    preset = opsin.class_model(MODEL, target=3, steps=9, settings=settings)
    for other in PRESETS:
        numbers = PRESETS[settings]._asdict()
        by_hand = opsin.class_model(MODEL, target=3, steps=9, settings=other, **numbers)
        assert torch.equal(preset.images, by_hand.images)
        assert preset.record.notes == by_hand.record.notes
    assert settings == "own" or not torch.equal(
        preset.images, opsin.class_model(MODEL, target=3, steps=9).images
    )


def test_a_shift_moves_the_picture_before_the_network_sees_it():
    chosen = {"steps": 3, "l2": 0.0, "blur": 0.0}
    still, moved = (opsin.class_model(MODEL, target=3, shift=shift, **chosen) for shift in (0, 5))
    again = opsin.class_model(MODEL, target=3, shift=5, seed=1, **chosen)
    assert not torch.equal(still.images, moved.images)
    assert not torch.equal(moved.images, again.images)


@pytest.mark.parametrize("std", [1.0, 1 / 255])
def test_units_do_not_depend_on_the_preprocessing(std):
    """The same function of the image, taken apart otherwise into normalisation and network."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = NET
            self.register_buffer("unit", torch.tensor(STD).view(3, 1, 1) / std)

        def forward(self, x):
            return self.net(x / self.unit)

    scaled = opsin.Model(Scaled(), mean=MEAN, std=[std] * 3, size=MODEL.size)
    for settings in PRESETS:
        given = {"target": 3, "steps": 6, "settings": settings}
        one, other = (opsin.class_model(model, **given).images for model in (MODEL, scaled))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert (one[0] - GREY.float()).abs().max() > 0.02


def test_a_target_whose_gradient_is_exactly_zero_is_refused_by_name():
    net = nets.seeded(nets.Chain(conv=nn.Conv2d(3, 4, 3), off=nn.ReLU(), mean=nn.AdaptiveAvgPool2d(1)))
    net.conv.weight.data.zero_()  # a unit that is merely off would be climbed through its closed rectifier
    with pytest.raises(opsin.InputError, match=r"'off:2' is exactly zero"):
        opsin.class_model(nets.model(net), target="off:2", l2=0.0)


def test_a_target_that_is_not_of_the_image_is_refused_by_name():
    constant = opsin.Objective("three", ("image",), lambda a: torch.full((len(a["image"]),), 3.0))
    with pytest.raises(opsin.InputError, match=r"'three' does not depend on the image"):
        opsin.class_model(MODEL, target=constant, l2=0.0)
