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


def by_hand(image, score, *, patch, stride, fill):
    """Squares until one reaches the edge: score, drop and class at each; mean drop at each pixel."""
    image = reference.array(image)
    _, h, w = image.shape

    def starts(length):
        found = [0]
        while found[-1] + patch < length:
            found.append(found[-1] + stride)
        return found

    whole = score(reference.forward(NET, image))
    scores = np.zeros((len(starts(h)), len(starts(w))))
    classes = np.zeros_like(scores, int)
    total, times = np.zeros((h, w)), np.zeros((h, w))
    for i, top in enumerate(starts(h)):
        for j, left in enumerate(starts(w)):
            covered = image.copy()
            covered[:, top : top + patch, left : left + patch] = fill
            a = reference.forward(NET, covered)
            scores[i, j], classes[i, j] = score(a), a["output"].argmax()
            total[top : top + patch, left : left + patch] += whole - scores[i, j]
            times[top : top + patch, left : left + patch] += 1
    return scores, whole - scores, classes, total / times


@pytest.mark.parametrize(
    ("patch", "stride", "fill"),
    [(4, 4, 0.5), (4, 2, 0.5), (6, 4, 0.0), (5, 4, 1.0), (16, 1, 0.25), (15, 15, 0.5)],
    ids=["side by side", "half overlapping", "black, a rest", "white, a rest", "all at once", "two a side"],
)
def test_is_the_drop_at_every_square(patch, stride, fill):
    result = opsin.occlusion(MODEL, IMAGES, target=1, patch=patch, stride=stride, fill=fill)
    for index, image in enumerate(IMAGES):
        expected = by_hand(image, lambda a: a["output"][1], patch=patch, stride=stride, fill=fill)
        found = (
            *(result.extras[name][index] for name in ("score", "drop", "top_class")),
            result.values[index, 0],
        )
        for got, numbers in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, numbers, rtol=1e-9, atol=1e-12)
    assert result.signed


def test_the_number_of_squares_with_and_without_a_rest():
    def squares(patch, stride):
        return tuple(opsin.occlusion(MODEL, IMAGES[:1], patch=patch, stride=stride).extras["drop"].shape[1:])

    assert squares(4, 4) == (4, 4)  # 0 4 8 12
    assert squares(5, 4) == (4, 4)  # 0 4 8 12, the last over the edge by one
    assert squares(8, 8) == (2, 2)
    assert squares(7, 8 - 1) == (3, 3)  # 0 7 14


def test_an_oblong_photo_has_its_own_number_of_rows_and_columns():
    image = nets.images(1, 12, 20)
    result = opsin.occlusion(MODEL, image, target=0, patch=8, stride=4)
    expected = by_hand(image[0], lambda a: a["output"][0], patch=8, stride=4, fill=0.5)
    assert result.extras["score"].shape == (1, 2, 4)
    np.testing.assert_allclose(result.extras["score"][0], expected[0], rtol=1e-9)
    np.testing.assert_allclose(result.values[0, 0], expected[3], rtol=1e-9, atol=1e-12)


def test_the_predicted_class_is_the_whole_photos_even_where_the_square_changes_it():
    result = opsin.occlusion(MODEL, IMAGES, patch=12, stride=4, fill=0.0)
    for index, image in enumerate(IMAGES):
        chosen = reference.forward(NET, reference.array(image))["output"].argmax()
        scores, *_ = by_hand(image, lambda a: a["output"][chosen], patch=12, stride=4, fill=0.0)  # noqa: B023
        np.testing.assert_allclose(result.extras["score"][index], scores, rtol=1e-9)
    before = MODEL.run(IMAGES)["output"].argmax(1).view(2, 1, 1)
    assert (result.extras["top_class"] != before).any()


def test_a_unit_and_a_weighted_sum_are_targets():
    result = opsin.occlusion(MODEL, IMAGES[:1], target="relu2:1@3,4 - 0.5*2", patch=8, stride=8)
    scores, *_ = by_hand(
        IMAGES[0], lambda a: a["relu2"][1, 3, 4] - 0.5 * a["output"][2], patch=8, stride=8, fill=0.5
    )
    np.testing.assert_allclose(result.extras["score"][0], scores, rtol=1e-9)


def test_a_unit_is_hurt_only_by_what_it_sees():
    # the unit sees the 3 x 3 pooled positions around it and with that pixels -1 to 6 of the photo
    drop = opsin.occlusion(MODEL, IMAGES, target="conv2:1@1,1", patch=4, stride=4).extras["drop"]
    assert (drop[:, 2:].abs() < 1e-12).all()  # but for rounding: the photo runs alone, the squares in a batch
    assert (drop[:, :, 2:].abs() < 1e-12).all()
    assert (drop[:, :2, :2].abs() > 1e-3).any()


def test_by_hand():
    # the score is the mean of red: covering a 4 x 4 square of a red photo costs 16/64 of it
    net = nets.chain(
        pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nets.linear([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    )
    model = nets.model(net, mean=[0.0] * 3, std=[1.0] * 3, labels=None, size=8)
    red = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    red[:, 0] = 1
    result = opsin.occlusion(model, red, target=0, patch=4, stride=4, fill=0.0)
    assert torch.equal(result.extras["score"], torch.full((1, 2, 2), 0.75, dtype=torch.float64))
    assert torch.equal(result.values, torch.full((1, 1, 8, 8), 0.25, dtype=torch.float64))
    half = opsin.occlusion(model, red, target=1, patch=4, stride=4, fill=0.5)
    assert torch.equal(half.values, torch.full((1, 1, 8, 8), -0.125, dtype=torch.float64))


def test_a_patch_larger_than_the_photo_and_a_stride_that_skips_pixels_are_refused():
    with pytest.raises(opsin.InputError, match=r"patch of 17 .*16x16"):
        opsin.occlusion(MODEL, IMAGES, patch=17, stride=1)
    with pytest.raises(opsin.InputError, match=r"stride of 5 .*patches of 4"):
        opsin.occlusion(MODEL, IMAGES, patch=4, stride=5)


def test_an_output_that_is_no_row_of_classes_has_no_top_class():
    net = nets.seeded(nets.Chain(conv=nn.Conv2d(3, 4, 3), relu=nn.ReLU()))
    result = opsin.occlusion(nets.model(net, labels=None), IMAGES, target="relu:1", patch=8, stride=8)
    assert set(result.extras) == {"score", "drop"}


@pytest.mark.parametrize(
    ("size", "patch", "stride"),
    [
        ((224, 224), 32, 16),
        ((224, 300), 32, 16),
        ((32, 32), 5, 2),
        ((16, 16), 2, 1),
        ((3, 9), 1, 1),
        ((1, 1), 1, 1),
    ],
)
def test_the_default_square_is_a_seventh_of_the_shorter_side_and_moves_by_half_of_it(size, patch, stride):
    net = nets.chain(
        pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nets.linear([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    )
    model = nets.model(net, labels=None, size=size)
    image = nets.images(1, *size)
    by_default = opsin.occlusion(model, image, target=0)
    assert by_default == opsin.occlusion(model, image, target=0)
    explicit = opsin.occlusion(model, image, target=0, patch=patch, stride=stride)
    assert torch.equal(by_default.values, explicit.values)
    assert torch.equal(by_default.extras["drop"], explicit.extras["drop"])


@pytest.mark.parametrize("size", [2, 5, 11, 13, 17, 20, 31, 40])
def test_the_default_squares_leave_no_pixel_unseen(size):
    # the score is the mean of red, and red is bright everywhere: to cover any pixel costs something
    net = nets.chain(
        pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nets.linear([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    )
    model = nets.model(net, mean=[0.0] * 3, std=[1.0] * 3, labels=None, size=size)
    image = torch.ones(1, 3, size, size + 3, dtype=torch.float64)
    values = opsin.occlusion(model, image, target=0).values
    assert values.isfinite().all()
    assert (values > 0).all()


def test_a_small_photo_has_a_map_and_not_one_value():
    values = opsin.occlusion(nets.model(nets.plain(), size=32), nets.images(1, 32), target=1).values
    assert len(values.unique()) > 100


def test_the_step_follows_a_square_that_is_named():
    half = opsin.occlusion(MODEL, IMAGES[:1], target=1, patch=6)
    assert torch.equal(half.values, opsin.occlusion(MODEL, IMAGES[:1], target=1, patch=6, stride=3).values)


def test_equal_images_with_different_targets_run_through_the_network_once(monkeypatch):
    """Two targets of one photo, with another photo between: the numbers are those of each alone."""
    first, second = IMAGES.split(1)
    seen = []
    run = opsin.Model.run

    def counted(model, images, *arguments, **settings):
        seen.append(len(images))
        return run(model, images, *arguments, **settings)

    monkeypatch.setattr(opsin.Model, "run", counted)
    together = opsin.occlusion(MODEL, torch.cat([first, second, first]), [0, 1, 2], patch=4, stride=4)
    squares, seen[:] = sum(seen), []
    order = enumerate((first, second, first))
    alone = [opsin.occlusion(MODEL, image, index, patch=4, stride=4) for index, image in order]
    for index, result in enumerate(alone):
        torch.testing.assert_close(together.values[index], result.values[0], rtol=1e-12, atol=1e-12)
        assert torch.equal(together.extras["top_class"][index], result.extras["top_class"][0])
    assert squares < sum(seen) * 0.8
