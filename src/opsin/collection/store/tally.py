"""For every channel of a layer: where it fires most, and its moments, accumulated over images.

A tally has a fixed size: `of` makes one of a batch, `merged` joins two, in any order and grouping with the
same result (sums up to rounding).
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

NONE = -1  # stands in for an image's id if there are fewer than k images


@dataclass(frozen=True, eq=False)
class Tally:
    """The k greatest values per channel, one per image, with the image's id and the position in the maps.

    Equal values are ordered by id; maps that hold NaN, or nothing above minus infinity, are left out of the
    lists. `count` is the number of positions; `sums`, `squares` and `active` (the number of positions above
    zero) are over all positions of all images.
    """

    values: Float[Tensor, "c k"]
    ids: Int[Tensor, "c k"]
    places: Int[Tensor, "c k"]
    sums: Float[Tensor, " c"]
    squares: Float[Tensor, " c"]
    active: Float[Tensor, " c"]
    count: int
    images: int

    @classmethod
    def empty(cls, channels: int, k: int) -> "Tally":
        """The tally of no images."""
        ids = torch.full((channels, k), NONE)
        nothing = torch.zeros(channels, dtype=torch.float64)
        return cls(torch.full((channels, k), -torch.inf), ids, ids.clone(), nothing, nothing, nothing, 0, 0)

    @classmethod
    def of(cls, maps: Float[Tensor, "n c h w"], ids: Int[Tensor, " n"], k: int) -> "Tally":
        """The tally of a batch: activation maps (n, c, h, w) and the images' ids (n,)."""
        n, c, h, w = maps.shape
        flat = maps.detach().reshape(n, c, h * w).float()
        peaks, places = flat.max(2)  # (n, c) each
        means = flat.mean(2)
        deviations = torch.linalg.vector_norm(flat - means[:, :, None], dim=2)  # avoids cancellation
        above = torch.gt(flat, 0, out=torch.empty_like(flat)).sum(2)
        # (n, c) each
        means, deviations, active = (values.double().cpu() for values in (means, deviations, above))
        peaks, places, ids = peaks.T.cpu(), places.T.cpu(), ids.expand(c, n)
        is_number = peaks > -torch.inf  # not NaN
        tally = cls(
            peaks.where(is_number, -torch.inf),
            ids.where(is_number, NONE),
            places.where(is_number, NONE),
            h * w * means.sum(0),
            (deviations.square() + h * w * means.square()).sum(0),
            active.sum(0),
            n * h * w,
            n,
        )
        return tally._cut(k)

    def merged(self, other: "Tally") -> "Tally":
        """The tally of both sets of images, which must be disjoint."""
        joined = Tally(
            torch.cat([self.values, other.values], 1),
            torch.cat([self.ids, other.ids], 1),
            torch.cat([self.places, other.places], 1),
            self.sums + other.sums,
            self.squares + other.squares,
            self.active + other.active,
            self.count + other.count,
            self.images + other.images,
        )
        return joined._cut(max(self.values.shape[1], other.values.shape[1]))

    def _cut(self, k: int) -> "Tally":
        """The k greatest, greatest first, each channel filled up to k."""
        values, ids, places = self.values, self.ids, self.places
        if (missing := k - values.shape[1]) > 0:
            c = len(values)
            values = torch.cat([values, values.new_full((c, missing), -torch.inf)], 1)
            ids, places = (
                torch.cat([lists, lists.new_full((c, missing), NONE)], 1) for lists in (ids, places)
            )
        by_id = ids.argsort(1)
        by_value = values.gather(1, by_id).sort(dim=1, descending=True, stable=True).indices  # ties by id
        order = by_id.gather(1, by_value)[:, :k]
        values, ids, places = (lists.gather(1, order) for lists in (values, ids, places))
        return Tally(values, ids, places, self.sums, self.squares, self.active, self.count, self.images)

    def of_channels(self, channels: Int[Tensor, " m"]) -> "Tally":
        """The tally of some channels, in this order."""
        parts = ("values", "ids", "places", "sums", "squares", "active")
        return replace(self, **{name: getattr(self, name)[channels] for name in parts})

    @property
    def mean(self) -> Float[Tensor, " c"]:
        """The mean over all positions of all images."""
        return self.sums / max(self.count, 1)

    @property
    def deviation(self) -> Float[Tensor, " c"]:
        """The standard deviation over all positions of all images."""
        return (self.squares / max(self.count, 1) - self.mean.square()).clamp(min=0).sqrt()

    @property
    def sparsity(self) -> Float[Tensor, " c"]:
        """The share of positions where the channel is not above zero."""
        return 1 - self.active / max(self.count, 1)
