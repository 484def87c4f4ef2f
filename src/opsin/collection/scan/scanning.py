"""One pass over a folder of images: what the network makes of each, kept in a collection."""

import json
import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Literal

import numpy as np
import pyarrow as pa

from opsin.base.errors import InputError, at_least, unknown
from opsin.base.extras import extra
from opsin.base.records import versions
from opsin.collection.files.labels import FOLDERS, label, read_labels
from opsin.collection.files.source import Entry, Source
from opsin.collection.scan.chunks import Chunk, Chunks, Job, about_layer
from opsin.collection.scan.local_engine import local
from opsin.collection.store.about import About, about_model
from opsin.collection.store.intake import Intake, RefusedError, storing, writing
from opsin.collection.store.store import Collection
from opsin.collection.store.tables import BATCH, LABEL_SCHEMA
from opsin.images.photos import SUFFIXES
from opsin.network.heads import classifier_input
from opsin.network.model import Model

Engine = Literal["local", "ray"]
LEAST_CHUNK, MOST_CHUNK, CHUNKS = 256, 4096, 64  # images that are taken in at once: the total / 64, within
PACKAGES = ("opsin", "torch", "pylance", "pillow", "numpy")


def scan(
    folder: str | Path,
    model: Model,
    collection: str | Path = "collection",
    *,
    layers: Sequence[str] | None = None,
    labels: str | Path | None = None,
    top: int = 9,
    workers: int | None = None,
    engine: Engine = "local",
    address: str | None = None,
) -> Collection:
    """Run a network once over every image below a folder, and keep what it saw.

    For each image it keeps file, size, hash, thumbnail, top-5 classes, and the features of `layers`,
    averaged over positions (by default the classifier's input alone). For each channel of these it keeps the
    `top` images where it fires most and where in them, mean, standard deviation and sparsity. `labels` is a
    CSV with the columns `path` and `label`, or the word `folders`: the name of the folder below the root that
    an image lies in. By default the first scan takes folders' names, later ones keep the last scan's labels.

    A scan that was stopped resumes there. A repeated scan adds new and changed images and removes missing
    ones, together with the rest of their chunks, which are scanned again; images in a folder that cannot be
    listed are kept. `folder` may be an address that fsspec knows.
    The engine `ray` scans on a Ray cluster, by default one of this machine; `workers` are processes that
    decode, with `ray` networks.

    Raises `InputError` on a folder without images, a collection of another network, and a second scan at
    the same time.
    """
    layers = [layers] if isinstance(layers, str) else layers
    names = list(dict.fromkeys(layers or [classifier_input(model)]))
    abouts = tuple(about_layer(model, name) for name in names)
    at_least(1, top=top)
    at_least(0, workers=workers or 0)
    run = _engine(engine, address)
    source, place = Source(folder), Path(collection)
    if next(source.entries(), None) is None:
        raise InputError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    named = None if labels in (None, FOLDERS) else read_labels(Path(labels), source.root)
    about = About(source.root, about_model(model), model.labels, abouts, top, versions(PACKAGES))
    with writing(place, about, model) as made, ExitStack() as spooling:
        with storing(place):
            spool = spooling.enter_context(
                tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogateescape")
            )
            _spool(source, made, spool)
        if labels is None:
            named = made.named_labels()
        elif named is not None:
            _check(named, labels, spool)
        made.write_labels(_labelled(spool, named), named)
        todo = _todo(made, spool)
        total = sum(1 for _ in todo(spool))
        size = min(MOST_CHUNK, max(LEAST_CHUNK, total // CHUNKS))
        job = Job(source, model, tuple(names), top, size, total, workers)
        unread = _take_in(made, run(job, todo(spool)))
        made.write_unread(unread)
        made.tidy()
        if not len(made):
            why = next(iter(unread.values()))
            raise RefusedError(f"none of the {total} images below {folder} could be read: {why}")
    return Collection(place)


def _engine(
    name: Engine, address: str | None
) -> Callable[[Job, Iterator[Entry]], Generator[Chunk, None, None]]:
    if name == "local":
        if address is not None:
            raise InputError("an address names a Ray cluster: use it with the engine ray")
        return local
    if name != "ray":
        raise unknown("engine", name, ["local", "ray"])
    with extra("ray"):
        from opsin.collection.scan.ray_engine import on_ray  # noqa: PLC0415 (slow)
    return partial(on_ray, address=address)


def _take_in(made: Intake, chunks: Chunks) -> dict[str, str]:
    """Append chunk by chunk; what could not be read, and why."""
    unread: dict[str, str] = {}
    with closing(chunks):
        for chunk in chunks:
            if len(chunk.rows):
                made.append(chunk.rows, chunk.tallies, chunk.number)
            unread |= {one.path: one.why for one in chunk.unread}
    return unread


# A scan looks at the folder once; what it found is spooled to a temporary file, so that memory does not
# grow with it, but for 24 bytes an image of the collection.


def _spool(source: Source, made: Intake, spool: IO[str]) -> None:
    """The entries, and of a folder that cannot be listed the images that are known to lie below it."""

    def write(*entry: str | int) -> None:
        spool.write(json.dumps(entry) + "\n")

    for entry in source.entries():
        write(entry.path, entry.version)
        if entry.is_folder:
            for batch in made.batches(["path", "version"]):
                for path, version in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    if path.startswith(os.fsencode(entry.path)):
                        write(os.fsdecode(path), version)
    spool.flush()


def _entries(spool: IO[str]) -> Iterator[Entry]:
    spool.seek(0)
    return (Entry(*json.loads(line)) for line in spool)


def _todo(made: Intake, spool: IO[str]) -> Callable[[IO[str]], Iterator[Entry]]:
    """Which entries are to be scanned; chunks that hold what has changed or is gone are forgotten."""
    columns = [made.column(name).to_numpy() for name in ("id", "version", "chunk")]
    order = columns[0].argsort()
    ids, versions_, chunks = (column[order] for column in columns)
    current = np.zeros(len(ids), bool)
    for entry in _entries(spool):
        place = int(ids.searchsorted(entry.id))
        if place < len(ids) and ids[place] == entry.id and versions_[place] == entry.version:
            current[place] = True
    stale = np.unique(chunks[~current])
    made.forget(stale.tolist())
    kept = ids[~np.isin(chunks, stale)]

    def todo(spool: IO[str]) -> Iterator[Entry]:
        for entry in _entries(spool):
            place = int(kept.searchsorted(entry.id))
            if place == len(kept) or kept[place] != entry.id:
                yield entry

    return todo


def _labelled(spool: IO[str], named: Mapping[str, str] | None) -> Iterator[pa.RecordBatch]:
    """The entries that have a label, with it."""
    entries = _entries(spool)
    while some := list(islice(entries, BATCH)):
        pairs = [(entry.id, found) for entry in some if (found := label(entry, named))]
        if pairs:
            yield pa.record_batch([pa.array(c) for c in zip(*pairs, strict=True)], schema=LABEL_SCHEMA)


def _check(named: Mapping[str, str], table: str | Path, spool: IO[str]) -> None:
    """Raise `RefusedError` where a CSV names none of the images."""
    if not any(label(entry, named) for entry in _entries(spool)):
        theirs, ours = next(iter(named), None), next(_entries(spool)).path
        raise RefusedError(
            f"{table} names none of the images: the first image is {ours!r}, its first path {theirs!r}"
        )
