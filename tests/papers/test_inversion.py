import numpy as np
import pytest
import torch

import nets
import opsin
import reference
from nets import MEAN
from opsin.base.job import CAUTION
from opsin.optimise.canvas import Fourier
from opsin.techniques.optimised.inversion import spread

NET = nets.plain()
MODEL = nets.model(NET)
IMAGES = nets.images(2)
SIGMA = 2.7e4 / 255 * np.sqrt(16 * 16 / 227**2)


def loss(image, photo, layer, *, alpha=6.0, norm_weight=2.16e8, beta=2.0, variation_weight):
    """‖Φ(σx) - Φ₀‖²/‖Φ₀‖² + λ_α ‖x‖_α^α + λ_β V_β(x), pixel by pixel."""
    found, wanted = (reference.forward(NET, one)[layer] for one in (image, photo))
    total = ((found - wanted) ** 2).sum() / (wanted**2).sum()
    x = (image - np.array(MEAN)[:, None, None]) / SIGMA
    for channel in x:
        total += norm_weight * sum(abs(value) ** alpha for value in channel.ravel())
        for i in range(len(channel) - 1):
            for j in range(len(channel[0]) - 1):
                right, down = channel[i, j + 1] - channel[i, j], channel[i + 1, j] - channel[i, j]
                total += variation_weight * (right**2 + down**2) ** (beta / 2)
    return total


def start(seed, decay):
    return reference.array(Fourier(16, 16, decay).noise(1, torch.Generator().manual_seed(seed))[0])


@pytest.mark.parametrize(
    "settings",
    [
        {"norm_weight": 0.0, "variation_weight": 0.0},
        {"norm_weight": 2e3, "alpha": 4.0, "variation_weight": 0.0},
        {"norm_weight": 0.0, "variation_weight": 3.0},
        {"norm_weight": 0.0, "variation_weight": 3.0, "beta": 1.5},
        {"variation_weight": 5.0},
    ],
    ids=["features", "norm", "variation", "variation of another exponent", "as published"],
)
@pytest.mark.parametrize("layer", ["conv1", "relu2", "output"])
def test_minimises_the_feature_error_the_norm_and_the_total_variation(layer, settings):
    name = "fc" if layer == "output" else layer
    result = opsin.inversion(MODEL, IMAGES, layers=name, steps=1, seed=3, **settings)
    for index, photo in enumerate(IMAGES):
        expected = loss(
            start(3, 1.3 if layer == "output" else 1.0), reference.array(photo), layer, **settings
        )
        assert -float(result.state[f"photo {index + 1}, {name}/scores"][0]) == pytest.approx(
            expected, rel=1e-3
        )


@pytest.mark.parametrize(("layer", "weight"), [("conv1", 0.05), ("conv2", 0.5), ("fc", 0.5)])
def test_the_total_variation_weighs_more_with_depth(layer, weight):
    theirs = opsin.inversion(MODEL, IMAGES[:1], layers=layer, steps=1)
    named = opsin.inversion(MODEL, IMAGES[:1], layers=layer, steps=1, variation_weight=weight)
    assert torch.equal(theirs.state[f"{layer}/scores"], named.state[f"{layer}/scores"])


def test_a_picture_that_is_far_from_the_features_is_said_to_be():
    heavy, light = (
        opsin.inversion(MODEL, IMAGES, layers="relu2", steps=40, norm_weight=0.0, variation_weight=weight)
        for weight in (1e3, 0.0)
    )
    (caution,) = (text for text in heavy.record.notes if text.startswith(CAUTION))
    assert "layer 'relu2': features of a picture are far from the photo's, above 0.5" in caution
    assert (heavy.numbers["relu2 feature error"] > 0.5).any()
    assert CAUTION not in " ".join(light.record.notes)
    assert (light.numbers["relu2 feature error"] < 0.5).all()


def test_numbers_are_the_errors_of_the_features_and_of_the_picture():
    result = opsin.inversion(MODEL, IMAGES, layers="conv1, relu2", steps=4)
    for layer in ("conv1", "relu2"):
        pictures = [panel.image for panel in result.panels if panel.group == layer]
        for index, (picture, photo) in enumerate(zip(pictures, IMAGES, strict=True)):
            x, x0 = reference.array(picture), reference.array(photo)
            features, wanted = (reference.forward(NET, one)[layer] for one in (x, x0))
            error = ((features - wanted) ** 2).sum() / (wanted**2).sum()
            apart = np.linalg.norm(x - x0) / np.linalg.norm(x0 - np.array(MEAN)[:, None, None])
            assert float(result.numbers[f"{layer} feature error"][index]) == pytest.approx(error, rel=1e-6)
            assert float(result.numbers[f"{layer} image error"][index]) == pytest.approx(apart, rel=1e-6)


def test_a_layer_that_is_named_twice_is_inverted_once():
    once, twice = (opsin.inversion(MODEL, IMAGES, layers=text, steps=1) for text in ("conv1", "conv1, conv1"))
    assert twice.numbers.keys() == once.numbers.keys()
    assert torch.equal(twice.images, once.images)


def test_the_score_rises_and_the_features_come_nearer():
    few, many = (
        opsin.inversion(MODEL, IMAGES, layers="relu2", steps=steps, norm_weight=0.0, variation_weight=0.0)
        for steps in (2, 60)
    )
    for scores in (many.state[f"photo {number}, relu2/scores"] for number in (1, 2)):
        assert scores[-1] > scores[0]
    assert (many.numbers["relu2 feature error"] < 0.5 * few.numbers["relu2 feature error"]).all()


def test_an_early_layer_keeps_more_of_the_photo_than_a_late_one():
    free = {"norm_weight": 0.0, "variation_weight": 0.0}
    result = opsin.inversion(MODEL, IMAGES, layers="conv1, fc", steps=100, **free)
    assert (result.numbers["conv1 image error"] < result.numbers["fc image error"]).all()


def test_by_default_layers_from_the_first_to_the_last_that_computes():
    assert spread(MODEL) == ["conv1", "relu1", "conv2", "relu2", "fc"]
    result = opsin.inversion(MODEL, IMAGES, steps=1)
    groups = list(dict.fromkeys(panel.group for panel in result.panels))
    assert groups == ["photo", "conv1", "relu1", "conv2", "relu2", "fc"]


def test_a_classifier_of_one_size_is_inverted_at_another():
    result = opsin.inversion(nets.model(nets.viewing()), nets.images(1, 24), layers="conv", steps=1)
    assert result.images.shape == (1, 3, 24, 24)
    assert result.panels[0].caption == ""


def test_a_layer_that_is_zero_on_the_photo_is_refused_by_name():
    net = nets.plain()
    net.conv2.bias.data[:] = -1000
    with pytest.raises(opsin.InputError, match="'relu2' is zero everywhere"):
        opsin.inversion(nets.model(net), IMAGES, layers="relu2", steps=1)


def test_a_photo_below_the_networks_least_size_is_refused_with_its_size():
    net = nets.chain(conv=torch.nn.Conv2d(3, 2, 9), relu=torch.nn.ReLU(), mean=torch.nn.AdaptiveAvgPool2d(1))
    with pytest.raises(opsin.NetworkError, match="input of 1x3x4x4"):
        opsin.inversion(nets.model(net), nets.images(2, 4), layers="conv", steps=1)
