"""A collection on disk: one row an image and one tally a chunk and layer, in Lance tables.

    collection/
      record.json     which network, layers and preprocessing, and where the images lie
      images.lance    a row an image: file, size, hash, thumbnail, top-5 classes, features
      tallies.lance   a row a chunk and layer: where every channel fired most, its moments
      labels.lance    the labels that folders or a CSV give
      labels.json     what the CSV says, for the next scan; `null` where labels are folders'
      cache/          what was made of these for a faster search; may be deleted

A chunk is the images that were taken in by one append. Tallies are written before their images, so
that a tally without images is of a scan that was cut off, and is passed over.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock, Timeout
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from opsin.collection.source import RECORD, Source
from opsin.collection.tally import Tally
from opsin.errors import InputError, unknown
from opsin.model import Model
from opsin.parsing import class_named
from opsin.photos import decoded, fitted

WNID = re.compile(r"n\d{8}")  # a WordNet number, as folders of ImageNet are named
KIND = "Collection"
FORMAT = 1
TOP_CLASSES = 5
NAMED = "labels.json"
IMAGES, TALLIES, LABELS, CACHE = "images.lance", "tallies.lance", "labels.lance", "cache"
BATCH = 4096  # rows that are read at once


@dataclass(frozen=True)
class LayerAbout:
    """A layer of a collection: its channels, and rows and columns of its maps (1, 1 of a vector)."""

    name: str
    channels: int
    extent: tuple[int, int]


@dataclass(frozen=True)
class About:
    """What a collection was made with."""

    root: str
    model: Mapping[str, Any]
    labels: Sequence[str] | None
    layers: tuple[LayerAbout, ...]
    top: int
    versions: Mapping[str, str]


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
        """The path to read: what in it is no UTF-8 is escaped."""
        return self.path.encode("utf-8", "backslashreplace").decode()


class Collection:
    """What a network saw in a folder of images.

    Raises `InputError` where `folder` is no collection or is damaged.
    """

    _pinned: "Mapping[str, lance.LanceDataset | None] | None" = None

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        facts = _facts(self.folder)
        if facts is None:
            raise InputError(f"{folder} is no collection: make one with `opsin scan PHOTOS -o {folder}`")
        if facts.get("format") != FORMAT:
            raise InputError(f"{folder} has format {facts.get('format')}, this Opsin reads format {FORMAT}")
        try:
            about = facts["about"]
            layers = tuple(
                LayerAbout(one["name"], one["channels"], tuple(one["extent"])) for one in about["layers"]
            )
            self.about = About(**{**about, "layers": layers})
        except (KeyError, TypeError) as error:
            raise self._damaged(f"{RECORD}: {type(error).__name__} {error}") from error
        self.pinned()  # so that a damaged table is told now

    def __repr__(self) -> str:
        return f"Collection({str(self.folder)!r}, {len(self)} images, {self.about.model['name']})"

    def __len__(self) -> int:
        images = self.table(IMAGES)
        return 0 if images is None else images.count_rows()

    def pinned(self) -> "Collection":
        """This collection as it stands now, whatever a scan takes in meanwhile.

        Reading it raises `InputError` where a scan has ended meanwhile and what it replaced is gone.
        """
        if self._pinned:
            return self
        found = copy(self)
        found._pinned = {name: self.table(name) for name in (IMAGES, TALLIES, LABELS)}
        return found

    def table(self, name: str) -> "lance.LanceDataset | None":
        """One of the tables; `None` where there is none yet, or the first write of it was cut off."""
        if self._pinned:
            return self._pinned[name]
        place = self.folder / name
        try:
            return lance.dataset(place) if any((place / "_versions").glob("*.manifest")) else None
        except (OSError, ValueError) as error:
            raise self._damaged(str(error)) from error

    @contextmanager
    def reading(self, name: str) -> Iterator["lance.LanceDataset | None"]:
        """A table to read; where it cannot be read, whether that is because a scan has renewed it."""
        table = self.table(name)
        try:
            yield table
        except (OSError, ValueError) as error:
            if table is not None and table.latest_version != table.version:
                told = f"{self.folder} was scanned again while it was read: ask again"
                raise InputError(told) from error
            raise self._damaged(str(error)) from error

    def _damaged(self, why: str) -> InputError:
        return InputError(f"{self.folder} is damaged: delete it and scan again ({why})")

    @cached_property
    def source(self) -> Source:
        """Where the files lie."""
        return Source(self.about.root)

    def layer(self, name: str | None) -> int:
        """A layer's number in the tables; the first one's without a name. Raises `InputError`."""
        names = [layer.name for layer in self.about.layers]
        if name is None:
            return 0
        if name not in names:
            raise unknown("layer of the collection", name, names, ": scan with --layer to have others")
        return names.index(name)

    def check(self, model: Model) -> None:
        """Raise `InputError`, naming both, unless the collection was made with this model."""
        theirs, ours = self.about.model, about_model(model)
        if theirs["sha256"] != ours["sha256"]:
            raise InputError(
                f"{self.folder} was scanned with {theirs['name']} (weights {theirs['sha256'][:12]}), "
                f"not with {ours['name']} (weights {ours['sha256'][:12]})"
            )
        differing = [key for key in PREPROCESSING if theirs[key] != ours[key]]
        if differing:
            said = "; ".join(f"{key} {theirs[key]}, not {ours[key]}" for key in differing)
            raise InputError(f"{self.folder} was scanned with other preprocessing: {said}")

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
            if images is not None:
                yield from images.to_batches(columns=list(columns), batch_size=BATCH, scan_in_order=True)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column, whole."""
        found = [batch.column(name) for batch in self.batches([name])]
        return pa.chunked_array(found) if found else pa.chunked_array([], self.schema.field(name).type)

    @property
    def schema(self) -> pa.Schema:
        """Of the table of images."""
        return schema([layer.channels for layer in self.about.layers])

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
        labels = now.labels([one["id"] for one in found])
        return [_row(one, labels.get(one["id"])) for one in found]

    def _taken(self, places: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Some rows, by number. Raises `IndexError` on one that there is not."""
        with self.reading(IMAGES) as images:
            count = 0 if images is None else images.count_rows()
            if images is None or not all(0 <= place < count for place in places):
                raise IndexError(f"{self.folder} has the rows 0 to {count - 1}")
            return images.take(list(map(int, places)), columns=list(columns))

    def showing(self, target: str | None = None) -> list[Row]:
        """The images of a class, or those where a channel (`layer:channel`) fires most; without a target all.

        Of a class are those with its name as their label, and of those without a label the ones that the
        network puts there; of all, where no label is a class. Raises `InputError` where there are none.
        """
        now = self.pinned()
        if target is None:
            return now.rows(range(len(now)))
        layer, _, channel = target.rpartition(":")
        if channel.isdecimal() and layer in [one.name for one in self.about.layers]:
            tally = now.tally(layer)
            if int(channel) >= len(tally.ids):
                raise InputError(f"layer {layer!r} has the channels 0 to {len(tally.ids) - 1}, not {channel}")
            wanted = tally.ids[int(channel)].tolist()
            found = now.with_ids(wanted)
            return [found[one] for one in wanted if one in found]
        names = self.about.labels or ()
        index = int(target) if target.isdecimal() else class_named(target, names)
        if index is None and layer and channel.isdecimal():
            raise unknown("layer of the collection", layer, [one.name for one in self.about.layers])
        labels = now.labels()
        known = {label: truth(label, names) for label in set(labels.values())}
        if all(own is None for own in known.values()):  # folders that are called something else
            labels = {}
        places = []
        for place, (id, classes) in enumerate(now._seen()):
            own = known[labels[id]] if id in labels else next(iter(classes), None)
            if index is not None and own == index:
                places.append(place)
        if not places:
            raise InputError(f"{self.folder} holds no image of {target!r}, as its label or as seen")
        return now.rows(places)

    def _seen(self) -> Iterator[tuple[int, list[int]]]:
        for batch in self.batches(["id", "classes"]):
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
        return dict(zip(found["id"].to_pylist(), found["label"].to_pylist(), strict=True))

    def labelled(self) -> int:
        """How many images have a label."""
        now = self.pinned()
        with now.reading(LABELS) as table:
            ids = [] if table is None else table.to_table(columns=["id"])["id"].to_numpy()
        return int(np.isin(ids, now.ids()).sum())

    def tally(self, layer: str | None = None) -> Tally:
        """Where each channel of a layer fires most, and its moments, over all images."""
        number, about = self.layer(layer), self.about.layers[self.layer(layer)]
        joined = Tally.empty(about.channels, self.about.top)
        now = self.pinned()
        chunks = now.chunks()
        with now.reading(TALLIES) as table:
            if table is None:
                return joined
            for batch in table.to_batches(filter=f"layer = {number}", batch_size=16, scan_in_order=True):
                for one in batch.to_pylist():
                    if one["chunk"] in chunks:
                        joined = joined.merged(_tally(one, about.channels, self.about.top))
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
        place = self.folder / "unread.json"
        return json.loads(place.read_text("utf-8", "surrogateescape")) if place.is_file() else {}

    def named_labels(self) -> dict[str, str] | None:
        """The CSV of labels that the last scan was given, as it was read; `None` where it took folders."""
        place = self.folder / NAMED
        found: dict[str, str] | None = json.loads(place.read_text("utf-8")) if place.is_file() else None
        return found

    # What follows writes, under the lock of `writing`.

    def append(self, rows: pa.Table, tallies: Sequence[Tally], chunk: int) -> None:
        """Take one chunk in, or nothing of it."""
        with _room(self.folder):
            lance.write_dataset(_tally_table(tallies, chunk), self.folder / TALLIES, mode="append")
            lance.write_dataset(rows, self.folder / IMAGES, mode="append")

    def forget(self, chunks: Sequence[int]) -> None:
        """Drop whole chunks."""
        if not chunks:
            return
        with _room(self.folder):
            for name in (IMAGES, TALLIES):
                if (table := self.table(name)) is not None:
                    table.delete(f"chunk in ({', '.join(map(str, chunks))})")

    def write_labels(self, batches: Iterator[pa.RecordBatch], named: Mapping[str, str] | None = None) -> None:
        """Put these in place of all labels; `named` are those of a CSV."""
        with _room(self.folder):
            _write_whole(self.folder / NAMED, json.dumps(named, ensure_ascii=False) + "\n")
            lance.write_dataset(
                pa.RecordBatchReader.from_batches(LABEL_SCHEMA, batches),
                self.folder / LABELS,
                mode="overwrite",
            )

    def write_unread(self, unread: Mapping[str, str]) -> None:
        """Keep what could not be read."""
        with _room(self.folder):
            _write_whole(self.folder / "unread.json", json.dumps(unread, indent=1, ensure_ascii=False) + "\n")

    def tidy(self) -> None:
        """Join small fragments, drop tallies without images, old versions and caches."""
        with _room(self.folder):
            for name in (IMAGES, TALLIES, LABELS):
                table = self.table(name)
                if table is None:
                    continue
                if name == TALLIES and (chunks := self.chunks()):
                    table.delete(f"chunk not in ({', '.join(map(str, chunks))})")
                table.optimize.compact_files(compaction_mode="try_binary_copy")  # page by page
                table.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
            shutil.rmtree(self.folder / CACHE, ignore_errors=True)


def opened(collection: "Collection | str | Path") -> Collection:
    """A collection, or the one in a folder, pinned to what is there now."""
    return (collection if isinstance(collection, Collection) else Collection(collection)).pinned()


def schema(channels: Sequence[int]) -> pa.Schema:
    """Of the table of images, for layers of so many channels."""
    features = [pa.field(feature_column(i), pa.list_(pa.float32(), c)) for i, c in enumerate(channels)]
    return pa.schema([*ROW, pa.field("version", pa.int64()), pa.field("chunk", pa.int64()), *features])


def truth(label: str, names: Sequence[str]) -> int | None:
    """The class of a label: index, WordNet number, name or synonym; `None` where none or several fit."""
    text = label.strip().lower()
    if text.isdecimal():
        return int(text) if not names or int(text) < len(names) else None
    if WNID.fullmatch(text) and len(names) in (0, len(_wordnet())):
        return _wordnet().get(text)
    found = [index for index, name in enumerate(names) if text.replace("_", " ") in _forms(name)]
    return found[0] if len(found) == 1 else None


def _forms(name: str) -> set[str]:
    whole = name.lower().replace("_", " ")
    return {whole, *(part.strip() for part in whole.split(","))}


@cache
def _wordnet() -> dict[str, int]:
    """ImageNet's classes by WordNet number."""
    from timm.data.imagenet_info import ImageNetInfo  # noqa: PLC0415 (slow)

    return {name: index for index, name in enumerate(ImageNetInfo().label_names())}


def feature_column(layer: int) -> str:
    """The column of a layer's features."""
    return f"features_{layer}"


def matrix(column: pa.Array, width: int) -> Float[np.ndarray, "n c"]:
    """A column of vectors as an array."""
    return np.array(column.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(-1, width)


def about_model(model: Model) -> dict[str, Any]:
    """Which network, weights and preprocessing."""
    facts = {"name": model.name, "sha256": model.weigh().fingerprint, "load": model.loaded}
    return facts | {key: _plain(getattr(model, key)) for key in PREPROCESSING}


def create(folder: Path, about: About, model: Model) -> Collection:
    """The collection in `folder`, made where there is none. Raises `InputError` where it was made with
    another network, other layers or another root."""
    facts = _facts(folder)
    if facts is None:
        if folder.exists() and any(one.name not in BEGUN for one in folder.iterdir()):
            raise InputError(f"{folder} holds something that is no collection: choose another with -o")
        with _room(folder):
            whole = {"kind": KIND, "format": FORMAT, "about": asdict(about)}
            _write_whole(folder / RECORD, json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    made = Collection(folder)
    made.check(model)
    theirs, ours = made.about, about
    differing = [
        f"{name} {_said(getattr(theirs, name))}, not {_said(getattr(ours, name))}"
        for name in ("root", "layers", "top")
        if getattr(theirs, name) != getattr(ours, name)
    ]
    if differing:
        raise InputError(
            f"{folder} was scanned with {'; '.join(differing)}: choose another collection with -o"
        )
    return made


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the collection for one writer. Raises `InputError` where another one has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout:
        raise InputError(
            f"another scan is writing {folder}: wait for it, or choose another with -o"
        ) from None
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error


LOCK = ".lock"
FRESH = ".fresh"
BEGUN = (LOCK, Path(RECORD).with_suffix(FRESH).name)  # what a scan leaves that was cut off at once
PREPROCESSING = ("size", "mean", "std", "crop", "interpolation", "squash")
ROW = (
    pa.field("id", pa.int64()),
    pa.field("path", pa.binary()),  # as the file system has it, which need not be UTF-8
    pa.field("sha256", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("thumbnail", pa.binary()),
    pa.field("classes", pa.list_(pa.int32())),
    pa.field("probabilities", pa.list_(pa.float32())),
)
LABEL_SCHEMA = pa.schema([("id", pa.int64()), ("label", pa.string())])
TALLY_SCHEMA = pa.schema(
    [("chunk", pa.int64()), ("layer", pa.int32()), ("count", pa.int64()), ("images", pa.int64())]
    + [("values", pa.list_(pa.float32())), ("ids", pa.list_(pa.int64())), ("places", pa.list_(pa.int32()))]
    + [(name, pa.list_(pa.float64())) for name in ("sums", "squares", "active")]
)


def _row(one: dict[str, Any], label: str | None) -> Row:
    lists = {name: tuple(one.pop(name)) for name in ("classes", "probabilities")}
    return Row(**{**one, **lists, "path": os.fsdecode(one["path"])}, label=label)


def _tally_table(tallies: Sequence[Tally], chunk: int) -> pa.Table:
    rows = [
        {"chunk": chunk, "layer": number, "count": one.count, "images": one.images}
        | {name: getattr(one, name).flatten().numpy() for name in TALLY_SCHEMA.names[4:]}
        for number, one in enumerate(tallies)
    ]
    return pa.Table.from_pylist(rows, TALLY_SCHEMA)


def _tally(one: dict[str, Any], channels: int, top: int) -> Tally:
    values, ids, places = (torch.tensor(one[n]).reshape(channels, top) for n in ("values", "ids", "places"))
    sums, squares, active = (torch.tensor(one[n], dtype=torch.float64) for n in ("sums", "squares", "active"))
    return Tally(values, ids, places, sums, squares, active, one["count"], one["images"])


def _facts(folder: Path) -> dict[str, Any] | None:
    """What the record of a collection says; `None` where there is none."""
    try:
        facts = json.loads((folder / RECORD).read_text("utf-8", "surrogateescape"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and facts.get("kind") == KIND else None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _said(value: Any) -> str:
    return ", ".join(one.name for one in value) if isinstance(value, tuple) else str(value)


def _write_whole(path: Path, text: str) -> None:
    """A file that is there whole or not at all."""
    fresh = path.with_suffix(FRESH)
    fresh.write_text(text, "utf-8", errors="surrogateescape")
    fresh.replace(path)


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    """Say plainly that a disk is full."""
    try:
        yield
    except OSError as error:
        full = error.errno in FULL or any(text in str(error) for text in FULL_TEXTS)
        if not full:
            raise InputError(f"cannot write to {folder}: {error}") from error
        raise InputError(
            f"no room left to write {folder}: it holds all that was taken in so far; make room and scan again"
        ) from error


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_TEXTS = ("No space left", "StorageFull", "quota", "File too large", "os error 28", "os error 27")
