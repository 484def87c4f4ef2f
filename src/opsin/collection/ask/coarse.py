"""The nearest vectors, exactly: a coarse matrix finds candidates, their true distances decide.

Rows x lie rounded to bfloat16, as x̃, in a memory-mapped file, and a query q is rounded likewise. By the
triangle inequality | |q - x| - |q̃ - x̃| | <= |q - q̃| + |x - x̃|: so once some k rows' true distances are
known, a row whose coarse distance exceeds the greatest of these by more than that is not among the k nearest.
All others are computed from the features themselves. The answer is exact, not likely.

The coarse product is itself rounded to bfloat16, relative to its size. So that little is lost near the top,
both hold columns with their squared norms, which make it -|q̃ - x̃|²: zero for equal vectors. Cosine
distance is half the squared distance of vectors of length one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opsin.base.errors import InputError
from opsin.base.records import as_json, read_json

Take = Callable[[Tensor], Tensor]  # row numbers -> these rows, as they are
ALIGNMENT = 32  # columns: what the matrix units of CPUs take at once
GROUP = 64  # rows of which first the nearest alone is looked at
QUERIES = 64  # at once
ROUNDING = 2.0**-8  # of bfloat16, relative
SLACK = 4e-5  # of squared norms held as two bfloat16 and of sums in float32, relative to the norms
FAR = torch.finfo(torch.bfloat16).max / 4  # the squared norm given to what holds NaN or infinities
ROWS, FACTS = "rows.bf16", "facts.json"
EXTRA = 4  # columns: the squared norm as the sum of two numbers, and twice a one for the query's


@dataclass(frozen=True)
class Nearest:
    """Nearest first: row numbers and distances; -1 and infinite where there are fewer than k rows.

    Vectors that hold NaN or infinities are near to nothing.
    """

    rows: Int[Tensor, "n k"]
    distances: Float[Tensor, "n k"]


@dataclass(frozen=True)
class CoarseFacts:
    """What stands beside the rounded rows: how many there are, and the greatest |x - x̃| and |x̃|²."""

    count: int
    width: int
    columns: int
    error: float
    norm: float


class Coarse:
    """The rounded rows of a matrix, in a file: (n, width + EXTRA, aligned) bfloat16.

    Raises `InputError` where the file is not there or is not as long as it should be.
    """

    def __init__(self, place: Path) -> None:
        facts = read_json(place / FACTS, CoarseFacts)
        self.count, self.width, self.columns = facts.count, facts.width, facts.columns
        self.error, self.norm = facts.error, facts.norm
        self.padded = -(-self.count // GROUP) * GROUP
        size, file = self.padded * self.columns, place / ROWS
        try:
            length = file.stat().st_size
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}") from error
        if length != size * torch.bfloat16.itemsize:  # the process would die where it reads beyond the end
            raise InputError(f"{file} is damaged: it has {length} bytes")
        self.rows = torch.from_file(str(file), shared=False, size=size, dtype=torch.bfloat16).view(
            -1, self.columns
        )

    @staticmethod
    def write(place: Path, parts: Iterator[Float[Tensor, "m d"]], width: int) -> None:
        """Round the rows of a matrix, given part by part, into a new folder."""
        columns = -(-(width + EXTRA) // ALIGNMENT) * ALIGNMENT
        count, error, norm = 0, 0.0, 0.0
        with (place / ROWS).open("wb") as file:
            for part in parts:
                rounded = _rounded(part, columns, query=False)
                known = rounded[:, width] < FAR
                near = rounded[known, :width].double()
                if len(near):
                    error = max(error, float((part[known].double() - near).norm(dim=1).max()))
                    norm = max(norm, float(near.square().sum(1).max()))
                count += len(part)
                file.write(rounded.view(torch.int16).numpy().data)
            far = torch.zeros((-count % GROUP, columns), dtype=torch.bfloat16)
            far[:, width] = 4 * FAR  # rows that only fill up lie farthest from all
            file.write(far.view(torch.int16).numpy().data)
        facts = CoarseFacts(count, width, columns, error, norm)
        (place / FACTS).write_text(as_json(asdict(facts)), "utf-8")

    def nearest(
        self,
        queries: Float[Tensor, "q d"],
        k: int,
        take: Take,
    ) -> Nearest:
        """The rows of the least Euclidean distance; `take` gives rows as they are."""
        parts = [self._nearest(part, k, take) for part in queries.split(QUERIES)]
        return Nearest(torch.cat([one.rows for one in parts]), torch.cat([one.distances for one in parts]))

    def _nearest(
        self,
        queries: Float[Tensor, "q d"],
        k: int,
        take: Take,
    ) -> Nearest:
        wanted = min(k, self.count)
        rounded = _rounded(queries, self.columns, query=True)
        scores = rounded @ self.rows.T  # (q, rows): -|q̃ - x̃|²
        best = scores.view(len(queries), -1, GROUP).amax(2)  # (q, groups)
        away = (queries.double() - rounded[:, : self.width].double() / 2).norm(dim=1)  # |q - q̃|
        groups = min(wanted, best.shape[1])
        first = best.topk(groups, 1).indices  # the k nearest coarse groups hold k near rows
        near = [_of_groups(own, one).float() for own, one in zip(scores, first, strict=True)]
        picked = [one.topk(wanted).indices for one in near]
        rows = [one[p // GROUP] * GROUP + p % GROUP for one, p in zip(first, picked, strict=True)]
        # k rows lie as near as this
        reach = torch.stack([one.max() for one in _distances(queries, rows, take)])
        limits = (reach + away + self.error).square()
        limits += SLACK * (self.norm + queries.double().square().sum(1))
        limits = (limits / (1 - ROUNDING)).nan_to_num(nan=torch.inf, posinf=torch.inf)
        rows = []
        for own, groups_best, limit in zip(scores, best, limits, strict=True):
            near_groups = (groups_best.float() >= -limit).nonzero().flatten()
            inside = (_of_groups(own, near_groups).float() >= -limit).nonzero().flatten()
            found = near_groups[inside // GROUP] * GROUP + inside % GROUP
            rows.append(found[found < self.count])
        exact = _distances(queries, rows, take)
        # of equal ones the first row first
        orders = [one.sort(stable=True).indices[:wanted] for one in exact]
        found = torch.stack([one[order] for one, order in zip(rows, orders, strict=True)])
        distances = torch.stack([one[order] for one, order in zip(exact, orders, strict=True)])
        found = found.where(distances.isfinite(), -1)
        missing = (0, k - wanted)
        return Nearest(
            torch.nn.functional.pad(found, missing, value=-1),
            torch.nn.functional.pad(distances, missing, value=torch.inf),
        )


def _of_groups(scores: Float[Tensor, " rows"], groups: Int[Tensor, " g"]) -> Float[Tensor, " members"]:
    """The scores of the rows of some groups."""
    return scores.view(-1, GROUP)[groups].flatten()


def _distances(
    queries: Float[Tensor, "q d"], rows: Sequence[Int[Tensor, " _"]], take: Take
) -> list[Float[Tensor, " _"]]:
    """The distances of each query to its rows; all rows are taken at once."""
    every = torch.cat(list(rows)).unique()
    values = take(every).double()
    return [
        (values[torch.searchsorted(every, own)] - query)
        .square()
        .sum(1)
        .sqrt()
        .nan_to_num(nan=torch.inf, posinf=torch.inf)
        for query, own in zip(queries.double(), rows, strict=True)
    ]


def _rounded(values: Float[Tensor, "m d"], columns: int, *, query: bool) -> Float[Tensor, "m columns"]:
    """Rows (x̃, s, s', 1, 1) or queries (2 q̃, -1, -1, -s, -s'), where s + s' is the squared norm."""
    wide = torch.zeros(len(values), columns, dtype=torch.bfloat16)
    width = values.shape[1]
    near = values.to(torch.bfloat16)
    squared = near.float().square().sum(1)
    coarse = squared.to(torch.bfloat16)
    known = (coarse < FAR)[:, None]
    norms = torch.stack([coarse, (squared - coarse.float()).to(torch.bfloat16)], 1)
    norms, near = norms.where(known, norms.new_tensor([FAR, 0])), near.where(known, 0)
    ones = torch.ones_like(norms)
    wide[:, :width] = 2 * near if query else near
    wide[:, width : width + EXTRA] = torch.cat([-ones, -norms] if query else [norms, ones], 1)
    return wide
