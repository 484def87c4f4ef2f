"""Photos reduced to a few grey levels."""

from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opsin.base.choices import Cut
from opsin.base.errors import InputError, unknown
from opsin.images.colour import LUMINANCE

OUTSIDE = -1  # the level of a pixel outside the mask
ROUNDING = 1e-5  # of a level: a value so near to a bound is on it, whatever precision it came in


@dataclass(frozen=True)
class Levels:
    """How a photo is reduced to `count` levels, 0 to count - 1.

    `width`: levels of equal width from `low` to `high`, l = ⌊count (x - low) / (high - low)⌋; values beyond
    belong to the first and the last. `range`: the same from the picture's own least to its greatest value
    (IBSI's fixed bin number). `share`: as many pixels in each level as ties allow (Haralick's way),
    l = ⌊count F(x)⌋ with F the share of pixels below x and half of those that equal it.
    """

    count: int
    cut: Cut = "width"
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.cut not in get_args(Cut):
            raise unknown("cut", self.cut, get_args(Cut))
        if self.cut != "width" and (self.low is not None or self.high is not None):
            raise InputError(f"low and high are bounds of cut='width': leave them out of {self.cut!r}")
        if not self.bounds[0] < self.bounds[1]:
            raise InputError(f"low must be below high, not {self.bounds[0]:g} and {self.bounds[1]:g}")

    @property
    def bounds(self) -> tuple[float, float]:
        """The values where the first level begins and the last one ends, of levels of equal width."""
        return 0.0 if self.low is None else self.low, 1.0 if self.high is None else self.high

    def of(self, values: Float[Tensor, "h w"], mask: Bool[Tensor, "h w"]) -> Int[Tensor, "h w"]:
        """The level of every pixel, `OUTSIDE` where there is no mask.

        Raises `InputError` where there is nothing within the mask, or less values than equal shares.
        """
        inside = values[mask].double()
        if not len(inside):
            raise InputError("the mask leaves nothing of the picture")
        if self.cut == "share":
            found = self._shares(inside)
        else:
            low, high = self.bounds if self.cut == "width" else (float(inside.min()), float(inside.max()))
            position = self.count * (inside - low) / ((high - low) or 1)
            near = position.round()
            found = torch.where((position - near).abs() < ROUNDING, near, position).floor()
        levels = torch.full(values.shape, OUTSIDE, dtype=torch.int64, device=values.device)
        levels[mask] = found.long().clamp(0, self.count - 1)
        return levels

    def _shares(self, inside: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        different, place, count = inside.unique(return_inverse=True, return_counts=True)
        if len(different) < self.count:
            raise InputError(
                f"the picture has {len(different)} different values, too few for {self.count} equal shares: "
                f"pass levels={len(different)} or fewer, or cut='width'"
            )
        below = count.cumsum(0) - count
        level: Tensor = (self.count * (below + count / 2) / len(inside)).floor()
        return level[place]


def channels(images: Float[Tensor, "n 3 h w"], *, colour: bool) -> Float[Tensor, "n c h w"]:
    """The three colours, or the brightness alone (ITU-R BT.601)."""
    if colour:
        return images
    weights = images.new_tensor(LUMINANCE)
    grey = torch.einsum("c,nchw->nhw", weights, images)[:, None]
    same = (images == images[:, :1]).all()  # of a grey photo its values themselves, not their weighted sum
    return images[:, :1] if same else grey
