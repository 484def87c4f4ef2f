"""Nearest vectors by a Lance index: approximate, so some of the nearest may be missing."""

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
PROBES, REFINED = 32, 16  # lists of the index that are searched; candidates per answer
LANCE_METRICS = {"cosine": "cosine", "euclidean": "L2"}


def indexed(
    collection: Collection, queries: Float[Tensor, "q d"], k: int, layer: int, metric: Metric
) -> Nearest:
    """The answer of Lance's index, which is built first if the column has none yet."""
    column, ids = feature_column(layer), collection.ids()
    id_order = ids.argsort()
    rows, distances = [], []
    with collection.reading(IMAGES) as table:
        assert table is not None
        _build_index(collection.folder, table, column, metric)
        for query in queries:
            search = {"column": column, "q": query.numpy(), "k": k, "metric": LANCE_METRICS[metric]}
            neighbours = table.to_table(
                columns=["id", "_distance"], nearest={**search, "nprobes": PROBES, "refine_factor": REFINED}
            )
            row_indices = id_order[ids.searchsorted(neighbours["id"].to_numpy(), sorter=id_order)]
            from_query = torch.tensor(neighbours["_distance"].to_numpy(), dtype=torch.float64)
            missing = (0, k - len(row_indices))
            rows.append(torch.nn.functional.pad(torch.tensor(row_indices), missing, value=-1))
            distances.append(torch.nn.functional.pad(from_query, missing, value=torch.inf))
    from_queries = torch.stack(distances)
    return Nearest(
        torch.stack(rows), from_queries if metric == "cosine" else from_queries.clamp(min=0).sqrt()
    )


def _build_index(folder: Path, table: lance.LanceDataset, column: str, metric: Metric) -> None:
    """Build the index of this metric, unless it exists or the column is too short to need one."""
    name, count = f"{column}_{metric}", table.count_rows()
    known = {index.name for index in table.describe_indices()}
    if count < LEAST_INDEXED or name in known:
        return
    width = table.schema.field(column).type.list_size
    try:
        for other in known & {f"{column}_{other}" for other in LANCE_METRICS}:
            table.drop_index(other)  # Lance uses only one index per column
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
