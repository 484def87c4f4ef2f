"""A texture that grows block by block, each sewn to those before along the seam of least error."""

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.optimise.growing import Growth
from opsin.statistics.blocks import Blocks, seam
from opsin.statistics.levels import channels

TOLERANCE = 0.1  # the paper's: blocks up to so much worse than the best one are candidates
OVERLAP = 6  # the paper's: neighbouring blocks share a sixth of their side
SMALLER = 2 / 3  # the paper's: the side of a block from pass to pass of a transfer
ROUNDING = 1e-9  # of an error


class BlockByBlock(Growth):
    """Efros and Freeman's quilt: whole blocks, so that it may be larger than what is wanted of it."""

    def __init__(
        self,
        sample: Tensor,
        block: int,
        size: tuple[int, int],
        goal: Float[Tensor, "1 1 h w"] | None,
        passes: int,
        seed: int,
    ) -> None:
        self.wanted, self.goal = size, goal
        count = 1 if goal is None else passes
        sides = [max(4, round(block * SMALLER**number)) for number in range(count)]
        grids = [[_starts(most, side) for most in size] for side in sides]
        self.jobs = [
            (number, row, column)
            for number, (rows, columns) in enumerate(grids)
            for row in rows
            for column in columns
        ]
        reach = [
            max(starts[way][-1] + side for starts, side in zip(grids, sides, strict=True)) for way in (0, 1)
        ]
        start = torch.zeros(1, 3, *reach, dtype=sample.dtype, device=sample.device)
        super().__init__(start, len(self.jobs), seed)
        self.blocks = [Blocks(sample[0], side) for side in sides]
        if goal is not None:
            grey = channels(sample, colour=False)[0]
            self.bright = [Blocks(grey, side) for side in sides]
            self.shares = [0.1 + 0.8 * number / max(1, count - 1) for number in range(count)]
            beyond = (0, reach[1] - size[1], 0, reach[0] - size[0])
            self.goal = torch.nn.functional.pad(goal, beyond, mode="replicate")[0]

    def images(self) -> Float[Tensor, "1 3 h w"]:
        """The part that is wanted."""
        return super().images()[..., : self.wanted[0], : self.wanted[1]]

    def advance(self) -> float:
        """One block."""
        number, row, column = self.jobs[self.number]
        blocks = self.blocks[number]
        side, overlap = blocks.side, _overlap(blocks.side)
        there = (slice(row, row + side), slice(column, column + side))
        old = self.picture[0][:, *there].double()
        shared = old.new_zeros(side, side)
        shared[:overlap] = row > 0
        shared[:, :overlap] = torch.maximum(shared[:, :overlap], shared.new_tensor(float(column > 0)))
        error = blocks.distances(old, shared)
        if self.goal is not None:
            alpha = self.shares[number]
            every = torch.ones_like(shared)
            before = blocks.distances(old, every) if number else torch.zeros_like(error)
            likeness = self.bright[number].distances(self.goal[:, *there], every)
            error = alpha * (error + before) + (1 - alpha) * likeness
        candidates = (error <= error.min() * (1 + TOLERANCE) + ROUNDING).nonzero()
        drawn = int(torch.randint(len(candidates), (), generator=self.generator))
        place = tuple(candidates[drawn].tolist())
        new = blocks.at((place[0], place[1]))
        kept = _kept((new - old).square().sum(0), overlap, above=row > 0, beside=column > 0)
        self.picture[0][:, *there] = torch.where(kept, old, new).to(self.picture.dtype)
        self.number += 1
        return -float(error[place])


def _overlap(side: int) -> int:
    """How many pixels neighbouring blocks share."""
    return max(1, side // OVERLAP)


def _starts(most: int, side: int) -> list[int]:
    """Where blocks begin so that they cover a length, each overlapping the one before."""
    step = side - _overlap(side)
    return list(range(0, max(1, most - side + step), step))


def _kept(errors: Float[Tensor, "side side"], overlap: int, *, above: bool, beside: bool) -> Tensor:
    """Which pixels of a block stay as they are: those above and to the left of its seams."""
    number = torch.arange(overlap)
    kept = torch.zeros_like(errors, dtype=torch.bool)
    if beside:
        kept[:, :overlap] |= (number < seam(errors[:, :overlap])[:, None]).to(kept.device)
    if above:
        kept[:overlap] |= (number[:, None] < seam(errors[:overlap].T)).to(kept.device)
    return kept
