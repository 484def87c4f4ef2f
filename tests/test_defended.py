"""Defences on the input, the attacks that know them, and the certificate of randomised smoothing."""

import io
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import median_filter
from skimage.restoration import denoise_tv_chambolle
from torch import nn

import nets
import opsin
from opsin.optimise import smoothing
from opsin.optimise.transforms import blurred

NET = nets.plain()
MODEL = nets.model(NET)
IMAGES = nets.images(2)


def jpeg(image, quality):
    buffer = io.BytesIO()
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).double() / 255


def by_hand(kind, images):
    """The smoothing with its default strength, by other packages."""
    if kind == "blur":
        return blurred(images, 1.0)
    if kind == "median":
        channels = [[median_filter(c, 3, mode="nearest") for c in image] for image in images.numpy()]
        return torch.from_numpy(np.array(channels))
    if kind == "jpeg":
        return torch.stack([jpeg(image, 75) for image in images])
    return torch.from_numpy(
        np.stack([denoise_tv_chambolle(i, weight=0.1, channel_axis=0) for i in images.numpy()])
    )


@pytest.mark.parametrize("kind", ["blur", "median", "jpeg", "total_variation"])
def test_what_is_seen_is_the_smoothed_photo(kind):
    model = opsin.defended(MODEL, smooth=kind)
    expected = MODEL.run(by_hand(kind, IMAGES))["output"]
    torch.testing.assert_close(model.run(IMAGES)["output"], expected, rtol=1e-6, atol=1e-6)
    assert model.name == f"Plain behind {kind}"
    assert model.labels == MODEL.labels


def test_noise_is_drawn_anew_and_has_the_deviation_that_is_said():
    seen = []

    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 5)

        def forward(self, x):
            seen.append(x)
            return self.fc(x.mean((2, 3)))

    model = opsin.defended(
        nets.model(nets.seeded(Looking()), mean=[0.0] * 3, std=[1.0] * 3, size=64), noise=0.2
    )
    images = torch.full((1, 3, 64, 64), 0.5, dtype=torch.float64)
    for _ in range(2):
        model.run(images)
    first, second = (x - 0.5 for x in seen[-2:])
    assert float(first.std()) == pytest.approx(0.2, rel=0.03)
    assert abs(float((first * second).mean())) < 0.002


def test_several_samples_are_the_mean_of_their_probabilities():
    model = opsin.defended(MODEL, noise=0.3, samples=3, seed=5)
    assert model.classes == 5
    draw = torch.Generator()
    draw.set_state(model.network.draw.get_state())
    noises = [torch.randn(3, 16, 16, generator=draw).double() for _ in range(3)]
    shares = [MODEL.probabilities(MODEL.run(IMAGES + 0.3 * n)["output"].double()) for n in noises]
    expected = torch.stack(shares).mean(0)
    torch.testing.assert_close(
        model.run(IMAGES)["output"].softmax(1), expected.double(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["jpeg", "total_variation"])
def test_the_gradient_passes_through_what_has_none(kind):
    # BPDA: the gradient at the smoothed photo, as if the smoothing were the identity
    model = opsin.defended(MODEL, smooth=kind)
    own = opsin.saliency(model, IMAGES, target=1).extras["gradient"]
    there = opsin.saliency(MODEL, by_hand(kind, IMAGES), target=1).extras["gradient"]
    torch.testing.assert_close(own, there, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["grad_cam", "occlusion", "guided_backprop", "layers", "pgd", "inversion"])
def test_a_defended_model_is_one_like_any_other(name):
    model = opsin.defended(MODEL, noise=0.1, smooth="blur", samples=2)
    given = {"steps": 2} if name in ("pgd", "inversion") else {}
    result = getattr(opsin, name)(model, IMAGES, **given)
    assert result.record.model["name"] == "Plain behind blur, noise 0.1, 2 samples"
    assert not result.not_finite()


def test_the_adaptive_attack_finds_what_the_one_that_does_not_know_the_defence_misses():
    images = nets.images(8)
    model = opsin.defended(MODEL, smooth="blur")
    seen = [row[0].class_index for row in model.predict(images)]
    given = {"epsilon": 0.03, "steps": 15, "label": seen}
    shares = []
    for attacked in (opsin.pgd(one, images, **given).attacked for one in (MODEL, model)):
        rows = model.probabilities(model.run(attacked)["output"])
        shares.append(float(rows[range(8), seen].mean()))
    unaware, aware = shares
    assert aware < 0.9 * unaware


def test_the_networks_own_state_is_left_and_the_global_generator_too():
    net = nets.plain()
    before, world = nets.state(net), torch.get_rng_state()
    opsin.pgd(opsin.defended(nets.model(net), noise=0.1), IMAGES, steps=2)
    assert nets.state(net) == before
    assert torch.equal(torch.get_rng_state(), world)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "needs noise"),
        ({"noise": -0.1}, "from 0 to 1"),
        ({"noise": 25}, "from 0 to 1"),
        ({"smooth": "blurr"}, "blur"),
        ({"smooth": "median", "strength": 4}, "odd"),
        ({"smooth": "jpeg", "strength": 0}, "from 1 to 95"),
        ({"smooth": "blur", "strength": math.nan}, "from 0.1"),
        ({"strength": 3, "noise": 0.1}, "one of a smoothing"),
        ({"smooth": "blur", "samples": 4}, "without noise"),
        ({"noise": 0.1, "samples": 0}, "from 1 to"),
    ],
)
def test_what_makes_no_defence_is_refused(given, said):
    with pytest.raises(opsin.InputError, match=said):
        opsin.defended(MODEL, **given)


# --- the certificate


def halfspace(gap):
    """Sees class 1 where the sum of all 48 values is above 24 + gap, else class 0; and its distance."""
    weight = [[0.0] * 48, [1.0] * 48]
    net = nets.chain(flat=nn.Flatten(), fc=nets.linear(weight, [0.0, -(24 + gap)]))
    return nets.model(net, mean=[0.0] * 3, std=[1.0] * 3, size=4)


@pytest.mark.parametrize("gap", [-1.0, 0.5, 2.0])
def test_the_certified_radius_is_below_the_distance_of_a_linear_network_and_near_it(gap):
    images = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)
    distance = abs(gap) / 48**0.5
    (found,) = opsin.certify(halfspace(gap), images, noise=0.1, samples=1500)
    assert found.class_index == int(gap < 0)
    bound = NormalDist().cdf(distance / 0.1)  # the probability of the class, exactly
    assert found.lower <= bound
    assert found.radius <= distance
    reachable = 0.1 * NormalDist().inv_cdf(smoothing.interval(round(1500 * bound), 1500, 0.002)[0])
    assert found.radius == pytest.approx(reachable, rel=0.2)


def test_it_abstains_at_the_boundary():
    images = torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64)
    for found in opsin.certify(halfspace(0.0), images, noise=0.1, samples=500):
        assert (found.class_index, found.radius) == (None, 0.0)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (7, 10), (950, 1000)])
def test_the_interval_is_clopper_and_pearsons(k, n):
    def tail(p, ks):  # P(X in ks) of a binomial, by its sum
        return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in ks)

    low, high = smoothing.interval(k, n, 0.05)
    assert low == 0 if k == 0 else tail(low, range(k, n + 1)) == pytest.approx(0.025, rel=1e-6)
    assert high == 1 if k == n else tail(high, range(k + 1)) == pytest.approx(0.025, rel=1e-6)


@pytest.mark.parametrize("given", [{"noise": 0}, {"alpha": 1}, {"samples": 0}, {"first": 0}])
def test_bad_settings_of_a_certificate_are_refused(given):
    with pytest.raises(opsin.InputError, match=f"certify: {next(iter(given))}"):
        opsin.certify(MODEL, IMAGES, **given)
