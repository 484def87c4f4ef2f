"""A texture that grows pixel by pixel, each drawn from where the sample looks like its surroundings."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from opsin.base.errors import InputError
from opsin.optimise.growing import Growth
from opsin.optimise.samples import check_memory

TOLERANCE = 0.1  # the paper's: windows up to so much worse than the best one are candidates
FIRST_LIMIT, RELAXED = 0.3, 1.1  # of the error, and how it rises where nothing is below it
SHARPNESS = 6.4  # the window is so many deviations of its Gaussian wide
SEED = 3  # pixels along a side of the piece that the texture grows from
ROUNDING = 1e-6  # of an error, in single precision


class PixelByPixel(Growth):
    """Efros and Leung's growth: the picture, which of its pixels are known, and the limit of the error."""

    def __init__(
        self, sample: Tensor, window: int, size: tuple[int, int], seed: int, hole: Bool[Tensor, "h w"] | None
    ) -> None:
        self.half, self.mean = window // 2, sample.mean((2, 3), keepdim=True)
        self.colours = (sample - self.mean)[0].flatten(1).T  # (h w, 3)
        known = torch.zeros(size, dtype=torch.bool, device=sample.device)
        start = torch.zeros(1, 3, *size, dtype=sample.dtype, device=sample.device)
        if hole is not None:
            known, start = ~hole, torch.where(hole, start, sample - self.mean)
        super().__init__(start, int((~known).sum()), seed)
        if not self.total or (self.total == known.numel() and hole is not None):
            raise InputError(f"efros_leung: the hole is {'everything' if self.total else 'empty'}")
        self.windows, self.places = self._windows(sample - self.mean, window, hole)
        if hole is None:
            self._plant(sample - self.mean, known)
        weights = torch.exp(-((torch.arange(window) - self.half) * SHARPNESS / window).square() / 2)
        self.weights = torch.outer(weights, weights).flatten().to(sample.device, torch.float32)
        self.limit = torch.tensor(FIRST_LIMIT, dtype=torch.float64)
        self.arrays |= {"known": known, "limit": self.limit}
        self.known = known

    def images(self) -> Float[Tensor, "1 3 h w"]:
        """The picture so far; what is not known yet has the mean colour."""
        known = torch.ones_like(self.known) if self.number >= self.total else self.known
        return torch.where(known, self.picture + self.mean, self.mean).clamp(0, 1)

    def advance(self) -> float:
        """One shell: every unknown pixel that has a known neighbour."""
        errors: list[Tensor] = []
        while not errors:
            for rows, columns in self._apart(self._shell()):
                error, chosen = self._matches(rows, columns)
                good = error < self.limit
                if not good.any():
                    continue
                at = rows[good], columns[good]
                self.picture[0][:, *at] = self.colours[self.places[chosen[good]]].T
                self.known[at] = True
                errors.append(error[good])
            if not errors:
                self.limit *= RELAXED
        found = torch.cat(errors)
        self.number += len(found)
        return -float(found.mean())

    def _windows(self, sample: Tensor, window: int, hole: Tensor | None) -> tuple[Tensor, Tensor]:
        """Every whole window of the sample, as its squares and its values, and where its middle is."""
        height, width = (sample.shape[2], sample.shape[3])
        check_memory(
            "efros_leung", 4 * 4 * window**2 * height * width, "a smaller source or a smaller window"
        )
        values = sample.float().unfold(2, window, 1).unfold(3, window, 1)[0]  # (3, H, W, window, window)
        values = values.flatten(3).permute(1, 2, 0, 3).flatten(0, 1)  # (H W, 3, window²)
        number = torch.arange(height * width, device=sample.device).reshape(height, width)
        inner = slice(self.half, -self.half)
        places = number[inner, inner].flatten()
        if hole is not None:
            touched = hole.unfold(0, window, 1).unfold(1, window, 1).flatten(2).any(2).flatten()
            values, places = values[~touched], places[~touched]
            if not len(places):
                raise InputError(
                    f"efros_leung: no window of {window} pixels lies beside the hole: make window smaller"
                )
        return torch.cat([values.square().sum(1), values.flatten(1)], 1) / 3, places

    def _plant(self, sample: Tensor, known: Tensor) -> None:
        """A random piece of the sample in the middle of the picture."""
        high, wide = (side - SEED + 1 for side in (sample.shape[2], sample.shape[3]))
        row, column = (int(torch.randint(most, (), generator=self.generator)) for most in (high, wide))
        top, left = ((side - SEED) // 2 for side in known.shape)
        there = (..., slice(top, top + SEED), slice(left, left + SEED))
        self.picture[there] = sample[..., row : row + SEED, column : column + SEED]
        known[there] = True
        self.number = SEED**2

    def _shell(self) -> Int[np.ndarray, "k 2"]:
        """The unknown pixels beside known ones: those with most of them first, equals in random order."""
        padded = pad(self.known[None, None].float(), (1, 1, 1, 1))
        near = padded.unfold(2, 3, 1).unfold(3, 3, 1).sum((-1, -2))
        found = ((near[0, 0] > 0) & ~self.known).nonzero()
        found = found[torch.randperm(len(found), generator=self.generator).to(found.device)]
        order = near[0, 0][found[:, 0], found[:, 1]].sort(descending=True, stable=True).indices
        ordered: Int[np.ndarray, "k 2"] = found[order].cpu().numpy()
        return ordered

    def _apart(self, pixels: Int[np.ndarray, "k 2"]) -> Iterator[tuple[Tensor, Tensor]]:
        """The pixels in groups, none of which has another of its group in its window; in order otherwise."""
        left = list(map(tuple, pixels))
        while left:
            taken = np.zeros(tuple(self.known.shape), bool)
            group, later = [], []
            for row, column in left:
                if taken[row, column]:
                    later.append((row, column))
                    continue
                group.append((row, column))
                taken[
                    max(0, row - self.half) : row + self.half + 1,
                    max(0, column - self.half) : column + self.half + 1,
                ] = True
            left = later
            rows, columns = torch.tensor(np.array(group), device=self.known.device).T
            yield rows, columns

    def _matches(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """For every pixel the least error, and one of the windows that are about as near."""
        side = torch.arange(2 * self.half + 1, device=rows.device)
        at = (rows[:, None, None] + side[:, None], columns[:, None, None] + side)
        around = (self.half,) * 4
        known = pad(self.known, around)[at].flatten(1)  # (k, window²)
        template = pad(self.picture[0], around)[:, *at].flatten(2).transpose(0, 1).float()  # (k, 3, window²)
        weights = self.weights * known
        weights = weights / weights.sum(1, keepdim=True)
        wanted = (weights[:, None] * template).flatten(1)
        constant = (weights * template.square().mean(1)).sum(1)
        error = torch.cat([weights, -2 * wanted], 1) @ self.windows.T  # (k, windows), without the constant
        best = (error.amin(1) + constant).clamp(min=0)
        most = best * (1 + TOLERANCE) + ROUNDING - constant
        near = (error <= most[:, None]).nonzero()
        count = near[:, 0].bincount(minlength=len(rows))
        drawn = torch.rand(len(rows), generator=self.generator, dtype=torch.float64).to(count.device)
        chosen = near[count.cumsum(0) - count + (drawn * count).long(), 1]
        return best, chosen
