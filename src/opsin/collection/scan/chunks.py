"""What an engine is asked, and the chunks that it gives."""

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
    """What the network made of some files: their rows, a tally a layer, and what could not be read."""

    number: int
    rows: pa.Table
    tallies: tuple[Tally, ...]
    unread: tuple[Unread, ...]
    files: int


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
        raise InputError("the image is not a layer of the network")
    run = model.run(torch.full((1, 3, *model.size), 0.5, device=model.device), (layer,))
    _, channels, rows, columns = as_maps(run.channels(layer)).shape
    return LayerAbout(layer, channels, (rows, columns))


def _best(model: Model, output: Tensor) -> tuple[list[list[int]], list[list[float]]]:
    """The most probable classes and their probabilities; none where the output is not one score a class."""
    if output.ndim != 2:
        return [[]] * len(output), [[]] * len(output)
    best = model.probabilities(output).topk(min(TOP_CLASSES, output.shape[1]))
    return best.indices.tolist(), best.values.tolist()
