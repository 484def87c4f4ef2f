"""One pass over a folder of images: the network's results for each, stored in a collection."""

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
LEAST_CHUNK, MOST_CHUNK, CHUNKS = 256, 4096, 64  # images per chunk: the total / 64, within bounds
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
    """Run a network once over every image below a folder, and store the results in a collection.

    Each image is stored with file, size, hash, thumbnail, top-5 classes, and the features of `layers`,
    averaged over positions (by default only the classifier's input). Each channel of these layers is stored
    with the `top` images where it fires most and the positions there, mean, standard deviation and sparsity.
    `labels` is a CSV with the columns `path` and `label`, or the word `folders` for the names of the images'
    folders below the root. By default they are as in the last scan; the first scan takes folders.

    Run again, a scan resumes where it stopped, adds new and changed images, and removes deleted ones; the
    other images of their chunks are scanned again. Images in a folder that cannot be listed are kept.
    `folder` may be an address that fsspec knows. The engine `ray` scans on a Ray cluster, by default a new
    one on this machine. `workers` is the number of decoding processes, or with `ray` of networks.

    Raises `InputError` on a folder without images, on a collection of another network, and while another
    scan is writing the collection.
    """
    layers = [layers] if isinstance(layers, str) else layers
    names = list(dict.fromkeys(layers or [classifier_input(model)]))
    abouts = tuple(about_layer(model, name) for name in names)
    at_least(1, top=top)
    at_least(0, workers=workers or 0)
    run = _engine(engine, address)
    source, target = Source(folder), Path(collection)
    if next(source.entries(), None) is None:
        raise InputError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    named = None if labels in (None, FOLDERS) else read_labels(Path(labels), source.root)
    about = About(source.root, about_model(model), model.labels, abouts, top, versions(PACKAGES))
    with writing(target, about, model) as intake, ExitStack() as spooling:
        with storing(target):
            spool = spooling.enter_context(
                tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogateescape")
            )
            _spool(source, intake, spool)
        if labels is None:
            named = intake.named_labels()
        elif named is not None:
            _check(named, labels, spool)
        intake.write_labels(_labelled(spool, named), named)
        todo = _todo(intake, spool)
        total = sum(1 for _ in todo(spool))
        size = min(MOST_CHUNK, max(LEAST_CHUNK, total // CHUNKS))
        job = Job(source, model, tuple(names), top, size, total, workers)
        unread = _take_in(intake, run(job, todo(spool)))
        intake.write_unread(unread)
        intake.tidy()
        if not len(intake):
            why = next(iter(unread.values()))
            which = "the only image" if total == 1 else f"none of the {total:,} images"
            raise RefusedError(f"{which} below {folder} can{'not' * (total == 1)} be read: {why}")
    return Collection(target)


def _engine(
    name: Engine, address: str | None
) -> Callable[[Job, Iterator[Entry]], Generator[Chunk, None, None]]:
    if name == "local":
        if address is not None:
            raise InputError("an address is only for a Ray cluster: use it with the engine 'ray'")
        return local
    if name != "ray":
        raise unknown("engine", name, ["local", "ray"])
    with extra("ray"):
        from opsin.collection.scan.ray_engine import on_ray  # noqa: PLC0415 (slow)
    return partial(on_ray, address=address)


def _take_in(intake: Intake, chunks: Chunks) -> dict[str, str]:
    """Append chunk by chunk; returns the files that could not be read, and why."""
    unread: dict[str, str] = {}
    with closing(chunks):
        for chunk in chunks:
            if len(chunk.rows):
                intake.append(chunk.rows, chunk.tallies, chunk.number)
            unread |= {file.path: file.why for file in chunk.unread}
    return unread


# A scan lists the folder once and spools the list to a temporary file, so that memory does not grow with
# it, except for 24 bytes per image of the collection.


def _spool(source: Source, intake: Intake, spool: IO[str]) -> None:
    """Write the entries; for a folder that cannot be listed, also the images known to be below it."""

    def write(*entry: str | int) -> None:
        spool.write(json.dumps(entry) + "\n")

    for entry in source.entries():
        write(entry.path, entry.version)
        if entry.is_folder:
            for batch in intake.batches(["path", "version"]):
                for path, version in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    if path.startswith(os.fsencode(entry.path)):
                        write(os.fsdecode(path), version)
    spool.flush()


def _entries(spool: IO[str]) -> Iterator[Entry]:
    spool.seek(0)
    return (Entry(*json.loads(line)) for line in spool)


def _todo(intake: Intake, spool: IO[str]) -> Callable[[IO[str]], Iterator[Entry]]:
    """Which entries are to be scanned; chunks with changed or deleted images are dropped first."""
    columns = [intake.column(name).to_numpy() for name in ("id", "version", "chunk")]
    order = columns[0].argsort()
    ids, versions_, chunks = (column[order] for column in columns)
    current = np.zeros(len(ids), bool)
    for entry in _entries(spool):
        position = int(ids.searchsorted(entry.id))
        if position < len(ids) and ids[position] == entry.id and versions_[position] == entry.version:
            current[position] = True
    stale = np.unique(chunks[~current])
    intake.forget(stale.tolist())
    kept = ids[~np.isin(chunks, stale)]

    def todo(spool: IO[str]) -> Iterator[Entry]:
        for entry in _entries(spool):
            position = int(kept.searchsorted(entry.id))
            if position == len(kept) or kept[position] != entry.id:
                yield entry

    return todo


def _labelled(spool: IO[str], named: Mapping[str, str] | None) -> Iterator[pa.RecordBatch]:
    """The ids and labels of the entries that have a label."""
    entries = _entries(spool)
    while batch := list(islice(entries, BATCH)):
        pairs = [(entry.id, text) for entry in batch if (text := label(entry, named))]
        if pairs:
            yield pa.record_batch([pa.array(c) for c in zip(*pairs, strict=True)], schema=LABEL_SCHEMA)


def _check(named: Mapping[str, str], table: str | Path, spool: IO[str]) -> None:
    """Raise `RefusedError` if a CSV names none of the images."""
    if not any(label(entry, named) for entry in _entries(spool)):
        named_path, image_path = next(iter(named), None), next(_entries(spool)).path
        raise RefusedError(
            f"{table} names none of the images: its first is {named_path!r}, the first image {image_path!r}"
        )
