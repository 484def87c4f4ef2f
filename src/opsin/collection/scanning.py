"""One pass over a folder of images: what the network makes of each, kept in a collection."""

import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from opsin.batches import forward_batch
from opsin.collection.about import About, LayerAbout, about_model
from opsin.collection.decoding import Cut, Decoded, Unread, decoding
from opsin.collection.intake import Intake, RefusedError, storing, writing
from opsin.collection.labels import FOLDERS, label, read_labels
from opsin.collection.source import Entry, Source
from opsin.collection.store import Collection
from opsin.collection.tables import BATCH, LABEL_SCHEMA, TOP_CLASSES, feature_column, schema
from opsin.collection.tally import Tally
from opsin.errors import InputError, at_least, unknown
from opsin.folding import Folded
from opsin.model import Model
from opsin.photos import SUFFIXES
from opsin.progress import tell
from opsin.registry import versions

Chunks = Generator["Chunk", None, None]
Engine = Literal["local", "ray"]
PACKAGES = ("opsin", "torch", "pylance", "pillow", "numpy")
LEAST_CHUNK, MOST_CHUNK, CHUNKS = 256, 4096, 64  # images that are taken in at once: the total / 64, within
CHUNK_SECONDS, CHUNK_SHARE = 30.0, 0.05  # of the time so far: a kill loses no more than the longer of these
WORKERS = 8  # processes that decode, at most, unless more are asked for


@dataclass(frozen=True)
class Chunk:
    """What the network made of some files: their rows, a tally a layer, and what could not be read."""

    number: int
    rows: pa.Table
    tallies: tuple[Tally, ...]
    unread: tuple[Unread, ...]
    files: int


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

    Of each image: file, size, hash, thumbnail, top-5 classes, and the features of `layers`, averaged over
    positions (by default of the classifier's input alone). Of each channel of them: the `top` images where
    it fires most and where in these, mean, standard deviation and sparsity. `labels` is a CSV with the
    columns `path` and `label`, or the word `folders`: the name of the folder below the root that an image
    lies in. Without it they are what they were in the last scan, at first those of folders.

    A scan that was cut off goes on where it stopped; one that is run again takes in what is new or has
    changed, and forgets what is gone, together with the rest of its chunk, which is scanned anew; of a
    folder below that cannot be listed it keeps what it has. `folder` may be an address that fsspec knows.
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
            raise RefusedError(f"none of the {total} images below {folder} can be read: {why}")
    return Collection(place)


@dataclass(frozen=True)
class Job:
    """What an engine needs to know: chunks of `size` images, of `total` in all."""

    source: Source
    model: Model
    layers: tuple[str, ...]
    top: int
    size: int
    total: int
    workers: int | None


def _engine(
    name: Engine, address: str | None
) -> Callable[[Job, Iterator[Entry]], Generator[Chunk, None, None]]:
    if name == "local":
        if address is not None:
            raise InputError("an address is that of a Ray cluster: it goes with the engine ray")
        return local
    if name != "ray":
        raise unknown("engine", name, ["local", "ray"])
    try:
        from opsin.collection.ray_engine import on_ray  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise InputError(f"the engine ray needs an extra: pip install 'opsin[ray]' ({error})") from error
    return partial(on_ray, address=address)


def local(job: Job, entries: Iterator[Entry]) -> Chunks:
    """Files decoded by processes, seen by the network here.

    Where the work is ended from outside, the chunk that was begun is handed on as far as it came.
    """
    workers = min(WORKERS, os.cpu_count() or 1) if job.workers is None else job.workers
    stream = decoding(job.source, entries, Cut.of(job.model), workers)
    growing, done = Growing(job.model, job.layers, job.top), 0
    began = handed_on = time.monotonic()
    try:
        for group in growing.groups(stream):
            growing.take(group)
            done += len(group)
            tell("scan", done, job.total)
            now = time.monotonic()
            is_old = now - handed_on > max(CHUNK_SECONDS, CHUNK_SHARE * (now - began))
            if growing.size and (is_old or growing.size >= job.size):
                yield growing.cut()
                handed_on = now
    except GeneratorExit:
        raise
    except BaseException:
        if growing.size:
            yield growing.cut()
        raise
    finally:
        stream.close()
    if growing.size:
        yield growing.cut()


class Growing:
    """A chunk while images are taken in."""

    def __init__(self, model: Model, layers: Sequence[str], top: int) -> None:
        self.model, self.layers, self.top = model, layers, top
        self.channels = [about_layer(model, layer).channels for layer in layers]
        self.folded = Folded(model, (*layers, "output"))
        self.batch = forward_batch(model, torch.empty(1, 3, *model.size))
        self._begin()

    def _begin(self) -> None:
        self.size = 0
        self.unread: list[Unread] = []
        self.columns: dict[str, list[Any]] = {field.name: [] for field in schema(self.channels)}
        self.tallies = [Tally.empty(channels, self.top) for channels in self.channels]

    def groups(self, stream: Iterable[Decoded | Unread]) -> Iterator[list[Decoded | Unread]]:
        """Files in their order, each time with as many good ones as the network takes at once."""
        group: list[Decoded | Unread] = []
        good = 0
        for one in stream:
            group.append(one)
            good += isinstance(one, Decoded)
            if good == self.batch:
                yield group
                group, good = [], 0
        if group:
            yield group

    def take(self, group: Sequence[Decoded | Unread]) -> None:
        """Let the network see a group of `groups`.

        A smaller last one is filled up with black, so that an image gives the same numbers whatever
        it came with.
        """
        good = [one for one in group if isinstance(one, Decoded)]
        tallies, columns = self._seen(good) if good else (self.tallies, {})
        # An interrupt above leaves the chunk as it was.
        self.size += len(group)
        self.unread += [one for one in group if isinstance(one, Unread)]
        self.tallies = tallies
        for name, values in columns.items():
            self.columns[name] += values

    def _seen(self, good: Sequence[Decoded]) -> tuple[list[Tally], dict[str, list[Any]]]:
        """The tallies with these images, and their rows."""
        pixels = np.zeros((self.batch, *self.model.size, 3), np.uint8)
        pixels[: len(good)] = np.stack([one.pixels for one in good])
        images = torch.from_numpy(pixels).to(self.model.device).permute(0, 3, 1, 2) / 255  # -> (n, 3, h, w)
        run = self.folded.run(images)
        ids = torch.tensor([one.entry.id for one in good])
        tallies, features = [], {}
        for number, layer in enumerate(self.layers):
            maps = as_maps(run.channels(layer)[: len(good)])
            tallies.append(self.tallies[number].merged(Tally.of(maps, ids, self.top)))
            features[feature_column(number)] = [run.pooled(layer)[: len(good)].float().cpu()]
        classes, probabilities = _best(self.model, run["output"][: len(good)])
        return tallies, {
            **features,
            "id": ids.tolist(),
            "path": [os.fsencode(one.entry.path) for one in good],
            "version": [one.entry.version for one in good],
            "classes": classes,
            "probabilities": probabilities,
            **{
                name: [getattr(one, name) for one in good]
                for name in ("sha256", "width", "height", "thumbnail")
            },
        }

    def cut(self) -> Chunk:
        """The chunk as it is; a new one begins."""
        number = secrets.randbits(62)
        self.columns["chunk"] = [number] * len(self.columns["id"])
        wanted, arrays = schema(self.channels), list[pa.Array]()
        for field in wanted:
            values = self.columns[field.name]
            if field.name.startswith("features_"):
                flat = torch.cat(values).flatten().numpy() if values else np.zeros(0, np.float32)
                arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), field.type.list_size))
            else:
                arrays.append(pa.array(values, field.type))
        made = Chunk(
            number, pa.table(arrays, schema=wanted), tuple(self.tallies), tuple(self.unread), self.size
        )
        self._begin()
        return made


def as_maps(values: Tensor) -> Float[Tensor, "n c h w"]:
    """A vector layer's (n, c) as maps of one position; maps as they are."""
    return values[:, :, None, None] if values.ndim == 2 else values


def about_layer(model: Model, layer: str) -> LayerAbout:
    """A layer's channels and extent. Raises `InputError` on an unknown one, `NetworkError` on one of none."""
    if layer == "image":
        raise InputError("the image is no layer of the network")
    run = model.run(torch.full((1, 3, *model.size), 0.5, device=model.device), (layer,))
    _, channels, rows, columns = as_maps(run.channels(layer)).shape
    return LayerAbout(layer, channels, (rows, columns))


def classifier_input(model: Model) -> str:
    """The layer whose output, averaged over positions, is what the last linear layer reads.

    Where none is (a convolution ends the network, or a function that is no layer stands between) the
    last layer with a spatial extent.
    """
    calls = list(model.calls.values())
    ends = [i for i, c in enumerate(calls) if isinstance(model.network.get_submodule(c.layer), nn.Linear)]
    if not ends or calls[ends[-1]].layout != "vector":
        return model.default_layer
    head = calls[ends[-1]].layer
    weight, bias = model.weights([head])[head], model.weights([head], "bias").get(head)
    image = torch.rand(1, 3, *model.size, generator=torch.Generator().manual_seed(0)).to(model.device)
    for call in reversed(calls[: ends[-1]]):
        if call.layout not in ("vector", "maps", "maps_last") or weight.shape[1] not in call.shape:
            continue
        run = model.run(image, (call.name, "output"))
        features = run.pooled(call.name)
        if features.shape[1] == weight.shape[1] and run["output"].ndim == 2:
            output = linear(features, weight, bias)
            if output.shape == run["output"].shape and torch.allclose(
                output, run["output"].to(output), rtol=1e-2, atol=1e-2
            ):
                return call.name
    return model.default_layer


def _best(model: Model, output: Tensor) -> tuple[list[list[int]], list[list[float]]]:
    """The most probable classes and their probabilities; none where the output is not one score a class."""
    if output.ndim != 2:
        return [[]] * len(output), [[]] * len(output)
    best = model.probabilities(output).topk(min(TOP_CLASSES, output.shape[1]))
    return best.indices.tolist(), best.values.tolist()


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
        raise RefusedError(f"{table} names none of the images: the first is {ours!r} here, {theirs!r} there")
