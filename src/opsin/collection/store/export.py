"""A collection as files for other programs: Parquet, CSV or NumPy arrays; `docs/export.md` lists the columns.

Text in a CSV may have been chosen by somebody else, and a spreadsheet runs a cell that begins like a formula:
such cells begin with an apostrophe instead. Parquet and NumPy files hold every text as it is.
"""

import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pyarrow import csv, parquet

from opsin.base.errors import InputError, OutOfMemoryError
from opsin.base.folders import storing
from opsin.base.replacing import replacing
from opsin.collection.store.store import Collection
from opsin.collection.store.tables import TOP_CLASSES, feature_column, matrix
from opsin.collection.store.tally import NONE
from opsin.collection.store.truth import truth

SUFFIXES = (".parquet", ".csv", ".npz")
TALLIES = "-tallies"  # in the name of the second file
FEATURES = "features/"  # before a layer's name
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # a cell that begins so may be a formula
RANKS = range(1, TOP_CLASSES + 1)
IMAGE = pa.schema(
    [
        ("path", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("label", pa.string()),
        ("label_class", pa.int32()),
        ("label_name", pa.string()),
        *((f"class_{rank}", pa.int32()) for rank in RANKS),
        *((f"class_name_{rank}", pa.string()) for rank in RANKS),
        *((f"probability_{rank}", pa.float32()) for rank in RANKS),
    ]
)
TALLY = pa.schema(
    [
        ("layer", pa.string()),
        ("channel", pa.int32()),
        ("mean", pa.float64()),
        ("deviation", pa.float64()),
        ("sparsity", pa.float64()),
        ("rank", pa.int32()),
        ("value", pa.float32()),
        ("path", pa.string()),
        ("row", pa.int32()),
        ("column", pa.int32()),
    ]
)
MOMENTS = ("mean", "deviation", "sparsity")


def export(collection: Collection, path: str | Path, *, overwrite: bool = False) -> list[Path]:
    """Write a collection into files, as `Collection.export` says, and return their paths."""
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in SUFFIXES:
        given = f"not in {target.suffix!r}" if target.suffix else "and has no suffix"
        raise InputError(f"{str(path)!r} must end in one of {', '.join(SUFFIXES)}, {given}")
    beside = target.with_name(f"{target.stem}{TALLIES}{target.suffix}")
    targets = [target] if suffix == ".npz" else [target, beside]
    collection = collection.pinned()
    with replacing(targets, overwrite=overwrite) as fresh, storing():
        if suffix == ".npz":
            _write_arrays(collection, fresh[0])
        else:
            write = _write_parquet if suffix == ".parquet" else _write_csv
            write(fresh[0], _images(collection))
            write(fresh[1], _tallies(collection))
    return targets


def _images(collection: Collection) -> Iterator[pa.Table]:
    """One row per image, a few thousand rows at a time; at least one table, which may be empty."""
    layers = collection.about.layers
    columns = [feature_column(index) for index in range(len(layers))]
    fields = [(f"{FEATURES}{layer.name}", pa.list_(pa.float32(), layer.channels)) for layer in layers]
    schema = pa.schema([*IMAGE, *(pa.field(*field) for field in fields)])
    labels = collection.labels()
    class_of = cache(lambda label: truth(label, collection.about.labels or ()))
    yield schema.empty_table()
    stored = ("id", "path", "width", "height", "sha256", "classes", "probabilities", *columns)
    for batch in collection.batches(stored):
        row_labels = [labels.get(id) for id in batch.column("id").to_pylist()]
        classes = [None if label is None else class_of(label) for label in row_labels]
        values = {
            "path": _paths(batch.column("path")),
            **{name: batch.column(name) for name in ("width", "height", "sha256")},
            "label": row_labels,
            "label_class": classes,
            "label_name": [None if index is None else collection.label(index) for index in classes],
            **_predictions(collection, batch),
            **{name: batch.column(column) for (name, _), column in zip(fields, columns, strict=True)},
        }
        yield pa.table([_array(values[field.name], field.type) for field in schema], schema=schema)


def _array(values: object, type_: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, type_)


def _paths(column: pa.Array) -> list[str]:
    """Paths as readable text: bytes that are not UTF-8 are escaped."""
    return [os.fsdecode(path).encode("utf-8", "backslashreplace").decode() for path in column.to_pylist()]


def _predictions(collection: Collection, batch: pa.RecordBatch) -> dict[str, list[object]]:
    """The most probable classes, a column for each rank; an image may have fewer."""
    classes, probabilities = (batch.column(name).to_pylist() for name in ("classes", "probabilities"))
    values: dict[str, list[object]] = {}
    for rank in RANKS:
        of_rank = [listed[rank - 1] if len(listed) >= rank else None for listed in classes]
        values[f"class_{rank}"] = of_rank
        values[f"class_name_{rank}"] = [None if i is None else collection.label(i) for i in of_rank]
        values[f"probability_{rank}"] = [p[rank - 1] if len(p) >= rank else None for p in probabilities]
    return values


def _tallies(collection: Collection) -> Iterator[pa.Table]:
    """One row per layer, channel and rank; a channel without places has one row, without a rank."""
    yield TALLY.empty_table()
    paths: dict[int, str] = {}
    for batch in collection.batches(["id", "path"]):
        paths |= zip(batch.column("id").to_pylist(), _paths(batch.column("path")), strict=True)
    for layer in collection.about.layers:
        tally = collection.tally(layer.name)
        rows = []
        for channel in range(layer.channels):
            moments = {name: float(getattr(tally, name)[channel]) for name in MOMENTS}
            about = {"layer": layer.name, "channel": channel, **moments}
            lists = (lists[channel].tolist() for lists in (tally.values, tally.ids, tally.places))
            places = [
                {"value": value, "path": paths[id], "row": place // layer.extent[1]}
                | {"column": place % layer.extent[1], "rank": rank}
                for rank, (value, id, place) in enumerate(zip(*lists, strict=True), 1)
                if id != NONE
            ]
            rows += [about | place for place in places or [{}]]
        yield pa.Table.from_pylist(rows, TALLY)


def _write_parquet(path: Path, tables: Iterable[pa.Table]) -> None:
    tables = iter(tables)
    first = next(tables)
    with parquet.ParquetWriter(path, first.schema) as writer:
        for table in tables:
            writer.write_table(table)


def _write_csv(path: Path, tables: Iterable[pa.Table]) -> None:
    tables = map(_flat, tables)
    first = next(tables)
    with csv.CSVWriter(path, first.schema) as writer:
        for table in tables:
            writer.write_table(table)


def _flat(table: pa.Table) -> pa.Table:
    """A table whose cells are numbers and harmless text: features have a column for each channel."""
    columns: dict[str, pa.Array] = {}
    for field in table.schema:
        values = table.column(field.name).combine_chunks()
        if pa.types.is_fixed_size_list(field.type):
            features = matrix(values, field.type.list_size)
            columns |= {f"{field.name}:{i}": pa.array(channel) for i, channel in enumerate(features.T)}
        elif pa.types.is_string(field.type):
            columns[field.name] = pa.array(map(_harmless, values.to_pylist()), pa.string())
        else:
            columns[field.name] = values
    return pa.table(columns)


def _harmless(text: str | None) -> str | None:
    return f"'{text}" if text is not None and text.startswith(FORMULA) else text


def _write_arrays(collection: Collection, path: Path) -> None:
    """Every column as an array of numbers or of text, so that no object has to be unpickled."""
    try:
        table = pa.concat_tables(_images(collection))
        arrays = {name: _numbers(table.column(name)) for name in table.column_names}
        ids = collection.ids()
        for layer in collection.about.layers:
            tally = collection.tally(layer.name)
            is_filled = tally.ids != NONE
            rows = np.full(tally.ids.shape, NONE)
            rows[is_filled] = ids.argsort()[np.searchsorted(np.sort(ids), tally.ids[is_filled].numpy())]
            arrays |= {f"tallies/{layer.name}/{name}": getattr(tally, name).numpy() for name in MOMENTS}
            arrays |= {
                f"tallies/{layer.name}/value": tally.values.where(is_filled, torch.nan).numpy(),
                f"tallies/{layer.name}/image": rows,
                f"tallies/{layer.name}/row": tally.places.div(layer.extent[1], rounding_mode="floor").numpy(),
                f"tallies/{layer.name}/column": tally.places.where(
                    ~is_filled, tally.places % layer.extent[1]
                ).numpy(),
            }
        with path.open("wb") as file:
            np.savez_compressed(file, **cast("Any", arrays))
    except MemoryError as error:
        message = f"{collection.folder} does not fit into memory: export it as .parquet"
        raise OutOfMemoryError(message) from error


def _numbers(column: pa.ChunkedArray) -> NDArray[np.generic] | Float[np.ndarray, "n c"]:
    """A column as an array; for missing values text is empty, integers are -1 and probabilities NaN."""
    values = column.combine_chunks()
    if pa.types.is_fixed_size_list(column.type):
        return matrix(values, column.type.list_size)
    if pa.types.is_string(column.type):
        return np.array([text or "" for text in values.to_pylist()], np.str_)
    missing = np.nan if pa.types.is_floating(column.type) else NONE
    return np.asarray(values.fill_null(missing).to_numpy(zero_copy_only=False))
