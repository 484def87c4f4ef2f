"""The nearest vectors, exactly: a coarse matrix finds candidates, their true distances decide.

Rows x lie rounded to bfloat16, as x̃, in a memory-mapped file, and a query q is rounded likewise. By the
triangle inequality | |q - x| - |q̃ - x̃| | <= |q - q̃| + |x - x̃|: so once some k rows' true distances are
known, a row whose coarse distance exceeds the greatest of these by more than that is not among the k nearest.
All others are computed from the features themselves. The answer is exact, not likely.

The coarse product is itself rounded to bfloat16, relative to its size. So that little is lost near the top,
both hold columns with their squared norms, which make it -|q̃ - x̃|²: zero for equal vectors. Cosine
distance is half the squared distance of vectors of length one.

The file lies in the user's own cache directory and never in the collection, which may come from somebody
else: a wrong matrix would give wrong neighbours without a word. It is kept under the name of the collection's
folder and of its data files with their sizes and times, of which one (ctime) cannot be set. When these change
it is made anew, and the old one is deleted.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Literal, get_args

import lance
import psutil
import torch
from jaxtyping import Float, Int
from platformdirs import user_cache_path
from torch import Tensor

from opsin.base.errors import InputError, unknown
from opsin.base.job import CAUTION, note
from opsin.base.records import as_json, read_json
from opsin.collection.store.about import CollectionError
from opsin.collection.store.store import Collection
from opsin.collection.store.tables import IMAGES, feature_column, matrix

Metric = Literal["cosine", "euclidean"]
Take = Callable[[Tensor], Tensor]  # row numbers -> these rows, as they are
ALIGNMENT = 32  # columns: what the matrix units of CPUs take at once
GROUP = 64  # rows of which first the nearest alone is looked at
QUERIES = 64  # at once
MAPPED = 4  # coarse matrices that are kept mapped into memory
ROUNDING = 2.0**-8  # of bfloat16, relative
SLACK = 4e-5  # of squared norms held as two bfloat16 and of sums in float32, relative to the norms
FREE_SHARE = 0.8  # of the free memory that a coarse matrix may take
LEAST_INDEXED = 4096  # rows; fewer are searched faster without an index
PROBES, REFINED = 32, 16  # lists of the index that are looked through; candidates for one answer
LANCE_METRICS = {"cosine": "cosine", "euclidean": "L2"}
FAR = torch.finfo(torch.bfloat16).max / 4  # the squared norm given to what holds NaN or infinities
ROWS, FACTS, WHERE = "rows.bf16", "facts.json", "folder.txt"
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


def nearest(
    collection: Collection,
    queries: Float[Tensor, "q d"],
    k: int,
    *,
    layer: str | None = None,
    metric: Metric = "cosine",
    index: bool = False,
) -> Nearest:
    """The images of a collection whose features are nearest, by row.

    Cosine distance is 1 - cos (of zero and anything else 1), Euclidean distance |q - x|. The first search of
    a collection rounds its features into the user's cache directory; where that would not fit into the free
    memory, or with `index`, it builds an index of Lance's instead, whose answers are near but not always the
    nearest: a note says so.
    """
    if metric not in get_args(Metric):
        raise unknown("metric", metric, get_args(Metric))
    collection = collection.pinned()
    number = collection.layer(layer)
    width = collection.about.layers[number].channels
    if queries.shape[1] != width:
        raise InputError(f"features of {width} numbers are searched for, not of {queries.shape[1]}")
    if not (count := len(collection)):
        raise InputError(f"{collection.folder} holds no images yet")

    if index or 2 * count * width > FREE_SHARE * _free_memory():
        note(f"{CAUTION}found with an approximate index: some nearer images may be missing")
        return _indexed(collection, queries.float(), k, number, metric)

    def shaped(values: Tensor) -> Tensor:
        return directions(values) if metric == "cosine" else values

    def take(rows: Int[Tensor, " m"]) -> Tensor:
        return shaped(torch.from_numpy(collection.features(layer, rows.tolist())))

    place = _kept(collection, f"{feature_column(number)}-{metric}")
    try:
        coarse = _mapped(place)
    except InputError:  # it has not been made yet, or only in part
        parts = (
            shaped(torch.from_numpy(matrix(batch.column(0), width)))
            for batch in collection.batches([feature_column(number)])
        )
        _make(place, parts, shaped(queries).shape[1], collection.folder)
        coarse = _mapped(place)
    found = coarse.nearest(shaped(queries.float()), k, take)
    return Nearest(found.rows, found.distances.square() / 2) if metric == "cosine" else found


def _kept(collection: Collection, name: str) -> Path:
    """Where the rounded features of a collection are kept, as it is now."""
    place = collection.folder.resolve()
    with collection.reading(IMAGES) as table:
        assert table is not None
        told = [str(table.version)]
        for path in sorted(file.path for part in table.get_fragments() for file in part.data_files()):
            about = (place / IMAGES / "data" / path).stat()
            told.append(f"{path} {about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}")
    folder, state = (sha256(os.fsencode(text)).hexdigest()[:32] for text in (str(place), "\n".join(told)))
    return user_cache_path("opsin") / "collections" / folder / state / name


def _make(place: Path, parts: Iterator[Float[Tensor, "m d"]], width: int, folder: Path) -> None:
    """Round the features of the collection in `folder` into the cache."""
    state = place.parent
    try:
        state.mkdir(parents=True, exist_ok=True)
        (state.parent / WHERE).write_bytes(os.fsencode(folder.resolve()))
        shutil.rmtree(place, ignore_errors=True)  # a damaged one
        with tempfile.TemporaryDirectory(dir=state, ignore_cleanup_errors=True) as fresh:
            Coarse.write(Path(fresh), parts, width)
            Path(fresh).rename(place)
    except OSError as error:
        if not place.is_dir():  # nor has another search made it meanwhile
            raise InputError(f"cannot write to {state}: {error.strerror or error}") from error
    _delete_stale(state)


def _delete_stale(state: Path) -> None:
    """Delete what the cache holds of earlier states of this collection, and of collections that are gone."""
    stale = [other for other in state.parent.iterdir() if other.is_dir() and other != state]
    for where in state.parent.parent.glob(f"*/{WHERE}"):
        if not os.path.lexists(os.fsdecode(where.read_bytes())):
            stale.append(where.parent)
    for folder in stale:
        shutil.rmtree(folder, ignore_errors=True)


@lru_cache(MAPPED)
def _mapped(place: Path) -> Coarse:
    """A coarse matrix, kept mapped from one search to the next."""
    return Coarse(place)


def _indexed(
    collection: Collection, queries: Float[Tensor, "q d"], k: int, layer: int, metric: Metric
) -> Nearest:
    """The answer of Lance's index, which is built where the features that there are now have none."""
    column, order = feature_column(layer), collection.ids()
    by_id = order.argsort()
    rows, distances = [], []
    with collection.reading(IMAGES) as table:
        assert table is not None
        _build_index(collection.folder, table, column, metric)
        for query in queries:
            asked = {"column": column, "q": query.numpy(), "k": k, "metric": LANCE_METRICS[metric]}
            found = table.to_table(
                columns=["id", "_distance"], nearest={**asked, "nprobes": PROBES, "refine_factor": REFINED}
            )
            places = by_id[order.searchsorted(found["id"].to_numpy(), sorter=by_id)]
            away = torch.tensor(found["_distance"].to_numpy(), dtype=torch.float64)
            missing = (0, k - len(places))
            rows.append(torch.nn.functional.pad(torch.tensor(places), missing, value=-1))
            distances.append(torch.nn.functional.pad(away, missing, value=torch.inf))
    away = torch.stack(distances)
    return Nearest(torch.stack(rows), away if metric == "cosine" else away.clamp(min=0).sqrt())


def _build_index(folder: Path, table: lance.LanceDataset, column: str, metric: Metric) -> None:
    """Give a column the index that is asked for, where it has none and is long enough to need one."""
    name, count = f"{column}_{metric}", table.count_rows()
    known = {index.name for index in table.describe_indices()}
    if count < LEAST_INDEXED or name in known:
        return
    width = table.schema.field(column).type.list_size
    try:
        for other in known & {f"{column}_{other}" for other in LANCE_METRICS}:
            table.drop_index(other)  # Lance uses but one index of a column
        parts = next(d for d in (16, 8, 4, 2, 1) if width % d == 0)
        table.create_index(
            column,
            "IVF_PQ",
            name=name,
            metric=LANCE_METRICS[metric],
            num_partitions=int(count**0.5),
            num_sub_vectors=width // parts,
        )
    except OSError as error:
        raise CollectionError(f"cannot write an index into {folder}: {error}") from error


def _free_memory() -> int:
    return int(psutil.virtual_memory().available)


def directions(values: Float[Tensor, "n d"]) -> Float[Tensor, "n d+1"]:
    """Vectors of length one; zero has a direction of its own, at right angles to all others."""
    none = ~values.any(1, keepdim=True)
    tiny = torch.finfo(torch.float32).tiny
    return torch.cat([torch.nn.functional.normalize(values.float(), dim=1, eps=tiny), none.float()], 1)


def _of_groups(scores: Float[Tensor, " rows"], groups: Int[Tensor, " g"]) -> Float[Tensor, " members"]:
    """The scores of the rows of some groups."""
    return scores.view(-1, GROUP)[groups].flatten()


def _distances(
    queries: Float[Tensor, "q d"], rows: Sequence[Int[Tensor, " _"]], take: Take
) -> list[Float[Tensor, " _"]]:
    """Of each query to its rows, which are all taken at once."""
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
