"""For every channel of a layer: where it fires most, and its moments, gathered image by image.

A tally is a running answer that never grows: `add` takes a batch in, `merged` joins two, in any order
and grouping, with the same result (sums up to rounding).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

NONE = -1  # the id of no image, where fewer than k have been seen


@dataclass(frozen=True, eq=False)
class Tally:
    """The k greatest values a channel, one an image, with the image's id and the place in the maps.

    Equal values are in the order of the ids; maps that hold NaN, or nothing above minus infinity, are in no
    channel's list. `count` is of positions; `sums`, `squares` and `active` (how
    many positions are above zero) are over all positions of all images.
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
        """The tally of no image."""
        ids = torch.full((channels, k), NONE)
        nothing = torch.zeros(channels, dtype=torch.float64)
        return cls(torch.full((channels, k), -torch.inf), ids, ids.clone(), nothing, nothing, nothing, 0, 0)

    @classmethod
    def of(cls, maps: Float[Tensor, "n c h w"], ids: Int[Tensor, " n"], k: int) -> "Tally":
        """The tally of a batch, from its activation maps and the images' ids."""
        n, c, h, w = maps.shape
        flat = maps.detach().reshape(n, c, h * w).float()
        peaks, places = flat.max(2)  # (n, c) each
        means = flat.mean(2)
        away = torch.linalg.vector_norm(flat - means[:, :, None], dim=2)  # so that no digits cancel
        above = torch.gt(flat, 0, out=torch.empty_like(flat)).sum(2)
        means, away, active = (one.double().cpu() for one in (means, away, above))  # (n, c) each
        peaks, places, ids = peaks.T.cpu(), places.T.cpu(), ids.expand(c, n)
        some = peaks > -torch.inf  # not NaN
        found = cls(
            peaks.where(some, -torch.inf),
            ids.where(some, NONE),
            places.where(some, NONE),
            h * w * means.sum(0),
            (away.square() + h * w * means.square()).sum(0),
            active.sum(0),
            n * h * w,
            n,
        )
        return found._cut(k)

    def merged(self, other: "Tally") -> "Tally":
        """The tally of two sets of images that have none in common."""
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
            ids, places = (torch.cat([one, one.new_full((c, missing), NONE)], 1) for one in (ids, places))
        by_id = ids.argsort(1)
        order = by_id.gather(1, values.gather(1, by_id).sort(dim=1, descending=True, stable=True).indices)[
            :, :k
        ]
        values, ids, places = (one.gather(1, order) for one in (values, ids, places))
        return Tally(values, ids, places, self.sums, self.squares, self.active, self.count, self.images)

    @property
    def mean(self) -> Float[Tensor, " c"]:
        """Mean and deviation of the activations over all positions of all images."""
        return self.sums / max(self.count, 1)

    @property
    def deviation(self) -> Float[Tensor, " c"]:
        """The standard deviation over all positions of all images."""
        return (self.squares / max(self.count, 1) - self.mean.square()).clamp(min=0).sqrt()

    @property
    def sparsity(self) -> Float[Tensor, " c"]:
        """The share of positions where the channel is not above zero."""
        return 1 - self.active / max(self.count, 1)
