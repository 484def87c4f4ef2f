"""The nearest vectors, exactly: a coarse matrix finds candidates, their true distances decide.

Rows x lie rounded to bfloat16, as x̃, in a memory-mapped file, and a query q is rounded likewise. By the
triangle inequality | |q - x| - |q̃ - x̃| | <= |q - q̃| + |x - x̃|: so once some k rows' true distances are
known, a row whose coarse distance exceeds the greatest of these by more than that is not among the k nearest.
All others are computed from the features themselves. The answer is exact, not likely.

The coarse product is itself rounded to bfloat16, relative to its size. So that little is lost near the top,
both hold columns with their squared norms, which make it -|q̃ - x̃|²: nought for equal vectors. Cosine
distance is half the squared distance of vectors of length one.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opsin.collection.store import BATCH, CACHE, Collection, feature_column, matrix
from opsin.errors import InputError

Metric = Literal["cosine", "euclidean"]
ALIGNMENT = 32  # columns: what the matrix units of CPUs take at once
GROUP = 64  # rows of which first the nearest alone is looked at
QUERIES = 64  # at once
ROUNDING = 2.0**-8  # of bfloat16, relative
SLACK = 4e-5  # of squared norms held as two bfloat16 and of sums in float32, relative to the norms
EXTRA = 4  # columns: the squared norm as the sum of two numbers, and twice a one for the query's


@dataclass(frozen=True)
class Nearest:
    """Nearest first: row numbers and distances; -1 and infinite where there are fewer than k rows."""

    rows: Int[Tensor, "n k"]
    distances: Float[Tensor, "n k"]


class Coarse:
    """The rounded rows of a matrix, in a file: (n, width + EXTRA, aligned) bfloat16."""

    def __init__(self, place: Path) -> None:
        facts = json.loads((place / "facts.json").read_text("utf-8"))
        self.count, self.width, self.columns = facts["count"], facts["width"], facts["columns"]
        self.error, self.norm = facts["error"], facts["norm"]  # the greatest |x - x̃| and |x̃|²
        self.padded = -(-self.count // GROUP) * GROUP
        size = self.padded * self.columns
        file = str(place / "rows.bf16")
        self.rows = torch.from_file(file, shared=False, size=size, dtype=torch.bfloat16).view(
            -1, self.columns
        )

    @staticmethod
    def write(place: Path, parts: Iterator[Float[Tensor, "m d"]], width: int) -> None:
        """Round the rows of a matrix, given part by part, into a new folder."""
        columns = -(-(width + EXTRA) // ALIGNMENT) * ALIGNMENT
        count, error, norm = 0, 0.0, 0.0
        with (place / "rows.bf16").open("wb") as file:
            for part in parts:
                rounded = _rounded(part, columns, query=False)
                near = rounded[:, :width].double()
                error = max(error, float((part.double() - near).norm(dim=1).max()))
                norm = max(norm, float(near.square().sum(1).max()))
                count += len(part)
                file.write(rounded.view(torch.int16).numpy().data)
            far = torch.zeros((-count % GROUP, columns), dtype=torch.bfloat16)
            far[:, width] = torch.finfo(torch.bfloat16).max  # rows that only fill up lie far from all
            file.write(far.view(torch.int16).numpy().data)
        facts = {"count": count, "width": width, "columns": columns, "error": error, "norm": norm}
        (place / "facts.json").write_text(json.dumps(facts), "utf-8")

    def nearest(
        self,
        queries: Float[Tensor, "q d"],
        k: int,
        take: Callable[[Int[Tensor, " m"]], Float[Tensor, "m d"]],
    ) -> Nearest:
        """The rows of the least Euclidean distance; `take` gives rows as they are."""
        parts = [self._nearest(part, k, take) for part in queries.split(QUERIES)]
        return Nearest(torch.cat([one.rows for one in parts]), torch.cat([one.distances for one in parts]))

    def _nearest(
        self,
        queries: Float[Tensor, "q d"],
        k: int,
        take: Callable[[Int[Tensor, " m"]], Float[Tensor, "m d"]],
    ) -> Nearest:
        wanted = min(k, self.count)
        rounded = _rounded(queries, self.columns, query=True)
        scores = rounded @ self.rows.T  # (q, rows): -|q̃ - x̃|²
        best = scores.view(len(queries), -1, GROUP).amax(2)  # (q, groups)
        away = (queries.double() - rounded[:, : self.width].double() / 2).norm(dim=1)  # |q - q̃|
        groups = min(wanted, best.shape[1])
        first = best.topk(groups, 1).indices  # the k nearest coarse groups hold k near rows
        found, distances = [], []
        for index, query in enumerate(queries):
            near = scores[index].view(-1, GROUP)[first[index]]  # (groups, GROUP)
            picked = near.flatten().float().topk(wanted).indices
            rows = (first[index][picked // GROUP] * GROUP + picked % GROUP).unique()
            reach = _distances(query, take(rows)).max()  # k rows lie as near as this
            limit = (reach + away[index] + self.error) ** 2
            limit = (limit + SLACK * (self.norm + float(query.double().square().sum()))) / (1 - ROUNDING)
            open_groups = (best[index].float() >= -limit).nonzero().flatten()
            inside = (scores[index].view(-1, GROUP)[open_groups].float() >= -limit).nonzero()  # (m, 2)
            rows = open_groups[inside[:, 0]] * GROUP + inside[:, 1]
            rows = rows[rows < self.count]
            exact = _distances(query, take(rows))
            order = exact.sort(stable=True).indices[:wanted]  # equal ones in the order of the rows
            found.append(rows[order])
            distances.append(exact[order])
        missing = (0, k - wanted)
        return Nearest(
            torch.nn.functional.pad(torch.stack(found), missing, value=-1),
            torch.nn.functional.pad(torch.stack(distances), missing, value=torch.inf),
        )


def nearest(
    collection: Collection,
    queries: Float[Tensor, "q d"],
    k: int,
    *,
    layer: str | None = None,
    metric: Metric = "cosine",
) -> Nearest:
    """The images of a collection whose features are nearest, by row.

    Cosine distance is 1 - cos, Euclidean distance |q - x|. The first search of a collection rounds its
    features into the cache.
    """
    number = collection.layer(layer)
    width = collection.about.layers[number].channels
    if queries.shape[1] != width:
        raise InputError(f"features of {width} numbers are searched for, not of {queries.shape[1]}")
    table = collection.images
    if table is None:
        raise InputError(f"{collection.folder} holds no images yet")

    def shaped(values: Tensor) -> Tensor:
        return unit(values) if metric == "cosine" else values

    def take(rows: Int[Tensor, " m"]) -> Tensor:
        column = table.take(rows.tolist(), columns=[feature_column(number)])[feature_column(number)]
        return shaped(torch.from_numpy(matrix(column.combine_chunks(), width)))

    place = collection.folder / CACHE / f"{feature_column(number)}-{metric}-{table.version}"
    if not place.is_dir():
        parts = (
            shaped(torch.from_numpy(matrix(batch.column(0), width)))
            for batch in table.to_batches(
                columns=[feature_column(number)], batch_size=BATCH, scan_in_order=True
            )
        )
        place.parent.mkdir(exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=place.parent))
        try:
            Coarse.write(fresh, parts, width)
            fresh.rename(place)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    found = Coarse(place).nearest(shaped(queries.float()), k, take)
    return Nearest(found.rows, found.distances.square() / 2) if metric == "cosine" else found


def unit(values: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Vectors of length one; nought stays nought."""
    return torch.nn.functional.normalize(values.float(), dim=1)


def _distances(query: Float[Tensor, " d"], rows: Float[Tensor, "m d"]) -> Float[Tensor, " m"]:
    return (rows.double() - query.double()).square().sum(1).sqrt()


def _rounded(values: Float[Tensor, "m d"], columns: int, *, query: bool) -> Float[Tensor, "m columns"]:
    """Rows (x̃, s, s', 1, 1) or queries (2 q̃, -1, -1, -s, -s'), where s + s' is the squared norm."""
    wide = torch.zeros(len(values), columns, dtype=torch.bfloat16)
    width = values.shape[1]
    near = values.to(torch.bfloat16)
    squared = near.float().square().sum(1)
    coarse = squared.to(torch.bfloat16)
    norms = torch.stack([coarse, (squared - coarse.float()).to(torch.bfloat16)], 1)
    ones = torch.ones_like(norms)
    wide[:, :width] = 2 * near if query else near
    wide[:, width : width + EXTRA] = torch.cat([-ones, -norms] if query else [norms, ones], 1)
    return wide
