import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nets
import opsin
import reference

NET = nets.plain()
MODEL = nets.model(NET)
IMAGES = nets.images(2)


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**2


@pytest.mark.parametrize("baseline", [0.0, 0.5])
def test_is_the_integral_of_the_gradient_along_the_path_times_the_way(baseline):
    # a plain sum over the middles of many short steps; the gradient jumps at every kink of the network
    result = opsin.integrated_gradients(MODEL, IMAGES[:1], target=1, samples=200, baseline=baseline)
    image = reference.array(IMAGES[0])
    total, points = np.zeros_like(image), 400
    for k in range(points):
        a = reference.forward(NET, baseline + (k + 0.5) / points * (image - baseline))
        total += reference.backward(NET, a, reference.one_hot(1)) / points
    expected = (image - baseline) * total
    assert np.linalg.norm(result.values[0].numpy() - expected) < 0.01 * np.linalg.norm(expected)


def test_at_the_points_of_gauss_and_legendre_by_hand():
    # two points on [0, 1], 1/2 +- 1/sqrt(12), of weight 1/2 each
    result = opsin.integrated_gradients(MODEL, IMAGES, target=3, samples=2)
    assert result.signed
    for image, got in zip(map(reference.array, IMAGES), result.values, strict=True):
        points = [reference.forward(NET, (0.5 + sign / 12**0.5) * image) for sign in (-1, 1)]
        expected = image * sum(0.5 * reference.backward(NET, a, reference.one_hot(3)) for a in points)
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("baseline", [0.0, 0.5, 1.0])
def test_sums_to_the_rise_of_the_score_up_to_the_error_it_reports(baseline):
    result = opsin.integrated_gradients(MODEL, IMAGES, target=2, samples=64, baseline=baseline)
    for index, image in enumerate(map(reference.array, IMAGES)):
        high = reference.forward(NET, image)["output"][2]
        low = reference.forward(NET, np.full_like(image, baseline))["output"][2]
        total = float(result.values[index].sum())
        assert float(result.extras["error"][index]) == pytest.approx(total - (high - low), abs=1e-9)
        assert total == pytest.approx(high - low, abs=0.02 * abs(high - low))


def test_more_points_make_the_error_smaller():
    few, many = (
        opsin.integrated_gradients(MODEL, IMAGES, target=2, samples=n).extras["error"].abs().sum()
        for n in (2, 128)
    )
    assert many < 0.2 * few


def test_of_a_square_by_hand():
    # S = mean of red^2: each pixel's share of the rise from 1/2 is (x^2 - 1/4) / 64, with one point already
    red = nets.linear([[1.0, 0.0, 0.0]])
    net = nets.chain(square=Square(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=red)
    model = nets.model(net, mean=[0.0] * 3, std=[1.0] * 3, labels=None, size=8)
    image = nets.images(1, 8)
    expected = torch.zeros_like(image)
    expected[:, 0] = (image[:, 0] ** 2 - 0.25) / 64
    for samples in (1, 32):
        result = opsin.integrated_gradients(model, image, target=0, samples=samples, baseline=0.5)
        torch.testing.assert_close(result.values, expected)
        assert float(result.extras["error"]) == pytest.approx(0, abs=1e-12)


def test_the_predicted_class_is_the_images_own():
    result = opsin.integrated_gradients(MODEL, IMAGES)
    predicted = MODEL.run(IMAGES)["output"].argmax(1).tolist()
    assert torch.equal(result.values, opsin.integrated_gradients(MODEL, IMAGES, target=predicted).values)
    black = MODEL.run(torch.zeros_like(IMAGES))["output"].argmax(1).tolist()
    assert black != predicted


def test_a_unit_and_a_weighted_sum_are_targets():
    unit = opsin.integrated_gradients(MODEL, IMAGES, target="relu2:1@3,4").values
    score = opsin.integrated_gradients(MODEL, IMAGES, target=0).values
    both = opsin.integrated_gradients(MODEL, IMAGES, target="2*relu2:1@3,4 - 0.5*0").values
    assert unit.any()
    torch.testing.assert_close(both, 2 * unit - 0.5 * score, rtol=1e-9, atol=1e-12)
