import numpy as np
import pytest

import nets
import opsin
import reference

NET = nets.plain()
MODEL = nets.model(NET)
IMAGES = nets.images(2)


def weighted(maps, scores):
    """ReLU of the sum of the maps, weighted by the softmax of their scores over the channels."""
    alpha = np.exp(scores - scores.max())
    alpha /= alpha.sum()
    return np.maximum(sum(a * m for a, m in zip(alpha, maps, strict=True)), 0)


def masks(maps):
    for coarse in maps:
        wide = reference.enlarged(coarse, 16, 16)
        yield (wide - wide.min()) / (wide.max() - wide.min())


def by_hand(image, layer, score):
    image = reference.array(image)
    mean = np.array(nets.MEAN)[:, None, None]
    maps = reference.forward(NET, image)[layer]
    seen = [reference.forward(NET, mean + (image - mean) * mask) for mask in masks(maps)]
    return weighted(maps, np.array([score(a) for a in seen]))


@pytest.mark.parametrize("layer", ["pool", "conv2", "relu2"])
@pytest.mark.parametrize("target", [0, 3])
def test_weighs_the_maps_by_the_score_of_what_they_let_through(layer, target):
    result = opsin.score_cam(MODEL, IMAGES, target=target, layer=layer)
    assert not result.signed
    for image, got in zip(IMAGES, result.values[:, 0], strict=True):
        expected = by_hand(image, layer, lambda a: a["output"][target])
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_masking_towards_the_mean_is_masking_the_normalised_image_as_the_paper_does():
    image = reference.array(IMAGES[0])
    maps = reference.forward(NET, image)["relu2"]
    std = np.array(nets.STD)[:, None, None]
    mean = np.array(nets.MEAN)[:, None, None]
    scores = []
    for mask in masks(maps):
        normalised = reference.normalised(image) * mask  # Hadamard product with the network's own input
        scores.append(reference.forward(NET, normalised * std + mean)["output"][1])
    got = opsin.score_cam(MODEL, IMAGES[:1], target=1, layer="relu2").values[0, 0]
    np.testing.assert_allclose(got, weighted(maps, np.array(scores)), rtol=1e-9, atol=1e-12)


def test_the_predicted_class_is_the_whole_photos():
    result = opsin.score_cam(MODEL, IMAGES)
    for image, got in zip(IMAGES, result.values[:, 0], strict=True):
        chosen = reference.forward(NET, reference.array(image))["output"].argmax()
        expected = by_hand(image, "relu2", lambda a: a["output"][chosen])  # noqa: B023
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_a_unit_and_a_weighted_sum_are_targets():
    got = opsin.score_cam(MODEL, IMAGES[:1], target="relu2:1@3,4 - 0.5*2", layer="pool").values[0, 0]
    expected = by_hand(IMAGES[0], "pool", lambda a: a["relu2"][1, 3, 4] - 0.5 * a["output"][2])
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_a_constant_map_shows_nothing_and_is_finite():
    net = nets.plain()
    net.conv2.weight.data[0] = 0
    net.conv2.bias.data[0] = 2  # channel 0 is 2 everywhere: its mask is empty
    model = nets.model(net)
    image = reference.array(IMAGES[0])
    mean = np.array(nets.MEAN)[:, None, None]
    maps = reference.forward(net, image)["relu2"]
    seen = [np.broadcast_to(mean, image.shape)]
    seen += [mean + (image - mean) * mask for mask in masks(maps[1:])]
    scores = np.array([reference.forward(net, one)["output"][0] for one in seen])
    got = opsin.score_cam(model, IMAGES[:1], target=0, layer="relu2").values[0, 0]
    np.testing.assert_allclose(got, weighted(maps, scores), rtol=1e-9, atol=1e-12)
