import numpy as np
import pytest
import torch

import nets
import opsin
import reference

NET = nets.plain()
MODEL = nets.model(NET)
IMAGES = nets.images(2)


def by_hand(image, signal, layer):
    a = reference.forward(NET, reference.array(image))
    gradient = reference.backward(NET, a, signal, to=layer)
    heat = np.zeros_like(a[layer][0])
    for maps, slopes in zip(a[layer], gradient, strict=True):
        heat += slopes * maps
    return heat


@pytest.mark.parametrize("layer", ["conv1", "relu1", "pool", "conv2", "relu2"])
def test_sums_the_products_of_maps_and_gradient(layer):
    result = opsin.hires_cam(MODEL, IMAGES, target=0, layer=layer)
    assert result.signed
    for image, got in zip(IMAGES, result.values[:, 0], strict=True):
        np.testing.assert_allclose(got, by_hand(image, reference.one_hot(0), layer), rtol=1e-9, atol=1e-12)


def test_a_weighted_sum_is_a_target():
    got = opsin.hires_cam(MODEL, IMAGES[:1], target="0 - 2*1", layer="pool").values[0, 0]
    np.testing.assert_allclose(
        got, by_hand(IMAGES[0], np.array([1.0, -2, 0, 0, 0]), "pool"), rtol=1e-9, atol=1e-12
    )


def test_sums_to_the_score_without_its_bias_where_the_score_is_linear_in_the_layer():
    values = opsin.hires_cam(MODEL, IMAGES, target=3, layer="relu2").values
    for image, got in zip(IMAGES, values, strict=True):
        score = reference.forward(NET, reference.array(image))["output"][3] - NET.fc.bias[3].item()
        assert float(got.sum()) == pytest.approx(score, rel=1e-9)


def test_equals_cam_over_the_positions_where_average_pooling_ends_the_network():
    hires = opsin.hires_cam(MODEL, IMAGES, target=1, layer="relu2").values
    torch.testing.assert_close(64 * hires, opsin.cam(MODEL, IMAGES, target=1).values, rtol=1e-9, atol=1e-12)
