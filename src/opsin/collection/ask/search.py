"""The nearest images of a collection: exactly where a coarse matrix fits into memory, else by an index."""

from typing import get_args

import psutil
import torch
from jaxtyping import Float, Int
from torch import Tensor

from opsin.base.errors import InputError, unknown
from opsin.base.job import CAUTION, note
from opsin.collection.ask.approximate import Metric, indexed
from opsin.collection.ask.cache import kept, make, mapped
from opsin.collection.ask.coarse import Nearest
from opsin.collection.store.store import Collection
from opsin.collection.store.tables import feature_column, matrix

FREE_SHARE = 0.8  # of the free memory that a coarse matrix may take


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
        raise InputError(f"queries must have {width} features, not {queries.shape[1]}")
    if not (count := len(collection)):
        raise InputError(f"{collection.folder} holds no images yet")

    if index or 2 * count * width > FREE_SHARE * _free_memory():
        note(f"{CAUTION}found with an approximate index: some nearer images may be missing")
        return indexed(collection, queries.float(), k, number, metric)

    def shaped(values: Tensor) -> Tensor:
        return directions(values) if metric == "cosine" else values

    def take(rows: Int[Tensor, " m"]) -> Tensor:
        return shaped(torch.from_numpy(collection.features(layer, rows.tolist())))

    place = kept(collection, f"{feature_column(number)}-{metric}")
    try:
        coarse = mapped(place)
    except InputError:  # it has not been made yet, or only in part
        parts = (
            shaped(torch.from_numpy(matrix(batch.column(0), width)))
            for batch in collection.batches([feature_column(number)])
        )
        make(place, parts, shaped(queries).shape[1], collection.folder)
        coarse = mapped(place)
    found = coarse.nearest(shaped(queries.float()), k, take)
    return Nearest(found.rows, found.distances.square() / 2) if metric == "cosine" else found


def _free_memory() -> int:
    return int(psutil.virtual_memory().available)


def directions(values: Float[Tensor, "n d"]) -> Float[Tensor, "n d+1"]:
    """Vectors of length one; zero has a direction of its own, at right angles to all others."""
    none = ~values.any(1, keepdim=True)
    tiny = torch.finfo(torch.float32).tiny
    return torch.cat([torch.nn.functional.normalize(values.float(), dim=1, eps=tiny), none.float()], 1)
