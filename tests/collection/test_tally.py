"""The running tally of a layer against a slow reference: Python lists in float64, one image at a time."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from opsin.collection.store.tally import NONE, Tally

C, H, W = 3, 4, 5
INF = math.inf


def drawn(n, seed=0, *, rough=False):
    """Maps (n, c, h, w), a third of them zero; rough ones have few different values, so that many tie."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(n, C, H, W)).clip(-0.5)
    maps = np.round(values) if rough else values
    return torch.tensor(np.where(generator.random(maps.shape) < 0.3, 0, maps), dtype=torch.float32)


def numbered(n, seed=0):
    """Ids in no order."""
    return torch.tensor(np.random.default_rng(seed + 100).permutation(1000)[:n] * 10**15)


def reference(maps, ids, k):
    """(values, ids, places) a channel, and mean, deviation, sparsity."""
    found, moments = [], []
    for channel in maps.double().numpy().transpose(1, 0, 2, 3):
        peaks = []
        for image, id in zip(channel, ids.tolist(), strict=True):
            flat = image.flatten().tolist()
            if not any(map(math.isnan, flat)):
                peaks.append((-max(flat), id, flat.index(max(flat))))
        best = [(-value, id, place) for value, id, place in sorted(peaks)][:k]
        found.append(best + [(-INF, NONE, NONE)] * (k - len(best)))
        every = channel.flatten()
        mean = every.sum() / every.size
        deviation = math.sqrt(((every - mean) ** 2).sum() / every.size)
        moments.append((mean, deviation, sum(every <= 0) / every.size))
    return found, np.array(moments)


def rows(tally):
    lists = (tally.values, tally.ids, tally.places)
    return [list(zip(*(one[c].tolist() for one in lists), strict=True)) for c in range(len(tally.ids))]


def equals(tally, maps, ids, k):
    found, moments = reference(maps, ids, k)
    assert rows(tally) == found
    np.testing.assert_allclose(tally.mean, moments[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tally.deviation, moments[:, 1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tally.sparsity, moments[:, 2], rtol=1e-12)
    assert (tally.count, tally.images) == (len(maps) * maps.shape[2] * maps.shape[3], len(maps))


def same(one, other):
    assert rows(one) == rows(other)
    assert (one.count, one.images) == (other.count, other.images)
    for name in ("sums", "squares", "active"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rough", [False, True], ids=["smooth", "with ties"])
@pytest.mark.parametrize("k", [1, 4, 9])
@pytest.mark.parametrize("seed", range(3))
def test_a_batch_equals_the_reference(seed, k, rough):
    maps, ids = drawn(12, seed, rough=rough), numbered(12, seed)
    equals(Tally.of(maps, ids, k), maps, ids, k)


@pytest.mark.parametrize("rough", [False, True], ids=["smooth", "with ties"])
@pytest.mark.parametrize("cuts", [(1,), (3, 4, 11), tuple(range(1, 14))])
def test_merging_in_any_order_and_grouping_equals_one_pass(cuts, rough):
    maps, ids, k = drawn(14, rough=rough), numbered(14), 4
    bounds = (0, *cuts, 14)
    parts = [Tally.of(maps[a:b], ids[a:b], k) for a, b in pairwise(bounds)]
    generator = np.random.default_rng(0)
    for _ in range(8):  # two tallies drawn at random are joined until one is left
        left = list(parts)
        while len(left) > 1:
            one, other = (left.pop(generator.integers(len(left))) for _ in range(2))
            left.append(one.merged(other))
        equals(left[0], maps, ids, k)


def test_merging_is_commutative_and_associative():
    a, b, c = (Tally.of(drawn(5, seed, rough=True), numbered(15)[5 * seed :][:5], 4) for seed in range(3))
    same(a.merged(b), b.merged(a))
    same(a.merged(b).merged(c), a.merged(b.merged(c)))


def test_of_no_image_is_neutral():
    none, some = Tally.empty(C, 4), Tally.of(drawn(3), numbered(3), 4)
    same(none.merged(some), some)
    same(some.merged(none), some)
    assert rows(none) == [[(-INF, NONE, NONE)] * 4] * C
    assert none.mean.tolist() == none.deviation.tolist() == [0.0] * C


def test_equal_values_are_in_the_order_of_the_ids():
    ids = torch.tensor([7, 3, 9, 1, 5])
    maps = torch.ones(5, C, 2, 2)
    assert Tally.of(maps, ids, 3).ids.tolist() == [[1, 3, 5]] * C
    apart = [Tally.of(maps[i : i + 1], ids[i : i + 1], 3) for i in range(5)]
    joined = apart[0].merged(apart[1]).merged(apart[2]).merged(apart[3]).merged(apart[4])
    assert joined.ids.tolist() == [[1, 3, 5]] * C


def test_of_equal_places_in_one_map_the_first_is_kept():
    maps = torch.zeros(1, 1, 3, 3)
    maps[0, 0, 1, 2] = maps[0, 0, 2, 0] = 4
    assert Tally.of(maps, torch.tensor([5]), 1).places.tolist() == [[5]]


def test_fewer_images_than_k_are_followed_by_none():
    maps, ids = drawn(2), torch.tensor([4, 6])
    tally = Tally.of(maps, ids, 5)
    equals(tally, maps, ids, 5)
    assert tally.ids[:, 2:].eq(NONE).all()
    more = tally.merged(Tally.of(drawn(6, 1), numbered(6), 5))
    assert not more.ids.eq(NONE).any()


@pytest.mark.parametrize("together", [True, False])
def test_nan_does_not_win_and_is_in_no_list(together):
    maps, ids, k = drawn(6), numbered(6), 4
    maps[1, 0, 2, 2] = maps[4] = torch.nan  # one channel of one image, one image whole
    tally = Tally.empty(C, k)
    for part in [slice(0, 6)] if together else [slice(i, i + 1) for i in range(6)]:
        tally = tally.merged(Tally.of(maps[part], ids[part], k))
    assert rows(tally) == reference(maps, ids, k)[0]
    assert not tally.ids.eq(ids[4]).any()
    assert not tally.ids[0].eq(ids[1]).any()
    assert tally.images == 6


def test_too_few_good_images_are_not_filled_up_with_nan_ones():
    maps, ids = drawn(3), torch.tensor([1, 2, 3])
    maps[:2] = torch.nan
    one, two, three = (Tally.of(maps[i : i + 1], ids[i : i + 1], 3) for i in range(3))
    for tally in (Tally.of(maps, ids, 3), one.merged(two).merged(three), three.merged(one.merged(two))):
        assert tally.ids.tolist() == [[3, NONE, NONE]] * C
        assert tally.places[:, 1:].tolist() == [[NONE, NONE]] * C


def test_infinity_is_what_it_is():
    maps, ids = drawn(3), torch.tensor([1, 2, 3])
    maps[1, 0, 3, 4] = torch.inf
    maps[2, 1] = -torch.inf  # nowhere more than nothing
    tally = Tally.of(maps, ids, 3)
    assert (tally.values[0, 0].item(), tally.ids[0, 0].item(), tally.places[0, 0].item()) == (INF, 2, 19)
    assert tally.ids[1].tolist()[2] == NONE


@pytest.mark.parametrize("spread", [1e-3, 1e-5])
def test_a_small_deviation_around_a_large_mean_keeps_its_digits(spread):
    drawn_ = np.random.default_rng(0).normal(10, spread, (40, C, 30, 30))
    maps, ids = torch.tensor(drawn_, dtype=torch.float32), numbered(40)
    tally = Tally.of(maps[:25], ids[:25], 2).merged(Tally.of(maps[25:], ids[25:], 2))
    expected = maps.double().transpose(0, 1).flatten(1).std(1, correction=0)
    # The mean of an image, 10, is rounded to single precision: by up to a twentieth of the smaller spread.
    torch.testing.assert_close(tally.deviation, expected, rtol=1e-2, atol=0)


def test_large_numbers_keep_their_moments():
    maps = 1000 + 0.1 * torch.randn(20, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(20)
    tally = Tally.of(maps[:10], ids[:10], 2).merged(Tally.of(maps[10:], ids[10:], 2))
    mean = maps.double().mean((0, 2, 3))
    torch.testing.assert_close(tally.mean, mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        tally.squares / tally.count, maps.double().square().mean((0, 2, 3)), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_are_taken(dtype):
    maps, ids = drawn(5).to(dtype), numbered(5)
    found, _ = reference(maps, ids, 3)
    tally = Tally.of(maps, ids, 3)
    assert [[(id, place) for _, id, place in row] for row in rows(tally)] == [
        [(id, place) for _, id, place in row] for row in found
    ]
    assert tally.values.dtype == torch.float32
