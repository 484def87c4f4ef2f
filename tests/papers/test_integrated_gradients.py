from itertools import pairwise

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


def measured(image, target, baseline, share):
    """Score, slope along the path, and gradient at one point of it."""
    x = reference.array(image)
    score = reference.forward(NET, baseline + share * (x - baseline))["output"][target]
    # on the baseline itself, where all pixels are equal, a max pool may choose any of them
    a = reference.forward(NET, baseline + max(share, 1e-4) * (x - baseline))
    gradient = reference.backward(NET, a, reference.one_hot(target))
    return score, float((gradient * (x - baseline)).sum()), gradient


def by_hand(image, target, baseline, samples):
    """Trapezoids between points; those parts are halved that make up four fifths of all errors."""
    first = min(17, samples)
    points = {k / (first - 1): measured(image, target, baseline, k / (first - 1)) for k in range(first)}
    rise = points[1.0][0] - points[0.0][0]
    while True:
        ends = sorted(points)
        errors = {}
        for a, b in pairwise(ends):
            errors[a, b] = (b - a) * (points[a][1] + points[b][1]) / 2 - (points[b][0] - points[a][0])
        sizes = sorted((abs(error), part) for part, error in errors.items())[::-1]
        together = sum(size for size, _ in sizes)
        if abs(sum(errors.values())) <= 0.01 * abs(rise) and together <= 0.1 * abs(rise):
            break
        halved = [sizes[k][1] for k in range(len(sizes)) if sum(s for s, _ in sizes[:k]) < 0.8 * together]
        halved = halved[: samples - len(points)]
        if not halved:
            break
        points.update({(a + b) / 2: measured(image, target, baseline, (a + b) / 2) for a, b in halved})
    total = sum((b - a) / 2 * (points[a][2] + points[b][2]) for a, b in errors)
    return (reference.array(image) - baseline) * total, sum(errors.values()), len(points)


@pytest.mark.parametrize("samples", [2, 3, 20, 256])
@pytest.mark.parametrize("baseline", [0.0, 0.5])
def test_is_the_sum_of_trapezoids_which_are_halved_where_the_score_says_that_they_are_off(baseline, samples):
    result = opsin.integrated_gradients(MODEL, IMAGES, target=3, samples=samples, baseline=baseline)
    assert result.signed
    for index, image in enumerate(IMAGES):
        expected, error, points = by_hand(image, 3, baseline, samples)
        np.testing.assert_allclose(result.values[index], expected, rtol=1e-9, atol=1e-12)
        assert float(result.extras["error"][index]) == pytest.approx(error, abs=1e-9)
        assert int(result.extras["points"][index]) == points


@pytest.mark.parametrize("baseline", [0.0, 0.5])
def test_is_the_integral_of_the_gradient_along_the_path_times_the_way(baseline):
    # a plain sum over the middles of many short steps; the gradient jumps at every kink of the network
    result = opsin.integrated_gradients(MODEL, IMAGES[:1], target=1, baseline=baseline)
    image = reference.array(IMAGES[0])
    total, points = np.zeros_like(image), 400
    for k in range(points):
        total += measured(IMAGES[0], 1, baseline, (k + 0.5) / points)[2] / points
    expected = (image - baseline) * total
    assert np.linalg.norm(result.values[0].numpy() - expected) < 0.1 * np.linalg.norm(expected)


class Saturating(nn.Module):
    """A score that rises in a small part of the way from black, as those of classifiers do."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(200 * (x.mean((2, 3)) - 0.03))


def test_a_score_that_rises_in_a_small_part_of_the_path_is_accounted_for():
    # 32 points at equal distances were off by a third and more, without a word
    model = nets.model(
        nets.chain(saturating=Saturating()), mean=[0.0] * 3, std=[1.0] * 3, labels=None, size=8
    )
    images = torch.stack([torch.full((3, 8, 8), level, dtype=torch.float64) for level in (0.3, 0.7, 1.0)])
    result = opsin.integrated_gradients(model, images, target=0)
    assert not result.record.notes
    rise = 1 / (1 + np.exp(-200 * (np.array([0.3, 0.7, 1.0]) - 0.03))) - 1 / (1 + np.exp(6))
    assert (abs(result.values.sum((1, 2, 3)).numpy() - rise) <= 0.01 * rise).all()
    assert (result.extras["points"] < 64).all()


def test_what_is_left_of_the_error_at_the_limit_is_a_caution_that_names_the_image():
    model = nets.model(
        nets.chain(saturating=Saturating()), mean=[0.0] * 3, std=[1.0] * 3, labels=None, size=8
    )
    images = torch.stack([torch.full((3, 8, 8), level, dtype=torch.float64) for level in (0.0, 0.7)])
    result = opsin.integrated_gradients(model, images, target=0, samples=9)
    (said,) = [line for line in result.record.notes if "points" in line]
    total, error = float(result.values[1].sum()), abs(float(result.extras["error"][1]))
    rise = float(1 / (1 + np.exp(-200 * 0.67)) - 1 / (1 + np.exp(6)))
    assert said.startswith(
        f"Caution: image 1: after 9 points the values sum to {total:.3g}, the score rises by {rise:.3g} "
        f"(off by {error / rise:.1%}, "
    )
    assert said.endswith("more samples may help")


def test_an_image_that_is_done_is_not_run_again():
    counted: list[int] = []

    class Counting(Saturating):
        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                counted.append(len(x))
            return super().forward(x)

    model = nets.model(nets.chain(counting=Counting()), mean=[0.0] * 3, std=[1.0] * 3, labels=None, size=8)
    images = torch.stack([torch.full((3, 8, 8), level, dtype=torch.float64) for level in (0.0, 0.7)])
    assert model.calls
    counted.clear()
    points = opsin.integrated_gradients(model, images, target=0).extras["points"]
    assert points[0] == 17  # black: there is no way to go
    assert points[1] > 17
    assert sum(counted) == int(points.sum())
    assert max(counted) > 1  # several points at once


def test_errors_that_cancel_out_do_not_end_the_search():
    # 16 trapezoids sum up to the rise exactly, though the parts are off by as much as that together
    class Wave(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            level = x.mean((2, 3))
            return level + 0.3 * torch.sin(8 * torch.pi * level)

    net = nets.chain(wave=Wave())
    model = nets.model(net, mean=[0.0] * 3, std=[1.0] * 3, labels=None, size=8)
    image = torch.ones(1, 3, 8, 8, dtype=torch.float64)
    coarse = opsin.integrated_gradients(model, image, target=0, samples=17)
    assert abs(float(coarse.extras["error"])) < 0.01
    assert "(off by 0.0%, parts of the path by 103.0% together)" in coarse.record.notes[0]
    assert int(opsin.integrated_gradients(model, image, target=0).extras["points"]) > 17


@pytest.mark.parametrize("baseline", [0.0, 0.5, 1.0])
def test_sums_to_the_rise_of_the_score_up_to_the_error_it_reports(baseline):
    result = opsin.integrated_gradients(MODEL, IMAGES, target=2, baseline=baseline)
    for index, image in enumerate(map(reference.array, IMAGES)):
        high = reference.forward(NET, image)["output"][2]
        low = reference.forward(NET, np.full_like(image, baseline))["output"][2]
        total = float(result.values[index].sum())
        assert float(result.extras["error"][index]) == pytest.approx(total - (high - low), abs=1e-9)
        assert total == pytest.approx(high - low, abs=0.01 * abs(high - low))


def test_more_points_make_the_error_smaller():
    few, many = (
        opsin.integrated_gradients(MODEL, IMAGES, target=2, samples=n).extras["error"].abs().sum()
        for n in (2, 128)
    )
    assert many < 0.2 * few


def test_of_a_square_by_hand():
    # S = mean of red^2: each pixel's share of the rise from 1/2 is (x^2 - 1/4) / 64, with two points already
    red = nets.linear([[1.0, 0.0, 0.0]])
    net = nets.chain(square=Square(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=red)
    model = nets.model(net, mean=[0.0] * 3, std=[1.0] * 3, labels=None, size=8)
    image = nets.images(1, 8)
    expected = torch.zeros_like(image)
    expected[:, 0] = (image[:, 0] ** 2 - 0.25) / 64
    for samples in (2, 256):
        result = opsin.integrated_gradients(model, image, target=0, samples=samples, baseline=0.5)
        torch.testing.assert_close(result.values, expected, rtol=2e-4, atol=1e-9)
        assert float(result.extras["error"]) == pytest.approx(0, abs=1e-4)


def test_the_predicted_class_is_the_images_own():
    result = opsin.integrated_gradients(MODEL, IMAGES)
    predicted = MODEL.run(IMAGES)["output"].argmax(1).tolist()
    assert torch.equal(result.values, opsin.integrated_gradients(MODEL, IMAGES, target=predicted).values)
    black = MODEL.run(torch.zeros_like(IMAGES))["output"].argmax(1).tolist()
    assert black != predicted


def test_a_unit_and_a_weighted_sum_are_targets():
    unit = opsin.integrated_gradients(MODEL, IMAGES, target="relu2:1@3,4", samples=17).values
    score = opsin.integrated_gradients(MODEL, IMAGES, target=0, samples=17).values
    both = opsin.integrated_gradients(MODEL, IMAGES, target="2*relu2:1@3,4 - 0.5*0", samples=17).values
    assert unit.any()
    torch.testing.assert_close(both, 2 * unit - 0.5 * score, rtol=1e-9, atol=1e-12)


def test_a_score_that_jumps_ends_with_a_caution():
    class Jumping(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            level = x.mean((2, 3))
            return level + torch.floor(3 * level)

    model = nets.model(nets.chain(jumping=Jumping()), mean=[0.0] * 3, std=[1.0] * 3, labels=None, size=8)
    result = opsin.integrated_gradients(model, torch.full((1, 3, 8, 8), 0.6, dtype=torch.float64), target=0)
    assert any("the values sum to 0.6, the score rises by 1.6" in line for line in result.record.notes)
    assert int(result.extras["points"]) < 256


def test_a_network_of_half_precision_ends_where_its_rounding_begins():
    for dtype in (torch.bfloat16, torch.float16):
        model = nets.model(nets.plain(dtype=dtype))
        half = opsin.integrated_gradients(model, IMAGES, target=3)
        assert (half.extras["points"] < 256).all()
        expected = opsin.integrated_gradients(MODEL, IMAGES, target=3).values
        assert (half.values.double() - expected).norm() < 0.2 * expected.norm()


def test_a_score_that_changes_by_rounding_alone_is_not_followed():
    class Still(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 100 + 1e-5 * x.mean((2, 3))

    net = nets.chain(still=Still()).float()
    model = nets.model(net, mean=[0.0] * 3, std=[1.0] * 3, labels=None, size=8)
    result = opsin.integrated_gradients(model, nets.images(1, 8, dtype=torch.float32), target=0)
    assert result.extras["points"].tolist() == [17]
    assert not any("points" in line for line in result.record.notes)
