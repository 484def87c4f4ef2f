"""Co-occurrence features in a sliding window at every pixel, by sums over boxes.

A window's counts are a sum over a box, and a sum over a box is four sums over everything above and to the
left of its corners: a pixel costs the same whatever the window. Several counters are packed into one 64-bit
number, since sums of packed numbers are packed sums; what overflows on the way cancels in the differences.
The picture is worked in bands of rows, so that the memory needed beside the maps does not grow with its
height, and no matrix is kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from opsin.base.choices import Feature, Over
from opsin.base.errors import InputError
from opsin.statistics.cooccurrence import Offset, Rules, pairs
from opsin.statistics.haralick import NAMES, Distributions, features, maximal_correlation
from opsin.statistics.levels import OUTSIDE

BAND = 2**15  # pixels that are worked at once, so that they stay in the processor's cache
BITS = 62  # of a packed number
MATRICES = 2**22  # numbers of the matrices of which singular values are taken at once
JOINT: frozenset[Feature] = frozenset(
    {
        "joint_maximum",
        "joint_entropy",
        "angular_second_moment",
        "information_correlation_1",
        "information_correlation_2",
        "maximal_correlation",
    }
)  # features that need p(i, j) itself
SUMS: frozenset[Feature] = frozenset(
    {
        "sum_average",
        "sum_variance",
        "sum_entropy",
        "correlation",
        "autocorrelation",
        "cluster_tendency",
        "cluster_shade",
        "cluster_prominence",
    }
)  # that need the distribution of sums
INFORMATION: frozenset[Feature] = frozenset({"information_correlation_1", "information_correlation_2"})
# those that need the distributions of single levels; they are found from p(i, j) for INFORMATION too
SINGLE: frozenset[Feature] = frozenset({"joint_average", "joint_variance", "correlation"})
# those that need the distribution of differences
DIFFERENCES: frozenset[Feature] = frozenset(NAMES) - JOINT - SINGLE - SUMS | {"autocorrelation"}


@dataclass(frozen=True)
class Windows:
    """Which features to take in which windows, of pictures with levels 0 to count - 1.

    A window is `side` pixels wide and high around its pixel; at the picture's edge, and at a mask's, it holds
    the pairs that lie in both. `over` says whether the offsets are merged before features are taken, or
    each has its own, of which the mean over the offsets that have any pair is taken.
    """

    names: tuple[Feature, ...]
    side: int
    offsets: tuple[Offset, ...]
    count: int
    rules: Rules
    symmetric: bool = True
    over: Over = "merged"

    def __post_init__(self) -> None:
        if self.side % 2 == 0:
            raise InputError(f"a window is an odd number of pixels wide, not {self.side}")
        for rows, columns in self.offsets:
            if max(abs(rows), abs(columns)) >= self.side:
                raise InputError(
                    f"a window of {self.side} pixels holds no pair at an offset of {rows},{columns}"
                )

    def bands(self, height: int, width: int) -> list[tuple[int, int]]:
        """The first and last row but one of every band of a picture."""
        rows = max(self.side, BAND // width)
        edges = [*range(0, height, rows), height]
        return list(pairwise(edges))

    def band(self, levels: Int[Tensor, "h w"], top: int, bottom: int) -> Float[Tensor, "features rows w"]:
        """The features in the rows from `top` to `bottom`; NaN where a window holds no pair."""
        if self.over == "merged":
            return self._features(levels, self.offsets, top, bottom)
        each = torch.stack([self._features(levels, (one,), top, bottom) for one in self.offsets])
        return each.nanmean(0)

    def _features(
        self, levels: Tensor, offsets: Sequence[Offset], top: int, bottom: int
    ) -> Float[Tensor, "features rows w"]:
        joint = JOINT.intersection(self.names)
        boxes = [_Boxes(levels, offset, self.side, top, bottom) for offset in offsets]
        found, total = self._from_joint(boxes) if joint else self._from_single(boxes)
        maximal = None
        if "maximal_correlation" in self.names:
            maximal = self._maximal(boxes)
        values = features(found, self.rules, self.names, maximal)
        stacked = torch.stack([values[name] for name in self.names])
        return torch.where(total > 0, stacked, torch.nan)

    def _from_joint(self, boxes: "list[_Boxes]") -> tuple[Distributions, Tensor]:
        """The distributions by way of every pair of levels, each only where a feature asks for it."""
        asked = set(self.names)
        device, shape, count = boxes[0].one.device, boxes[0].shape, self.count
        squares, greatest = (torch.zeros(shape, dtype=torch.int64, device=device) for _ in range(2))
        ((_, total),) = self._counts(boxes, 1, "any")
        logs = torch.zeros(shape, dtype=torch.float64, device=device)
        most = torch.arange(1 + 2 * len(boxes) * self.side**2, dtype=torch.float64, device=device)
        table = torch.xlogy(most, most)
        first, second, sums, differences = (
            torch.zeros(size if needed else 0, *shape, dtype=torch.int32, device=device)
            for size, needed in (
                (count, asked & (SINGLE | INFORMATION)),
                (count, asked & (SINGLE | INFORMATION)),
                (2 * count - 1, asked & SUMS),
                (count, asked & DIFFERENCES),
            )
        )
        for (i, j), number in self._joint_counts(boxes):
            twice = self.symmetric and i != j  # the counts of (i, j) and of (j, i), which are equal
            weight = 2 if self.symmetric else 1
            counts = number if twice or not self.symmetric else 2 * number
            share = 2 if twice else 1  # entries of the matrix that hold this count
            if "angular_second_moment" in asked:
                squares.addcmul_(counts, counts, value=share)
            if asked & (INFORMATION | {"joint_entropy"}):
                logs.add_(table.take(counts), alpha=share)
            if "joint_maximum" in asked:
                torch.maximum(greatest, counts, out=greatest)
            if len(sums):
                sums[i + j].add_(number, alpha=weight)
            if len(differences):
                differences[abs(i - j)].add_(number, alpha=weight)
            for level, own, turned in ((i, first, second), (j, second, first)):
                if len(first):
                    own[level] += counts
                if len(first) and twice:
                    turned[level] += number
        whole = (total.clamp(min=1) * (2 if self.symmetric else 1)).double()
        joint = {
            "squares": squares / whole.square(),
            "greatest": greatest / whole,
            "entropy": whole.log() - logs / whole,
        }
        found = Distributions(first / whole, second / whole, sums / whole, differences / whole, joint)
        return found, total

    def _from_single(self, boxes: "list[_Boxes]") -> tuple[Distributions, Tensor]:
        """The distributions of sums, differences and levels, each only where a feature asks for it."""
        count = self.count
        ((_, number),) = self._counts(boxes, 1, "any")
        whole = number.clamp(min=1).double()

        def shares(size: int, *kinds: str) -> Tensor:
            counted = torch.stack([part for _, part in self._counts(boxes, size, *kinds)])
            return counted / (whole * len(kinds))

        none = whole.new_zeros(0, *whole.shape)
        asked = set(self.names)
        first = second = none
        if asked & SINGLE:
            if self.symmetric:
                first = second = shares(count, "first", "second")
            else:
                first, second = shares(count, "first"), shares(count, "second")
        sums = shares(2 * count - 1, "sums") if asked & SUMS else none
        differences = shares(count, "differences") if asked & DIFFERENCES else none
        return Distributions(first, second, sums, differences, {}), number

    def _joint_counts(self, boxes: "list[_Boxes]") -> Iterator[tuple[tuple[int, int], Tensor]]:
        """Every pair of levels with its counts; of a symmetric matrix i <= j, and both orders together."""
        count = self.count
        if not self.symmetric:
            for code, counted in self._counts(boxes, count * count, "joint"):
                yield (code // count, code % count), counted
            return
        upper = [(i, j) for j in range(count) for i in range(j + 1)]
        for code, counted in self._counts(boxes, len(upper), "unordered"):
            yield upper[code], counted

    def _counts(self, boxes: "list[_Boxes]", size: int, *kinds: str) -> Iterator[tuple[int, Tensor]]:
        """How many pairs of a window have each code from 0 to size - 1, over all offsets and kinds."""
        bits = (len(boxes) * self.side**2 * len(kinds)).bit_length()
        fields = BITS // bits
        codes = [[box.code(kind, self.count) for kind in kinds] for box in boxes]
        packing = [
            [
                # a code outside the mask is in no group
                (
                    one.div(fields, rounding_mode="floor"),
                    torch.ones_like(one) << (bits * one.remainder(fields)),
                )
                for one in several
            ]
            for several in codes
        ]
        for start in range(0, size, fields):
            parts = []
            for box, several in zip(boxes, packing, strict=True):
                here = [torch.where(group == start // fields, one, 0) for group, one in several]
                parts.append(box.summed(reduce(torch.add, here)))
            packed = reduce(torch.add, parts)
            for field in range(min(fields, size - start)):
                yield start + field, (packed >> (bits * field)) & (2**bits - 1)

    def _maximal(self, boxes: "list[_Boxes]") -> Float[Tensor, "rows w"]:
        """The maximal correlation, of few windows at a time: the only feature that needs whole matrices."""
        rows, width = boxes[0].shape
        found = torch.empty(rows, width, dtype=torch.float64, device=boxes[0].one.device)
        most = max(1, MATRICES // (self.count**2 * width))
        for start in range(0, rows, most):
            end = min(rows, start + most)
            parts = [box.rows(start, end) for box in boxes]
            matrix = found.new_zeros(end - start, width, self.count, self.count)
            for (i, j), number in self._joint_counts(parts):
                matrix[..., i, j] += number
                if self.symmetric:
                    matrix[..., j, i] += number
            total = matrix.sum((-1, -2), keepdim=True).clamp(min=1)
            found[start:end] = maximal_correlation(matrix / total)
        return found


class _Boxes:
    """The pairs of one offset that the windows of some rows need, and sums over their boxes.

    The pairs stand at their upper left corners. They are surrounded by as many places without a pair as make
    every window whole.
    """

    def __init__(self, levels: Int[Tensor, "h w"], offset: Offset, side: int, top: int, bottom: int) -> None:
        self.levels, self.offset, self.side, self.top, self.bottom = levels, offset, side, top, bottom
        half, width = side // 2, levels.shape[1]
        self.shape = (bottom - top, width)
        self.box = (side - abs(offset[0]), side - abs(offset[1]))  # pairs of a whole window
        one, other = pairs(levels, offset)
        first, last = top - half, bottom + half - abs(offset[0])  # of the rows of pairs
        rows = slice(max(0, first), max(0, min(one.shape[0], last)))
        above = max(0, -first)
        below = last - first - above - (rows.stop - rows.start if rows.stop > rows.start else 0)
        right = width + self.box[1] - 1 - half - one.shape[1]
        self.around = (half, right, above, below)
        self.one, self.other = one[rows], other[rows]

    def rows(self, start: int, end: int) -> "_Boxes":
        """The same for some of the rows."""
        return _Boxes(self.levels, self.offset, self.side, self.top + start, self.top + end)

    def code(self, what: str, count: int) -> Int[Tensor, "H W"]:
        """What is counted of every pair, -1 where there is none or a pixel is outside the mask."""
        one, other = self.one, self.other
        if what == "unordered":
            less, more = torch.minimum(one, other), torch.maximum(one, other)
            found = more * (more + 1) // 2 + less
        elif what == "joint":
            found = one * count + other
        elif what == "sums":
            found = one + other
        elif what == "differences":
            found = (one - other).abs()
        elif what == "any":
            found = torch.zeros_like(one)
        else:
            found = one if what == "first" else other
        inside = (one != OUTSIDE) & (other != OUTSIDE)
        return pad(torch.where(inside, found, OUTSIDE), self.around, value=OUTSIDE)

    def summed(self, values: Int[Tensor, "H W"]) -> Int[Tensor, "rows w"]:
        """The sums over every window's pairs."""
        for axis, length in enumerate(self.box):
            total = values.cumsum(axis)
            whole = total.shape[axis] - length
            values = total.narrow(axis, length - 1, whole + 1).clone()
            values.narrow(axis, 1, whole).sub_(total.narrow(axis, 0, whole))
        return values
