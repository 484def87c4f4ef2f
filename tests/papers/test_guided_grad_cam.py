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
    heat = sum(g.mean() * m for g, m in zip(gradient, a[layer], strict=True))
    wide = reference.enlarged(np.maximum(heat, 0), *image.shape[1:])
    return reference.backward(NET, a, signal, rule=reference.guided) * wide


@pytest.mark.parametrize("layer", ["pool", "conv2", "relu2"])
@pytest.mark.parametrize("target", [0, 3])
def test_is_guided_backprop_times_enlarged_grad_cam(layer, target):
    result = opsin.guided_grad_cam(MODEL, IMAGES, target=target, layer=layer)
    assert result.signed
    for image, got in zip(IMAGES, result.values, strict=True):
        expected = by_hand(image, reference.one_hot(target), layer)
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_is_the_product_of_the_two_techniques():
    detail = opsin.guided_backprop(MODEL, IMAGES, target=0).values
    where = opsin.grad_cam(MODEL, IMAGES, target=0, layer="conv2").upsampled()
    assert (where == 0).any()
    got = opsin.guided_grad_cam(MODEL, IMAGES, target=0, layer="conv2").values
    torch.testing.assert_close(got, detail * where, rtol=1e-9, atol=1e-12)


def test_a_weighted_sum_is_a_target():
    got = opsin.guided_grad_cam(MODEL, IMAGES[:1], target="2*1 - 4").values[0]
    expected = by_hand(IMAGES[0], np.array([0, 2.0, 0, 0, -1]), "relu2")
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_a_unit_is_a_target():
    unit = {"target": "relu2:1@3,4"}
    detail = opsin.guided_backprop(MODEL, IMAGES, **unit).values
    where = opsin.grad_cam(MODEL, IMAGES, **unit, layer="pool").upsampled()
    got = opsin.guided_grad_cam(MODEL, IMAGES, **unit, layer="pool").values
    torch.testing.assert_close(got, detail * where, rtol=1e-9, atol=1e-12)


def test_a_network_without_rectifiers_is_refused():
    with pytest.raises(opsin.NetworkError, match="met no rectifier"):
        opsin.guided_grad_cam(nets.model(nets.vit()), IMAGES)
