"""Pictures that a small network makes of coordinates: smooth, and regular where its waves are."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.optimise.canvas import Canvas

INPUTS = 4  # x, y, the distance from the middle, and one
CHANNELS = 3
SPREAD = 2.0  # deviation of the first weights, in units of 1 / √inputs; found by trial


@dataclass(frozen=True)
class Cppn(Canvas):
    """A compositional pattern-producing network: the colour of every pixel is a function of its place.

    c(x, y) = σ(W_d φ(... φ(W_1 (x, y, √(x² + y²), 1))...)), with x and y in [-1, 1] along the longer side and
    φ the sine and a Gaussian, side by side. Every picture has its own weights. Stanley: Compositional Pattern
    Producing Networks, 2007; here the structure is fixed.
    """

    height: int
    width: int
    seed: int = 0
    units: int = 16
    depth: int = 3

    def encode(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n weights"]:
        """Random weights to begin with, others for each picture: a given picture is in general of none."""
        deviations = torch.cat([torch.full((a * b,), SPREAD / a**0.5) for a, b in self._sizes()])
        draw = torch.Generator().manual_seed(self.seed)
        return (deviations * torch.randn(len(images), len(deviations), generator=draw)).to(images)

    def decode(self, parameters: Float[Tensor, "n weights"]) -> Float[Tensor, "n 3 h w"]:
        """The pictures of weights."""
        values = self._coordinates().to(parameters).expand(len(parameters), -1, -1)  # (n, h*w, inputs)
        first = 0
        for number, (a, b) in enumerate(self._sizes()):
            weights = parameters[:, first : first + a * b].view(-1, a, b)
            first += a * b
            values = values @ weights
            if number < self.depth:
                values = torch.cat([values.sin(), (-values.square()).exp()], 2)
        return values.sigmoid().transpose(1, 2).reshape(-1, CHANNELS, self.height, self.width)

    def project(self, parameters: Tensor) -> None:
        """A sigmoid's picture is in [0, 1] already."""

    def _sizes(self) -> list[tuple[int, int]]:
        """The inputs and outputs of every layer; each output of a hidden one comes in two shapes."""
        wide = [INPUTS, *[2 * self.units] * self.depth]
        return [(a, self.units) for a in wide[:-1]] + [(wide[-1], CHANNELS)]

    def _coordinates(self) -> Float[Tensor, "pixels inputs"]:
        longer = max(self.height, self.width)
        rows, columns = (
            (torch.arange(length) * 2 - (length - 1)) / max(1, longer - 1)
            for length in (self.height, self.width)
        )
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        return torch.stack([x, y, (x.square() + y.square()).sqrt(), torch.ones_like(x)], 2).flatten(0, 1)
