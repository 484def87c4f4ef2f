"""Blocks of a sample: how far each is from a template, and the seam along which two of them join best."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Blocks:
    """All blocks of `side` x `side` pixels of a sample."""

    def __init__(self, sample: Float[Tensor, "c h w"], side: int) -> None:
        self.side, self.size = side, (sample.shape[1], sample.shape[2])
        self.values = sample.double()
        self.places = (self.size[0] - side + 1, self.size[1] - side + 1)
        squares = self.values.square().sum(0, keepdim=True)
        self._spectrum = torch.fft.rfft2(torch.cat([squares, self.values]))

    def at(self, place: tuple[int, int]) -> Float[Tensor, "c side side"]:
        """The block whose first row and column are these."""
        row, column = place
        return self.values[:, row : row + self.side, column : column + self.side]

    def distances(
        self, template: Float[Tensor, "c side side"], weights: Float[Tensor, "side side"]
    ) -> Float[Tensor, "rows columns"]:
        """Σ w (block - template)² for the block at every place.

        By the spectrum, as Σ w b² - 2 Σ w b t + Σ w t².
        """
        wanted = template.double()
        kernels = torch.cat([weights[None].double(), -2 * weights * wanted])
        turned = torch.fft.rfft2(kernels, self.size).conj()
        whole: Tensor = torch.fft.irfft2((self._spectrum * turned).sum(0), self.size)
        constant = (weights * wanted.square()).sum()
        return (whole[: self.places[0], : self.places[1]] + constant).clamp(min=0)


def seam(errors: Float[Tensor, "length width"]) -> Int[Tensor, " length"]:
    """The path from the first row to the last with the least sum of errors, one column in each row.

    From row to row it moves by at most one column: E(i, j) = e(i, j) + min E(i - 1, j - 1 ... j + 1).
    """
    length, width = errors.shape
    total = errors.double().clone()
    beyond = total.new_full((1,), torch.inf)
    for row in range(1, length):
        before = torch.cat([beyond, total[row - 1], beyond])
        total[row] += before.unfold(0, 3, 1).amin(1)
    path = torch.empty(length, dtype=torch.int64)
    path[-1] = total[-1].argmin()
    for row in range(length - 2, -1, -1):
        left = max(0, int(path[row + 1]) - 1)
        path[row] = left + int(total[row, left : min(width, int(path[row + 1]) + 2)].argmin())
    return path
