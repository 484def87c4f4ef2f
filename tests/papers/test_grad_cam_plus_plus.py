import numpy as np
import pytest
import torch
from torch import nn

import nets
import opsin
import reference

NET = nets.plain()
MODEL = nets.model(NET)
IMAGES = nets.images(2)


def by_hand(image, signal, layer):
    """Eq. 19 and 5 in loops, with the derivatives of exp(S) divided by exp(S): g, g^2 and g^3 of dS/dA."""
    a = reference.forward(NET, reference.array(image))
    gradient = reference.backward(NET, a, signal, to=layer)
    maps = a[layer]
    channels, rows, columns = maps.shape
    heat = np.zeros((rows, columns))
    for k in range(channels):
        weight = 0.0
        for i in range(rows):
            for j in range(columns):
                g = gradient[k, i, j]
                below = 2 * g**2 + maps[k].sum() * g**3
                alpha = g**2 / below if below != 0 else 0.0
                weight += alpha * max(g, 0)
        heat += weight * maps[k]
    return np.maximum(heat, 0)


@pytest.mark.parametrize("layer", ["pool", "conv2", "relu2"])
@pytest.mark.parametrize("target", [0, 3])
def test_weighs_the_positive_gradients_by_their_shares(layer, target):
    result = opsin.grad_cam_plus_plus(MODEL, IMAGES, target=target, layer=layer)
    assert not result.signed
    for image, got in zip(IMAGES, result.values[:, 0], strict=True):
        expected = by_hand(image, reference.one_hot(target), layer)
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_a_weighted_sum_is_a_target():
    got = opsin.grad_cam_plus_plus(MODEL, IMAGES[:1], target="0 - 2*1", layer="conv2").values[0, 0]
    expected = by_hand(IMAGES[0], np.array([1.0, -2, 0, 0, 0]), "conv2")
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_is_the_papers_map_up_to_the_factor_that_it_drops():
    # Y = exp(S), S piecewise linear in A: the three derivatives are exp(S) times g, g^2 and g^3
    a = reference.forward(NET, reference.array(IMAGES[0]))
    g, maps = reference.backward(NET, a, reference.one_hot(0), to="relu2"), a["relu2"]
    y = np.exp(a["output"][0])
    first, second, third = y * g, y * g**2, y * g**3
    alpha = second / (2 * second + maps.sum((1, 2), keepdims=True) * third)
    expected = np.maximum(((alpha * np.maximum(first, 0)).sum((1, 2))[:, None, None] * maps).sum(0), 0)
    got = opsin.grad_cam_plus_plus(MODEL, IMAGES[:1], target=0).values[0, 0].numpy()
    np.testing.assert_allclose(got * y, expected, rtol=1e-9)


def test_two_objects_of_different_size_are_both_marked_by_hand():
    # one map each, of 4 and of 1 bright positions; S = sum of both maps, so g = 1 everywhere
    # alpha = 1 / (2 + sum A) at each of 64 places: weights 64/6 and 64/3
    net = nets.chain(
        conv=nets.conv([[[[1.0]], [[0.0]], [[0.0]]], [[[0.0]], [[1.0]], [[0.0]]]]),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        fc=nets.linear([[64.0, 64.0]]),
    )
    model = nets.model(net, mean=[0.0] * 3, std=[1.0] * 3, labels=None, size=8)
    image = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    image[0, 0, :2, :2] = 1
    image[0, 1, 7, 7] = 1
    values = opsin.grad_cam_plus_plus(model, image, target=0, layer="conv").values[0, 0]
    torch.testing.assert_close(values[:2, :2], torch.full((2, 2), 64 / 6, dtype=torch.float64))
    assert float(values[7, 7]) == pytest.approx(64 / 3)
    assert int((values != 0).sum()) == 5
