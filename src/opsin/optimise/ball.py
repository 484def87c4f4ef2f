"""Images that stay near given ones: the parameters of an attack."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.optimise.canvas import Canvas

Norm = Literal["linf", "l2"]
SMALL = 1e-12


@dataclass(frozen=True, eq=False)
class Ball(Canvas):
    """Images x in [0, 1] with ‖x - centre‖ ≤ radius, in the largest change of a value or the Euclidean norm.

    The radius is in units of [0, 1]; an infinite one leaves the clipping to [0, 1] only.
    """

    centre: Float[Tensor, "n 3 h w"]
    radius: float
    norm: Norm = "linf"

    @classmethod
    def around(cls, images: Float[Tensor, "n 3 h w"], epsilon: float, l2: float | None) -> "Ball":
        """The L2 ball of that radius if one is given, else the L∞ ball of radius ε."""
        return cls(images, epsilon) if l2 is None else cls(images, l2, "l2")

    def encode(self, images: Float[Tensor, "n 3 h w"]) -> Tensor:
        """The images."""
        return images.clone()

    def decode(self, parameters: Tensor) -> Float[Tensor, "n 3 h w"]:
        """The parameters."""
        return parameters

    def project(self, parameters: Tensor) -> None:
        """Bring images back to the nearest of the ball (L∞), or along its radius (L2), then into [0, 1]."""
        if self.norm == "linf":
            parameters.clamp_(self.centre - self.radius, self.centre + self.radius)
        else:
            change = parameters - self.centre
            length = change.flatten(1).norm(dim=1).clamp(min=SMALL).view(-1, 1, 1, 1)
            parameters.copy_(self.centre + change * (self.radius / length).clamp(max=1))
        parameters.clamp_(0, 1)

    def of(self, rows: Tensor) -> "Ball":
        """The same around some of the images."""
        return Ball(self.centre[rows], self.radius, self.norm)

    def random(self, generator: torch.Generator) -> Float[Tensor, "n 3 h w"]:
        """A random image of the ball around each centre, with the same random numbers for each.

        Uniform in the cube (L∞), or in a random direction at a radius that is uniform in volume (L2).
        """
        shape = self.centre.shape[1:]
        if self.norm == "linf":
            drawn = (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) * self.radius
        else:
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
            share = torch.rand((), generator=generator, dtype=torch.float64) ** (1 / drawn.numel())
            drawn *= self.radius * share / drawn.norm()
        moved = self.centre + drawn.to(self.centre)
        self.project(moved)
        return moved
