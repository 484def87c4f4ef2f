"""The nearest images of a collection: exact if a coarse matrix fits into memory, else by an index."""

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

FREE_SHARE = 0.8  # share of the free memory that a coarse matrix may take


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

    Cosine distance is 1 - cos (between zero and any other vector it is 1), Euclidean distance |q - x|. The
    first search of a collection caches its rounded features in the user's cache directory. If they would not
    fit into the free memory, or with `index`, it builds a Lance index instead, whose answers are approximate;
    a note says so.
    """
    if metric not in get_args(Metric):
        raise unknown("metric", metric, get_args(Metric))
    collection = collection.pinned()
    number = collection.layer(layer)
    width = collection.about.layers[number].channels
    if queries.shape[1] != width:
        raise InputError(f"queries of {queries.shape[1]} numbers: the features of this layer have {width}")
    if not (count := len(collection)):
        raise InputError(f"{collection.folder} holds no images yet: scan photos into it first")

    if index or 2 * count * width > FREE_SHARE * _free_memory():
        note(f"{CAUTION}found with an approximate index: some nearer images may be missing")
        return indexed(collection, queries.float(), k, number, metric)

    def prepared(values: Tensor) -> Tensor:
        return directions(values) if metric == "cosine" else values

    def take(rows: Int[Tensor, " m"]) -> Tensor:
        return prepared(torch.from_numpy(collection.features(layer, rows.tolist())))

    path = kept(collection, f"{feature_column(number)}-{metric}")
    try:
        coarse = mapped(path)
    except InputError:  # it does not exist yet, or only in part
        parts = (
            prepared(torch.from_numpy(matrix(batch.column(0), width)))
            for batch in collection.batches([feature_column(number)])
        )
        make(path, parts, prepared(queries).shape[1], collection.folder)
        coarse = mapped(path)
    neighbours = coarse.nearest(prepared(queries.float()), k, take)
    return Nearest(neighbours.rows, neighbours.distances.square() / 2) if metric == "cosine" else neighbours


def _free_memory() -> int:
    return int(psutil.virtual_memory().available)


def directions(values: Float[Tensor, "n d"]) -> Float[Tensor, "n d+1"]:
    """Vectors of length one; zero has a direction of its own, at right angles to all others."""
    is_zero = ~values.any(1, keepdim=True)
    tiny = torch.finfo(torch.float32).tiny
    return torch.cat([torch.nn.functional.normalize(values.float(), dim=1, eps=tiny), is_zero.float()], 1)
