"""The tables of a collection; their contents are untrusted and checked when read."""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float
from PIL import Image

from opsin.base.errors import InputError
from opsin.collection.files.decoding import THUMBNAIL
from opsin.collection.files.source import refuse_outside
from opsin.collection.store.about import About, LayerAbout
from opsin.collection.store.tally import NONE, Tally

IMAGES, TALLIES, LABELS = "images.lance", "tallies.lance", "labels.lance"
TOP_CLASSES = 5
BATCH = 4096  # rows read at once
PANIC = "PanicException"  # of Rust; the class cannot be imported
ROW = (
    pa.field("id", pa.int64()),
    pa.field("path", pa.binary()),  # as in the file system, which need not be UTF-8
    pa.field("sha256", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("thumbnail", pa.binary()),
    pa.field("classes", pa.list_(pa.int32())),
    pa.field("probabilities", pa.list_(pa.float32())),
)
LABEL_SCHEMA = pa.schema([("id", pa.int64()), ("label", pa.string())])
LISTED, SUMMED = ("values", "ids", "places"), ("sums", "squares", "active")
TALLY_SCHEMA = pa.schema(
    [("chunk", pa.int64()), ("layer", pa.int32()), ("count", pa.int64()), ("images", pa.int64())]
    + [("values", pa.list_(pa.float32())), ("ids", pa.list_(pa.int64())), ("places", pa.list_(pa.int32()))]
    + [(name, pa.list_(pa.float64())) for name in SUMMED]
)


@dataclass(frozen=True)
class Row:
    """One image of a collection."""

    id: int
    path: str
    sha256: str
    width: int
    height: int
    thumbnail: bytes
    classes: tuple[int, ...]
    probabilities: tuple[float, ...]
    label: str | None

    @property
    def name(self) -> str:
        """The path as readable text: bytes that are not UTF-8 are escaped."""
        return self.path.encode("utf-8", "backslashreplace").decode()


def schema(channels: Sequence[int]) -> pa.Schema:
    """The columns of the table of images, for layers with these numbers of channels."""
    features = [pa.field(feature_column(i), pa.list_(pa.float32(), c)) for i, c in enumerate(channels)]
    return pa.schema([*ROW, pa.field("version", pa.int64()), pa.field("chunk", pa.int64()), *features])


def schemas(about: About) -> Mapping[str, pa.Schema]:
    """The columns of each table of a collection."""
    images = schema([layer.channels for layer in about.layers])
    return {IMAGES: images, TALLIES: TALLY_SCHEMA, LABELS: LABEL_SCHEMA}


def feature_column(layer: int) -> str:
    """The column of a layer's features."""
    return f"features_{layer}"


def matrix(column: pa.Array, width: int) -> Float[np.ndarray, "n c"]:
    """A column of vectors as an array."""
    return np.array(column.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(-1, width)


def is_damage(error: BaseException) -> bool:
    """Whether an error may come from damaged data: Lance may raise anything, even panics of its Rust code."""
    return isinstance(error, Exception) or type(error).__name__ == PANIC


# The functions below raise `InputError` on data that no scan writes.


def check_columns(found: pa.Schema, wanted: pa.Schema) -> None:
    """Check that a table has the columns that the record of the collection implies."""
    for field in wanted:
        index = found.get_field_index(field.name)
        if index < 0:
            raise InputError(f"no column {field.name!r}")
        if found.field(index).type != field.type:
            raise InputError(f"column {field.name!r} is of {found.field(index).type}, not {field.type}")


def check_values(data: pa.Table | pa.RecordBatch) -> None:
    """Check that no value is missing or invalid, and that each class has a probability."""
    data.validate(full=True)
    for name in data.column_names:
        column = data.column(name)
        lists = pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)
        if column.null_count or (lists and pc.list_flatten(column).null_count):
            raise InputError(f"values are missing in column {name!r}")
    if {"classes", "probabilities"} <= set(data.column_names):
        lengths = [pc.list_value_length(data.column(name)) for name in ("classes", "probabilities")]
        least = pc.min(pc.list_flatten(data.column("classes"))).as_py()
        if lengths[0] != lengths[1] or (least is not None and least < 0):
            raise InputError("an image has classes without probabilities, or a negative one")


def row(values: Mapping[str, Any], label: str | None) -> Row:
    """One image from the values of the columns `ROW`."""
    path = os.fsdecode(values["path"])
    refuse_outside(path)
    _check_thumbnail(values["thumbnail"])
    lists = {name: tuple(values[name]) for name in ("classes", "probabilities")}
    return Row(**{**values, **lists, "path": path}, label=label)


def _check_thumbnail(data: bytes) -> None:
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as thumbnail:
            if max(thumbnail.size) > THUMBNAIL:
                raise InputError(f"a thumbnail is of {thumbnail.width}x{thumbnail.height} pixels")
    except (OSError, SyntaxError) as error:  # SyntaxError: Pillow's, of a broken header
        raise InputError(f"a thumbnail is not a JPEG: {error}") from error


def tally_table(tallies: Sequence[Tally], chunk: int) -> pa.Table:
    """The rows of a chunk's tallies, one per layer."""
    rows = [
        {"chunk": chunk, "layer": layer_index, "count": tally.count, "images": tally.images}
        | {name: getattr(tally, name).flatten().numpy() for name in (*LISTED, *SUMMED)}
        for layer_index, tally in enumerate(tallies)
    ]
    return pa.Table.from_pylist(rows, TALLY_SCHEMA)


def tally(values: Mapping[str, Any], layer: LayerAbout, top: int) -> Tally:
    """The tally in a row of the table of tallies."""
    lengths = dict.fromkeys(LISTED, layer.channels * top) | dict.fromkeys(SUMMED, layer.channels)
    for name, length in lengths.items():
        if len(values[name]) != length:
            raise InputError(f"a tally of {layer.name} lists {len(values[name])} {name}, not {length}")
    listed = {name: torch.tensor(values[name]).reshape(layer.channels, top) for name in LISTED}
    summed = {name: torch.tensor(values[name], dtype=torch.float64) for name in SUMMED}
    places, positions = listed["places"], layer.extent[0] * layer.extent[1]
    is_filled = listed["ids"] != NONE
    if not ((places >= NONE) & (places < positions) & ((places != NONE) == is_filled)).all():
        raise InputError(f"a tally of {layer.name} lists a place outside its {positions} positions")
    if listed["values"].isnan().any() or min(values["count"], values["images"]) < 0:
        raise InputError(f"a tally of {layer.name} holds NaN or negative counts")
    return Tally(**listed, **summed, count=values["count"], images=values["images"])
