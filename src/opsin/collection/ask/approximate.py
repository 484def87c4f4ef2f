"""Nearest vectors by an index of Lance's: near, but not always the nearest."""

from pathlib import Path
from typing import Literal

import lance
import torch
from jaxtyping import Float
from torch import Tensor

from opsin.collection.ask.coarse import Nearest
from opsin.collection.store.about import CollectionError
from opsin.collection.store.store import Collection
from opsin.collection.store.tables import IMAGES, feature_column

Metric = Literal["cosine", "euclidean"]
LEAST_INDEXED = 4096  # rows; fewer are searched faster without an index
PROBES, REFINED = 32, 16  # lists of the index that are looked through; candidates for one answer
LANCE_METRICS = {"cosine": "cosine", "euclidean": "L2"}


def indexed(
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
