"""A collection on disk: one row per image, one tally per chunk and layer, in Lance tables.

    collection/
      record.json     which network, layers and preprocessing, and where the images are
      images.lance    one row per image: file, size, hash, thumbnail, top-5 classes, features
      tallies.lance   one row per chunk and layer: where every channel fired most, its moments
      labels.lance    the labels, from folders or a CSV
      labels.json     the labels of the CSV, for the next scan; `null` if labels are folder names
      unread.json     the files that the last scan could not read, and why

A chunk is the images of one append. Tallies are written before their images: a tally without images was
left by a scan that was killed, and is ignored.

A collection is untrusted and may be damaged: everything is checked when it is read.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from opsin.base.errors import InputError, shortened, unknown
from opsin.collection.files.source import Source
from opsin.collection.store.about import (
    PREPROCESSING,
    about_model,
    checked,
    read_facts,
)
from opsin.collection.store.stored import Stored
from opsin.collection.store.tables import (
    BATCH,
    IMAGES,
    LABELS,
    ROW,
    TALLIES,
    Row,
    check_values,
    feature_column,
    matrix,
    row,
    schemas,
    tally,
)
from opsin.collection.store.tally import NONE, Tally
from opsin.collection.store.truth import WNID, index_of, truth
from opsin.images.photos import decoded, fitted
from opsin.network.model import Model
from opsin.objectives.parsing import class_named

NAMED, UNREAD = "labels.json", "unread.json"


class Collection(Stored):
    """What a network saw in a folder of images.

    Raises `InputError` if `folder` is not a collection or is damaged.
    """

    def __repr__(self) -> str:
        count = len(self)
        images = f"{count:,} image{'s' * (count != 1)}"
        return f"Collection({str(self.folder)!r}, {images}, {self.about.model['name']})"

    def __len__(self) -> int:
        with self.reading(IMAGES) as images:
            return 0 if images is None else images.count_rows()

    @cached_property
    def source(self) -> Source:
        """Where the files are."""
        return Source(self.about.root)

    def check(self, model: Model) -> None:
        """Raise `InputError`, naming both, unless the collection was made with this model."""
        theirs, ours = self.about.model, about_model(model)
        if theirs["sha256"] != ours["sha256"]:
            networks = [f"{about['name']} (weights {about['sha256'][:12]})" for about in (theirs, ours)]
            raise InputError(f"{self.folder} was scanned with {networks[0]}, not with {networks[1]}")
        pairs = [(name, dict(theirs)[name], dict(ours)[name]) for name in PREPROCESSING]
        if differing := [f"{name} {then}, not {now}" for name, then, now in pairs if then != now]:
            raise InputError(f"{self.folder} was scanned with other preprocessing: {'; '.join(differing)}")

    def label(self, index: int) -> str:
        """The name of a class of the network."""
        labels = self.about.labels
        return labels[index] if labels and index < len(labels) else f"class {index}"

    def named(self, label: str) -> str:
        """A label as text; an index or WordNet number becomes the name of its class."""
        index = truth(label, self.about.labels or ())
        is_number = label.isdecimal() or WNID.fullmatch(label)
        return self.label(index) if is_number and index is not None and self.about.labels else label

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of all rows, a few thousand rows at a time, always in the same order.

        Raises `InputError` with the nearest names if there is no column of one of these names.
        """
        known = schemas(self.about)[IMAGES].names
        if wrong := [name for name in columns if name not in known]:
            raise unknown("column of a collection", wrong[0], known)
        return self._batches(columns)

    def _batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with self.reading(IMAGES) as images:
            if images is None:
                return
            for batch in images.to_batches(columns=list(columns), batch_size=BATCH, scan_in_order=True):
                check_values(batch)
                yield batch

    def column(self, name: str) -> pa.ChunkedArray:
        """One whole column. Raises `InputError` as `batches` does."""
        chunks = [batch.column(name) for batch in self.batches([name])]
        return pa.chunked_array(chunks, schemas(self.about)[IMAGES].field(name).type)

    def ids(self) -> NDArray[np.int64]:
        """Every image's id, in the order of the rows."""
        return np.asarray(self.column("id").to_numpy(), np.int64)

    def features(
        self, layer: str | None = None, places: Sequence[int] | None = None
    ) -> Float[np.ndarray, "n c"]:
        """The pooled features of every image, or of the rows `places`, in the order of the rows."""
        name, width = feature_column(self.layer(layer)), self.about.layers[self.layer(layer)].channels
        if places is not None:
            return matrix(self._taken(places, [name])[name].combine_chunks(), width)
        parts = [matrix(batch.column(name), width) for batch in self.batches([name])]
        return np.concatenate(parts) if parts else np.zeros((0, width), np.float32)

    def rows(self, places: Sequence[int]) -> list[Row]:
        """The images of the rows `places`, without their features."""
        if not len(places):
            return []
        pinned = self.pinned()
        records = pinned._taken(places, [field.name for field in ROW]).to_pylist()
        labels = pinned.labels([values["id"] for values in records])
        with pinned.reading(IMAGES):
            return [row(values, labels.get(values["id"])) for values in records]

    def _taken(self, places: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Some rows, by number. Raises `IndexError` if a row does not exist."""
        with self.reading(IMAGES) as images:
            count = 0 if images is None else images.count_rows()
            if images is not None and all(0 <= place < count for place in places):
                table = images.take(list(map(int, places)), columns=list(columns))
                check_values(table)
                return table
        raise IndexError(f"{self.folder} has the rows 0 to {count - 1}")

    def showing(self, target: str | None = None) -> list[Row]:
        """The images of a class, or those where a channel (`layer:channel`) fires most; without a target all.

        An image is of the class that its label names or, without a label, that the network predicts; if no
        label names a class, predictions decide for all images. Raises `InputError` if there are none.
        """
        pinned = self.pinned()
        if target is None:
            return pinned.rows(range(len(pinned)))
        layer, _, channel = target.rpartition(":")
        if channel.isdecimal() and layer in [about.name for about in self.about.layers]:
            ids_of_channels, number = pinned.tally(layer).ids, index_of(channel)
            if number is None or number >= len(ids_of_channels):
                text = shortened(channel)
                raise InputError(
                    f"layer {layer!r} has the channels 0 to {len(ids_of_channels) - 1}, not {text}"
                )
            ids = ids_of_channels[number].tolist()
            rows_by_id = pinned.with_ids(ids)
            return [rows_by_id[id] for id in ids if id in rows_by_id]
        names = self.about.labels or ()
        index = index_of(target) if target.isdecimal() else class_named(target, names)
        if index is None and layer and channel.isdecimal():
            raise unknown("layer of the collection", layer, [about.name for about in self.about.layers])
        labels = pinned.labels()
        known = {label: truth(label, names) for label in set(labels.values())}
        if all(class_index is None for class_index in known.values()):
            labels = {}  # the folders are not named after classes
        row_indices = []
        for row_index, (id, classes, _) in enumerate(pinned.seen()):
            class_index = known[labels[id]] if id in labels else next(iter(classes), None)
            if index is not None and class_index == index:
                row_indices.append(row_index)
        if not row_indices:
            raise InputError(
                f"{self.folder} holds no image of {target!r}, neither by label nor by prediction"
            )
        return pinned.rows(row_indices)

    def seen(self) -> Iterator[tuple[int, list[int], list[float]]]:
        """Every image's id, its most probable classes and their probabilities, in the order of the rows."""
        for batch in self.batches(["id", "classes", "probabilities"]):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def with_ids(self, ids: Sequence[int]) -> dict[int, Row]:
        """The images of those of these ids that exist, by id."""
        pinned = self.pinned()
        places = np.flatnonzero(np.isin(pinned.ids(), np.asarray(list(ids), np.int64)))
        return {row.id: row for row in pinned.rows(places.tolist())}

    def labels(self, ids: Sequence[int] | None = None) -> dict[int, str]:
        """The labels of these images, or of all, by id; images without a label are left out."""
        with self.reading(LABELS) as table:
            if table is None:
                return {}
            labels = table.to_table(filter=None if ids is None else f"id in ({', '.join(map(str, ids))})")
            check_values(labels)
        return dict(zip(labels["id"].to_pylist(), labels["label"].to_pylist(), strict=True))

    def labelled(self) -> int:
        """How many images have a label."""
        pinned = self.pinned()
        return int(np.isin(list(pinned.labels()), pinned.ids()).sum())

    def tally(self, layer: str | None = None) -> Tally:
        """Where each channel of a layer fires most, and its moments, over all images."""
        number, about = self.layer(layer), self.about.layers[self.layer(layer)]
        joined = Tally.empty(about.channels, self.about.top)
        pinned = self.pinned()
        chunks, ids = pinned.chunks(), pinned.ids()
        with pinned.reading(TALLIES) as table:
            if table is not None:
                for batch in table.to_batches(filter=f"layer = {number}", batch_size=16, scan_in_order=True):
                    check_values(batch)
                    for values in batch.to_pylist():
                        if values["chunk"] in chunks:
                            joined = joined.merged(tally(values, about, self.about.top))
        image_ids = joined.ids[joined.ids != NONE]
        with pinned.reading(IMAGES):  # a scan may have dropped chunks of it before the tallies were opened
            if joined.images != len(ids) or not np.isin(image_ids, ids).all():
                raise InputError(f"the tallies of layer {about.name!r} do not match the images")
        return joined

    def chunks(self) -> set[int]:
        """The chunks that have images."""
        return {
            int(chunk)
            for batch in self.batches(["chunk"])
            for chunk in batch.column("chunk").unique().tolist()
        }

    def photo(self, row: Row, model: Model) -> Float[Tensor, "3 h w"]:
        """An image's file, cropped for the model. Raises `InputError` if it is missing or has changed."""
        return torch.from_numpy(fitted(self.picture(row), model)).permute(2, 0, 1) / 255

    def picture(self, row: Row) -> Image.Image:
        """An image's file, whole. Raises `InputError` if it is missing or has changed."""
        data = self.source.read(row.path)
        if hashlib.sha256(data).hexdigest() != row.sha256:
            raise InputError(f"{row.path} has changed since the scan: scan again")
        return decoded(data, row.path)

    def export(self, path: str | Path, *, overwrite: bool = False) -> list[Path]:
        """Write the collection into files for other programs, and return their paths.

        The suffix chooses the format: `.parquet` and `.csv` hold one row per image, and beside them is a
        second file with the tallies (`NAME-tallies`); `.npz` holds both. `docs/export.md` lists the columns.
        Raises `InputError` on another suffix, and on a file that exists unless `overwrite` is set.
        """
        from opsin.collection.store.export import export  # noqa: PLC0415 (it imports this module)

        return export(self, path, overwrite=overwrite)

    def unread(self) -> dict[str, str]:
        """The files that the last scan could not read, and why."""
        unread: dict[str, str] = checked(
            self.folder, UNREAD, read_facts(self.folder, UNREAD) or {}, dict[str, str]
        )
        return unread

    def named_labels(self) -> dict[str, str] | None:
        """The labels of the CSV that the last scan was given; `None` if it used folder names."""
        named: dict[str, str] | None = checked(
            self.folder, NAMED, read_facts(self.folder, NAMED), dict[str, str] | None
        )
        return named


def opened(collection: "Collection | str | Path") -> Collection:
    """A collection, or the one in a folder, pinned to its current state."""
    return (collection if isinstance(collection, Collection) else Collection(collection)).pinned()
