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
    """ReLU(sum over k of ReLU(gradient) A), position by position."""
    a = reference.forward(NET, reference.array(image))
    gradient = reference.backward(NET, a, signal, to=layer)
    _, rows, columns = a[layer].shape
    heat = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            total = sum(max(g, 0) * m for g, m in zip(gradient[:, i, j], a[layer][:, i, j], strict=True))
            heat[i, j] = max(total, 0)
    return heat


@pytest.mark.parametrize("layer", ["conv1", "relu1", "pool", "conv2", "relu2"])
def test_weighs_each_position_by_the_positive_part_of_its_gradient(layer):
    result = opsin.layer_cam(MODEL, IMAGES, target=0, layer=layer)
    assert not result.signed
    for image, got in zip(IMAGES, result.values[:, 0], strict=True):
        np.testing.assert_allclose(got, by_hand(image, reference.one_hot(0), layer), rtol=1e-9, atol=1e-12)


def test_a_weighted_sum_is_a_target():
    got = opsin.layer_cam(MODEL, IMAGES[:1], target="0 - 2*1", layer="pool").values[0, 0]
    np.testing.assert_allclose(
        got, by_hand(IMAGES[0], np.array([1.0, -2, 0, 0, 0]), "pool"), rtol=1e-9, atol=1e-12
    )


def test_a_unit_marks_only_what_it_sees():
    # relu2:1@3,4 sees the 3 x 3 pooled positions around (3, 4)
    values = opsin.layer_cam(MODEL, IMAGES[:1], target="conv2:1@3,4", layer="pool").values[0, 0]
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2:5, 3:6] = False
    assert not values[outside].any()
    assert values[~outside].any()
