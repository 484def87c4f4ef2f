"""A collection on disk: one row an image and one tally a chunk and layer, in Lance tables.

    collection/
      record.json     which network, layers and preprocessing, and where the images lie
      images.lance    a row an image: file, size, hash, thumbnail, top-5 classes, features
      tallies.lance   a row a chunk and layer: where every channel fired most, its moments
      labels.lance    the labels that folders or a CSV give
      labels.json     what the CSV says, for the next scan; `null` where labels are folders'
      unread.json     the files that the last scan could not read, and why

A chunk is the images that were taken in by one append. Tallies are written before their images, so
that a tally without images is of a scan that was cut off, and is passed over.

A collection may come from anybody, and may be damaged: whatever is read is checked first.
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

    Raises `InputError` where `folder` is no collection or is damaged.
    """

    def __repr__(self) -> str:
        return f"Collection({str(self.folder)!r}, {len(self)} images, {self.about.model['name']})"

    def __len__(self) -> int:
        with self.reading(IMAGES) as images:
            return 0 if images is None else images.count_rows()

    @cached_property
    def source(self) -> Source:
        """Where the files lie."""
        return Source(self.about.root)

    def check(self, model: Model) -> None:
        """Raise `InputError`, naming both, unless the collection was made with this model."""
        theirs, ours = self.about.model, about_model(model)
        if theirs["sha256"] != ours["sha256"]:
            told = [f"{one['name']} (weights {one['sha256'][:12]})" for one in (theirs, ours)]
            raise InputError(f"{self.folder} was scanned with {told[0]}, not with {told[1]}")
        pairs = [(name, dict(theirs)[name], dict(ours)[name]) for name in PREPROCESSING]
        if differing := [f"{name} {own}, not {other}" for name, own, other in pairs if own != other]:
            raise InputError(f"{self.folder} was scanned with other preprocessing: {'; '.join(differing)}")

    def label(self, index: int) -> str:
        """The name of a class of the network."""
        labels = self.about.labels
        return labels[index] if labels and index < len(labels) else f"class {index}"

    def named(self, label: str) -> str:
        """A label as text: of a class by index or WordNet number, its name."""
        index = truth(label, self.about.labels or ())
        bare = label.isdecimal() or WNID.fullmatch(label)
        return self.label(index) if bare and index is not None and self.about.labels else label

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows' columns, some thousand rows at a time, always in the same order."""
        with self.reading(IMAGES) as images:
            if images is None:
                return
            for batch in images.to_batches(columns=list(columns), batch_size=BATCH, scan_in_order=True):
                check_values(batch)
                yield batch

    def column(self, name: str) -> pa.ChunkedArray:
        """One column, whole."""
        found = [batch.column(name) for batch in self.batches([name])]
        return pa.chunked_array(found, schemas(self.about)[IMAGES].field(name).type)

    def ids(self) -> NDArray[np.int64]:
        """Every image's id, in the order of the rows."""
        return np.asarray(self.column("id").to_numpy(), np.int64)

    def features(
        self, layer: str | None = None, places: Sequence[int] | None = None
    ) -> Float[np.ndarray, "n c"]:
        """The pooled features of every image, or of some rows, in the order of the rows."""
        name, width = feature_column(self.layer(layer)), self.about.layers[self.layer(layer)].channels
        if places is not None:
            return matrix(self._taken(places, [name])[name].combine_chunks(), width)
        found = [matrix(batch.column(name), width) for batch in self.batches([name])]
        return np.concatenate(found) if found else np.zeros((0, width), np.float32)

    def rows(self, places: Sequence[int]) -> list[Row]:
        """The images of these rows, without their features."""
        if not len(places):
            return []
        now = self.pinned()
        found = now._taken(places, [field.name for field in ROW]).to_pylist()
        labels = now.labels([values["id"] for values in found])
        with now.reading(IMAGES):
            return [row(values, labels.get(values["id"])) for values in found]

    def _taken(self, places: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Some rows, by number. Raises `IndexError` if a row does not exist."""
        with self.reading(IMAGES) as images:
            count = 0 if images is None else images.count_rows()
            if images is not None and all(0 <= place < count for place in places):
                found = images.take(list(map(int, places)), columns=list(columns))
                check_values(found)
                return found
        raise IndexError(f"{self.folder} has the rows 0 to {count - 1}")

    def showing(self, target: str | None = None) -> list[Row]:
        """The images of a class, or those where a channel (`layer:channel`) fires most; without a target all.

        A class is shown by images with its name as their label, and by unlabelled images that the network
        puts there (by all such images, where no label is a class). Raises `InputError` if there are none.
        """
        now = self.pinned()
        if target is None:
            return now.rows(range(len(now)))
        layer, _, channel = target.rpartition(":")
        if channel.isdecimal() and layer in [one.name for one in self.about.layers]:
            listed, number = now.tally(layer).ids, index_of(channel)
            if number is None or number >= len(listed):
                said = shortened(channel)
                raise InputError(f"layer {layer!r} has the channels 0 to {len(listed) - 1}, not {said}")
            wanted = listed[number].tolist()
            found = now.with_ids(wanted)
            return [found[one] for one in wanted if one in found]
        names = self.about.labels or ()
        index = index_of(target) if target.isdecimal() else class_named(target, names)
        if index is None and layer and channel.isdecimal():
            raise unknown("layer of the collection", layer, [one.name for one in self.about.layers])
        labels = now.labels()
        known = {label: truth(label, names) for label in set(labels.values())}
        if all(own is None for own in known.values()):  # folders that are called something else
            labels = {}
        places = []
        for place, (id, classes, _) in enumerate(now.seen()):
            own = known[labels[id]] if id in labels else next(iter(classes), None)
            if index is not None and own == index:
                places.append(place)
        if not places:
            raise InputError(f"{self.folder} holds no image of {target!r}, as its label or as seen")
        return now.rows(places)

    def seen(self) -> Iterator[tuple[int, list[int], list[float]]]:
        """Every image's id, its most probable classes and their probabilities, in the order of the rows."""
        for batch in self.batches(["id", "classes", "probabilities"]):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def with_ids(self, ids: Sequence[int]) -> dict[int, Row]:
        """The images of these ids that are there, by id."""
        now = self.pinned()
        places = np.flatnonzero(np.isin(now.ids(), np.asarray(list(ids), np.int64)))
        return {row.id: row for row in now.rows(places.tolist())}

    def labels(self, ids: Sequence[int] | None = None) -> dict[int, str]:
        """The labels of these images, or of all, by id; of those that have one."""
        with self.reading(LABELS) as table:
            if table is None:
                return {}
            found = table.to_table(filter=None if ids is None else f"id in ({', '.join(map(str, ids))})")
            check_values(found)
        return dict(zip(found["id"].to_pylist(), found["label"].to_pylist(), strict=True))

    def labelled(self) -> int:
        """How many images have a label."""
        now = self.pinned()
        return int(np.isin(list(now.labels()), now.ids()).sum())

    def tally(self, layer: str | None = None) -> Tally:
        """Where each channel of a layer fires most, and its moments, over all images."""
        number, about = self.layer(layer), self.about.layers[self.layer(layer)]
        joined = Tally.empty(about.channels, self.about.top)
        now = self.pinned()
        chunks, ids = now.chunks(), now.ids()
        with now.reading(TALLIES) as table:
            if table is not None:
                for batch in table.to_batches(filter=f"layer = {number}", batch_size=16, scan_in_order=True):
                    check_values(batch)
                    for values in batch.to_pylist():
                        if values["chunk"] in chunks:
                            joined = joined.merged(tally(values, about, self.about.top))
        listed = joined.ids[joined.ids != NONE]
        with now.reading(IMAGES):  # of which a scan may have dropped chunks before the tallies were opened
            if joined.images != len(ids) or not np.isin(listed, ids).all():
                raise InputError(f"the tallies of layer {about.name!r} are of other images")
        return joined

    def chunks(self) -> set[int]:
        """The chunks that have images."""
        return {
            int(one) for batch in self.batches(["chunk"]) for one in batch.column("chunk").unique().tolist()
        }

    def photo(self, row: Row, model: Model) -> Float[Tensor, "3 h w"]:
        """An image's own file, cut for the model. Raises `InputError` where it is gone or has changed."""
        data = self.source.read(row.path)
        if hashlib.sha256(data).hexdigest() != row.sha256:
            raise InputError(f"{row.path} has changed since the scan: scan again")
        return torch.from_numpy(fitted(decoded(data, row.path), model)).permute(2, 0, 1) / 255

    def unread(self) -> dict[str, str]:
        """The files that the last scan could not read, and why."""
        unread: dict[str, str] = checked(
            self.folder, UNREAD, read_facts(self.folder, UNREAD) or {}, dict[str, str]
        )
        return unread

    def named_labels(self) -> dict[str, str] | None:
        """The CSV of labels that the last scan was given, as it was read; `None` where it took folders."""
        named: dict[str, str] | None = checked(
            self.folder, NAMED, read_facts(self.folder, NAMED), dict[str, str] | None
        )
        return named


def opened(collection: "Collection | str | Path") -> Collection:
    """A collection, or the one in a folder, pinned to what is there now."""
    return (collection if isinstance(collection, Collection) else Collection(collection)).pinned()
