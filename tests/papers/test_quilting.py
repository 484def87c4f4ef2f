"""Quilting: distances and seams by loops and by trying every path, and what must hold of every result."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch

import nets
import opsin
from opsin.optimise.quilt import BlockByBlock
from opsin.statistics.blocks import Blocks, seam


def test_distances_are_weighted_sums_of_squares():
    sample, template = nets.images(1, 11, 9)[0], nets.images(1, 4, 4, seed=5)[0]
    weights = torch.rand(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = Blocks(sample, 4).distances(template, weights)
    assert found.shape == (8, 6)
    for row, column in product(range(8), range(6)):
        part = sample[:, row : row + 4, column : column + 4]
        expected = float((weights * (part - template).square()).sum())
        assert float(found[row, column]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", [(6, 3), (5, 4), (1, 4), (4, 1)])
def test_a_seam_is_the_cheapest_of_all_paths(size):
    for number in range(5):
        errors = torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        paths = [
            path
            for path in product(range(size[1]), repeat=size[0])
            if all(abs(a - b) <= 1 for a, b in pairwise(path))
        ]
        costs = {path: sum(float(errors[row, at]) for row, at in enumerate(path)) for path in paths}
        assert tuple(seam(errors).tolist()) == min(costs, key=costs.get)


def test_every_pixel_is_a_samples_and_blocks_overlap_by_a_sixth():
    sample = nets.images(1, 30, 31)
    result = opsin.quilting(sample, block=12, size=40, width=33)
    assert result.images.shape == (1, 3, 40, 33)
    made = result.images[0].flatten(1).T
    apart = (made[:, None] - sample[0].flatten(1).T).abs().amax(2)  # (made, the sample's)
    assert float(apart.amin(1).max()) == 0
    quilt = BlockByBlock(sample, 12, (40, 33), None, 1, 0)
    starts = [sorted({job[axis] for job in quilt.jobs}) for axis in (1, 2)]
    assert starts == [[0, 10, 20, 30], [0, 10, 20, 30]]


def test_blocks_are_drawn_from_those_within_a_tenth_of_the_best():
    sample = nets.images(1, 14, 15, seed=2)
    quilt = BlockByBlock(sample, 6, (16, 16), None, 1, 3)
    quilt.advance()
    for _ in range(8):
        _, row, column = quilt.jobs[quilt.number]
        old = quilt.picture[0, :, row : row + 6, column : column + 6].clone()
        mask = np.zeros((6, 6))
        if row:
            mask[0] = 1
        if column:
            mask[:, 0] = 1
        costs = {}
        for r, c in product(range(9), range(10)):
            part = sample[0, :, r : r + 6, c : c + 6]
            costs[r, c] = float((torch.tensor(mask) * (part - old).square()).sum())
        error = -quilt.advance()
        assert min(costs.values()) - 1e-9 <= error <= 1.1 * min(costs.values()) + 1e-9
        new = quilt.picture[0, :, row : row + 6, column : column + 6]
        inner = (slice(None), slice(1 if row else 0, None), slice(1 if column else 0, None))
        blocks = [sample[0, :, r : r + 6, c : c + 6] for r, c in costs]
        assert any(torch.equal(new[inner], block[inner]) for block in blocks)


def test_the_first_block_may_be_any():
    sample = nets.images(1, 12, 12)
    corners = {
        float(opsin.quilting(sample, block=6, size=16, seed=seed).images[0, 0, 0, 0]) for seed in range(6)
    }
    assert len(corners) > 2


def test_what_fits_is_sewn_without_a_seam():
    waves = torch.sin(torch.arange(32.0)[:, None] * torch.pi / 4) * torch.sin(
        torch.arange(32.0) * torch.pi / 4
    )
    sample = (0.5 + 0.4 * waves).expand(1, 3, 32, 32).contiguous()
    made = opsin.quilting(sample, block=12, size=40).images[0, 0]
    assert float((made[8:] - made[:-8]).abs().max()) < 1e-5
    assert float((made[:, 8:] - made[:, :-8]).abs().max()) < 1e-5


def test_a_transfer_has_the_photos_brightness_in_the_samples_blocks():
    ramp = torch.linspace(0, 1, 48).expand(1, 3, 24, 48)
    photo = torch.zeros(1, 3, 32, 48)
    photo[..., 24:] = 0.9
    result = opsin.quilting(ramp.contiguous(), block=8, onto=photo, size=48, passes=2)
    assert result.images.shape == (1, 3, 32, 48)
    dark, bright = result.images[..., :20].mean(), result.images[..., 28:].mean()
    assert float(dark) < 0.2
    assert float(bright) > 0.75
    # rows and columns of blocks of 8 pixels, then of 5, each a pixel over the one before
    assert len(result.numbers["0 score"]) == 5 * 7 + 8 * 12


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"passes": 2}, "give a photo with onto"),
        ({"onto": torch.rand(2, 3, 16, 16)}, "one at a time"),
        ({"onto": torch.rand(1, 3, 16, 16), "width": 32}, "leave it out"),
    ],
)
def test_what_cannot_be_quilted_is_refused(settings, said):
    with pytest.raises(opsin.InputError, match=said):
        opsin.quilting(nets.images(1), **settings)


def test_a_sample_that_is_too_small_or_of_one_colour():
    with pytest.raises(opsin.InputError, match="at least 4"):
        opsin.quilting(nets.images(1, 3, 40), size=16)
    plain = torch.full((1, 3, 12, 12), 0.3, dtype=torch.float64)
    torch.testing.assert_close(
        opsin.quilting(plain, size=16).images, plain[..., :1, :1].expand(-1, -1, 16, 16)
    )
