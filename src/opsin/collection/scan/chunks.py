"""The job that a scan gives to an engine, and the chunks that the engine returns."""

import os
import secrets
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.errors import InputError
from opsin.collection.files.decoding import Decoded, Unread
from opsin.collection.files.source import Source
from opsin.collection.store.about import LayerAbout
from opsin.collection.store.tables import TOP_CLASSES, feature_column, schema
from opsin.collection.store.tally import Tally
from opsin.network.batches import forward_batch
from opsin.network.model import Model
from opsin.network.shortcuts.folding import Folded

Chunks = Generator["Chunk", None, None]


@dataclass(frozen=True)
class Chunk:
    """The network's results for some files: their rows, one tally per layer, and unreadable files."""

    number: int
    rows: pa.Table
    tallies: tuple[Tally, ...]
    unread: tuple[Unread, ...]
    files: int


@dataclass(frozen=True)
class Job:
    """The input of an engine; a chunk has at most `size` images, `total` is the number of all images."""

    source: Source
    model: Model
    layers: tuple[str, ...]
    top: int
    size: int
    total: int
    workers: int | None


class Growing:
    """A chunk that is being filled with images."""

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
        """The files in order, in groups with one batch of readable images each."""
        group: list[Decoded | Unread] = []
        readable = 0
        for file in stream:
            group.append(file)
            readable += isinstance(file, Decoded)
            if readable == self.batch:
                yield group
                group, readable = [], 0
        if group:
            yield group

    def take(self, group: Sequence[Decoded | Unread]) -> None:
        """Run the network on a group of `groups`.

        A smaller last group is padded with black, so that an image's numbers do not depend on its group.
        """
        images = [file for file in group if isinstance(file, Decoded)]
        tallies, columns = self._seen(images) if images else (self.tallies, {})
        # an interrupt above leaves the chunk unchanged
        self.size += len(group)
        self.unread += [file for file in group if isinstance(file, Unread)]
        self.tallies = tallies
        for name, values in columns.items():
            self.columns[name] += values

    def _seen(self, decoded: Sequence[Decoded]) -> tuple[list[Tally], dict[str, list[Any]]]:
        """The tallies with these images, and their rows."""
        pixels = np.zeros((self.batch, *self.model.size, 3), np.uint8)
        pixels[: len(decoded)] = np.stack([image.pixels for image in decoded])
        images = torch.from_numpy(pixels).to(self.model.device).permute(0, 3, 1, 2) / 255  # -> (n, 3, h, w)
        run = self.folded.run(images)
        ids = torch.tensor([image.entry.id for image in decoded])
        tallies, features = [], {}
        for number, layer in enumerate(self.layers):
            maps = as_maps(run.channels(layer)[: len(decoded)])
            tallies.append(self.tallies[number].merged(Tally.of(maps, ids, self.top)))
            features[feature_column(number)] = [run.pooled(layer)[: len(decoded)].float().cpu()]
        classes, probabilities = _best(self.model, run["output"][: len(decoded)])
        return tallies, {
            **features,
            "id": ids.tolist(),
            "path": [os.fsencode(image.entry.path) for image in decoded],
            "version": [image.entry.version for image in decoded],
            "classes": classes,
            "probabilities": probabilities,
            **{
                name: [getattr(image, name) for image in decoded]
                for name in ("sha256", "width", "height", "thumbnail")
            },
        }

    def cut(self) -> Chunk:
        """Return the chunk so far and begin a new one."""
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
        chunk = Chunk(
            number, pa.table(arrays, schema=wanted), tuple(self.tallies), tuple(self.unread), self.size
        )
        self._begin()
        return chunk


def as_maps(values: Tensor) -> Float[Tensor, "n c h w"]:
    """Values (n, c) of a vector layer as maps of one position; maps are returned unchanged."""
    return values[:, :, None, None] if values.ndim == 2 else values


def about_layer(model: Model, layer: str) -> LayerAbout:
    """A layer's channels and extent. Raises `InputError` if unknown, `NetworkError` without channels."""
    if layer == "image":
        raise InputError("'image' is not a layer of the network: choose one of its layers")
    run = model.run(torch.full((1, 3, *model.size), 0.5, device=model.device), (layer,))
    _, channels, rows, columns = as_maps(run.channels(layer)).shape
    return LayerAbout(layer, channels, (rows, columns))


def _best(model: Model, output: Tensor) -> tuple[list[list[int]], list[list[float]]]:
    """The most probable classes and their probabilities; none unless the output is one score per class."""
    if output.ndim != 2:
        return [[]] * len(output), [[]] * len(output)
    best = model.probabilities(output).topk(min(TOP_CLASSES, output.shape[1]))
    return best.indices.tolist(), best.values.tolist()
