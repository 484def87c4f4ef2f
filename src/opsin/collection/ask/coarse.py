"""The nearest vectors, exactly: a coarse matrix finds candidates, their true distances decide.

Rows x are stored rounded to bfloat16, as x̃, in a memory-mapped file; queries q are rounded too. By the
triangle inequality | |q - x| - |q̃ - x̃| | <= |q - q̃| + |x - x̃|: so once some k rows' true distances are
known, a row whose coarse distance exceeds the greatest of these by more than that is not among the k nearest.
Distances to all other rows are computed from the features themselves, so the answer is exact.

The coarse product is itself rounded to bfloat16, relative to its size. To lose little for near rows, rows and
queries also hold columns with their squared norms, which make the product -|q̃ - x̃|²: zero for equal vectors.
Cosine distance is half the squared distance of vectors of length one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opsin.base.errors import InputError
from opsin.base.records import as_json, read_json

Take = Callable[[Tensor], Tensor]  # row numbers -> these rows, unrounded
ALIGNMENT = 32  # columns that the matrix units of CPUs process at once
GROUP = 64  # rows: at first only the nearest row of each group is considered
QUERIES = 64  # searched at once
ROUNDING = 2.0**-8  # relative error of bfloat16
SLACK = 4e-5  # relative error of squared norms held as two bfloat16, and of sums in float32
FAR = torch.finfo(torch.bfloat16).max / 4  # the squared norm given to rows that hold NaN or infinities
ROWS, FACTS = "rows.bf16", "facts.json"
EXTRA = 4  # columns: the squared norm as two summands, and two ones that multiply the query's norm


@dataclass(frozen=True)
class Nearest:
    """Row numbers and distances, nearest first; -1 and infinity where there are fewer than k rows.

    Vectors that hold NaN or infinities have no neighbours.
    """

    rows: Int[Tensor, "n k"]
    distances: Float[Tensor, "n k"]


@dataclass(frozen=True)
class CoarseFacts:
    """Metadata of the rounded rows: how many there are, and the greatest |x - x̃| and |x̃|²."""

    count: int
    width: int
    columns: int
    error: float
    norm: float


class Coarse:
    """The rounded rows of a matrix, in a file: (n, width + EXTRA, aligned) bfloat16.

    Raises `InputError` if the file is missing or has the wrong length.
    """

    def __init__(self, place: Path) -> None:
        facts = read_json(place / FACTS, CoarseFacts)
        self.count, self.width, self.columns = facts.count, facts.width, facts.columns
        self.error, self.norm = facts.error, facts.norm
        self.padded = -(-self.count // GROUP) * GROUP
        numbers, rows_file = self.padded * self.columns, place / ROWS
        try:
            length = rows_file.stat().st_size
        except OSError as error:
            raise InputError(f"{rows_file} cannot be read: {error.strerror}") from error
        if length != (
            expected := numbers * torch.bfloat16.itemsize
        ):  # reading beyond the end kills the process
            raise InputError(f"{rows_file} is damaged: it has {length} bytes, not {expected}")
        self.rows = torch.from_file(str(rows_file), shared=False, size=numbers, dtype=torch.bfloat16).view(
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
                finite = rounded[:, width] < FAR
                kept_rows = rounded[finite, :width].double()
                if len(kept_rows):
                    error = max(error, float((part[finite].double() - kept_rows).norm(dim=1).max()))
                    norm = max(norm, float(kept_rows.square().sum(1).max()))
                count += len(part)
                file.write(rounded.view(torch.int16).numpy().data)
            filler = torch.zeros((-count % GROUP, columns), dtype=torch.bfloat16)
            filler[:, width] = 4 * FAR  # rows that only fill the last group are farthest from all queries
            file.write(filler.view(torch.int16).numpy().data)
        facts = CoarseFacts(count, width, columns, error, norm)
        (place / FACTS).write_text(as_json(asdict(facts)), "utf-8")

    def nearest(
        self,
        queries: Float[Tensor, "q d"],
        k: int,
        take: Take,
    ) -> Nearest:
        """The k rows of least Euclidean distance per query; `take` returns unrounded rows."""
        parts = [self._nearest(batch, k, take) for batch in queries.split(QUERIES)]
        return Nearest(
            torch.cat([part.rows for part in parts]), torch.cat([part.distances for part in parts])
        )

    def _nearest(
        self,
        queries: Float[Tensor, "q d"],
        k: int,
        take: Take,
    ) -> Nearest:
        count = min(k, self.count)
        rounded = _rounded(queries, self.columns, query=True)
        scores = rounded @ self.rows.T  # (q, rows): -|q̃ - x̃|²
        group_scores = scores.view(len(queries), -1, GROUP).amax(2)  # (q, groups)
        query_errors = (queries.double() - rounded[:, : self.width].double() / 2).norm(dim=1)  # |q - q̃|
        groups = min(count, group_scores.shape[1])
        top_groups = group_scores.topk(groups, 1).indices  # the best `count` groups hold `count` near rows
        rows = []
        for row_scores, group_indices in zip(scores, top_groups, strict=True):
            picked = _of_groups(row_scores, group_indices).float().topk(count).indices
            rows.append(_row_numbers(group_indices, picked))
        # `count` rows are at least as near as this
        reach = torch.stack([distances.max() for distances in _distances(queries, rows, take)])
        limits = (reach + query_errors + self.error).square()
        limits += SLACK * (self.norm + queries.double().square().sum(1))
        limits = (limits / (1 - ROUNDING)).nan_to_num(nan=torch.inf, posinf=torch.inf)
        rows = []
        for row_scores, best_of_groups, limit in zip(scores, group_scores, limits, strict=True):
            near_groups = (best_of_groups.float() >= -limit).nonzero().flatten()
            inside = (_of_groups(row_scores, near_groups).float() >= -limit).nonzero().flatten()
            candidates = _row_numbers(near_groups, inside)
            rows.append(candidates[candidates < self.count])
        exact = _distances(queries, rows, take)
        # equal distances: the lower row number first
        orders = [distances.sort(stable=True).indices[:count] for distances in exact]
        nearest = torch.stack([candidates[order] for candidates, order in zip(rows, orders, strict=True)])
        distances = torch.stack([values[order] for values, order in zip(exact, orders, strict=True)])
        nearest = nearest.where(distances.isfinite(), -1)
        missing = (0, k - count)
        return Nearest(
            torch.nn.functional.pad(nearest, missing, value=-1),
            torch.nn.functional.pad(distances, missing, value=torch.inf),
        )


def _of_groups(scores: Float[Tensor, " rows"], groups: Int[Tensor, " g"]) -> Float[Tensor, " members"]:
    """The scores of the rows of some groups."""
    return scores.view(-1, GROUP)[groups].flatten()


def _row_numbers(groups: Int[Tensor, " g"], members: Int[Tensor, " m"]) -> Int[Tensor, " m"]:
    """The row numbers of members, which are counted within the concatenated groups."""
    return groups[members // GROUP] * GROUP + members % GROUP


def _distances(
    queries: Float[Tensor, "q d"], rows: Sequence[Int[Tensor, " _"]], take: Take
) -> list[Float[Tensor, " _"]]:
    """The distances of each query to its rows, which are all read at once."""
    needed = torch.cat(list(rows)).unique()
    values = take(needed).double()
    return [
        (values[torch.searchsorted(needed, query_rows)] - query)
        .square()
        .sum(1)
        .sqrt()
        .nan_to_num(nan=torch.inf, posinf=torch.inf)
        for query, query_rows in zip(queries.double(), rows, strict=True)
    ]


def _rounded(values: Float[Tensor, "m d"], columns: int, *, query: bool) -> Float[Tensor, "m columns"]:
    """Rows (x̃, s, s', 1, 1) or queries (2 q̃, -1, -1, -s, -s'), where s + s' is the squared norm."""
    rounded = torch.zeros(len(values), columns, dtype=torch.bfloat16)
    width = values.shape[1]
    coarse = values.to(torch.bfloat16)
    squared = coarse.float().square().sum(1)
    norm = squared.to(torch.bfloat16)
    finite = (norm < FAR)[:, None]
    norms = torch.stack([norm, (squared - norm.float()).to(torch.bfloat16)], 1)
    norms, coarse = norms.where(finite, norms.new_tensor([FAR, 0])), coarse.where(finite, 0)
    ones = torch.ones_like(norms)
    rounded[:, :width] = 2 * coarse if query else coarse
    rounded[:, width : width + EXTRA] = torch.cat([-ones, -norms] if query else [norms, ones], 1)
    return rounded
