"""Grey-level co-occurrence matrices with their features."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from typing_extensions import TypedDict  # pydantic reads typing's from Python 3.12 on

from opsin.base.arrays import array
from opsin.base.errors import InputError
from opsin.base.folders import FACTS, PAGE, storing
from opsin.base.records import as_json
from opsin.images import colour
from opsin.results.findings import Findings, Shot, Table
from opsin.results.indexing import chosen
from opsin.results.result import Result, plain

SIDE = 224  # pixels of a drawn matrix, about
RAMP = 0.1  # of a drawn matrix: the width of the grey levels along its sides
OUTSIDE = (0.45, 0.55, 0.75)  # the colour of what the mask leaves out
DIGITS = 6  # of a feature in a table


class CooccurrenceFacts(TypedDict):
    """Matrices in `record.json`: the names of channels, of offsets and what is over all, of features."""

    channels: list[str]
    columns: list[str]
    names: list[str]


@dataclass(frozen=True, eq=False, repr=False)
class Cooccurrence(Result):
    """Matrices (n, c, k, L, L) of n images, c channels and k offsets, and the features of each.

    `levels` (n, c, h, w) are the images reduced to their L grey levels, counted from 0, -1 outside the mask.
    `values` (n, c, k + 1, f) are the features: of every offset by itself, then over all offsets; `features`
    are the latter by name, each (n, c). Images, channels, offsets and features are in the order of their
    names in `channels`, `columns` and `names`.
    """

    stored_as = CooccurrenceFacts
    indexed = True
    images: Float[Tensor, "n 3 h w"]
    levels: Float[Tensor, "n c h w"]
    matrices: Float[Tensor, "n c k L L"]
    values: Float[Tensor, "n c columns f"]
    channels: tuple[str, ...]
    columns: tuple[str, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("images", "levels", "matrices", "values"):
            object.__setattr__(self, name, plain(getattr(self, name)))

    @property
    def features(self) -> dict[str, Float[Tensor, "n c"]]:
        """The features over all offsets by name."""
        return {name: self.values[:, :, -1, index] for index, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: SupportsIndex | slice) -> "Cooccurrence":
        rows = chosen(index, len(self), "images")
        kept = {name: getattr(self, name)[rows] for name in ("images", "levels", "matrices", "values")}
        return replace(self, **kept)

    def __iter__(self) -> Iterator["Cooccurrence"]:
        return (self[index] for index in range(len(self)))

    def contents(self) -> tuple[str, str]:
        """The number of levels and of offsets, and two features."""
        shown = ("contrast", "correlation")
        first = ", ".join(f"{name} {float(self.features[name][0, 0]):.4g}" for name in shown)
        count, offsets = self.matrices.shape[-1], len(self.columns) - 1
        return "counted", f"{len(self)} images, {count} levels, {offsets} offsets; {first}"

    def pictures(self) -> list[tuple[str, Image.Image]]:
        """Every image reduced to its levels, then its matrices."""
        return [
            (f"image {index} {caption}", picture)
            for index in range(len(self))
            for caption, picture in self._drawn(index)
        ]

    def files(self) -> list[tuple[str, Image.Image]]:
        """One picture of the levels, and one for each matrix."""
        images = [f"image {index}" for index in range(len(self))] if len(self) > 1 else [""]
        return self._named([(image, caption) for image in images for caption in self._captions()])

    def tables(self) -> tuple[Table, ...]:
        """The features of every image and channel: a row each, a column for each offset and over all."""
        found = []
        for index, image in enumerate(self.values):
            for channel, part in zip(self.channels, image, strict=True):
                rows: tuple[tuple[str | float, ...], ...] = tuple(
                    (name.replace("_", " "), *_rounded(part[:, number]))
                    for number, name in enumerate(self.names)
                )
                title = ", ".join([f"Image {index}"] * (len(self) > 1) + [channel])
                found.append(Table(title.capitalize(), ("feature", *self.columns), rows))
        return tuple(found)

    def findings(self) -> Findings:
        """Pictures and tables as a page shows them."""
        shots = []
        for index, image in enumerate(self.images):
            group = f"image {index}"
            shots.append(Shot.of(group, "photo", colour.photo(image), lead=True))
            shots += [Shot.of(group, caption, picture) for caption, picture in self._drawn(index)]
        intro = (
            "A matrix says how often a pixel of one grey level (left) has one of another (top) beside it. "
            "Colours are by the square root, so that rare pairs can be seen too."
        )
        return Findings(
            "Grey-level co-occurrence",
            intro,
            tuple(shots),
            self.tables(),
            self._facts(),
            record=self.record,
        )

    def write_into(self, place: Path) -> None:
        """Write the files of `save`, the page, and the features as `features.csv` and `facts.json`."""
        super().write_into(place)
        with storing():
            if self.record is not None:
                (place / PAGE).write_text(self.findings().html(), "utf-8")
            (place / FACTS).write_text(as_json(self._facts()), "utf-8")
            with (place / "features.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["image", "channel", "feature", *self.columns])
                for index, image in enumerate(self.values):
                    for channel, part in zip(self.channels, image, strict=True):
                        for number, name in enumerate(self.names):
                            writer.writerow([index, channel, name, *(float(one) for one in part[:, number])])

    def _facts(self) -> dict[str, Any]:
        """The features by image, channel and offset."""
        images = [
            {
                channel: {
                    column: dict(zip(self.names, row, strict=True))
                    for column, row in zip(self.columns, part.tolist(), strict=True)
                }
                for channel, part in zip(self.channels, image, strict=True)
            }
            for image in self.values
        ]
        return {"levels": self.matrices.shape[-1], "images": images}

    def _captions(self) -> list[str]:
        """What stands below the pictures of one image."""
        several = len(self.channels) > 1
        offsets = self.columns[:-1]
        matrices = [f"{channel} {one}" if several else one for channel in self.channels for one in offsets]
        return ["levels", *matrices]

    def _drawn(self, index: int) -> list[tuple[str, Image.Image]]:
        """The captions and pictures of one image."""
        levels = _reduced(self.levels[index], self.matrices.shape[-1])
        pictures = [levels, *(_matrix(one) for one in self.matrices[index].flatten(0, 1))]
        return list(zip(self._captions(), pictures, strict=True))

    def _arrays(self) -> dict[str, Tensor]:
        return {"the matrices": self.matrices, "the features": self.values}

    def _to_arrays(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        arrays = {name: getattr(self, name) for name in ("images", "levels", "matrices", "values")}
        facts = {name: list(getattr(self, name)) for name in ("channels", "columns", "names")}
        return arrays, facts

    @classmethod
    def _from_arrays(cls, arrays: dict[str, Tensor], facts: dict[str, Any]) -> "Cooccurrence":
        channels, columns, names = (tuple(facts.pop(name)) for name in ("channels", "columns", "names"))
        if not {"contrast", "correlation"} <= set(names):
            raise InputError("contrast and correlation are missing among the features")
        images = array(arrays, "images", None, 3, None, None)
        count = len(images)
        matrices = array(arrays, "matrices", count, len(channels), len(columns) - 1, None, None)
        values = array(arrays, "values", count, len(channels), len(columns), len(names))
        levels = array(arrays, "levels", count, len(channels), *images.shape[-2:])
        return cls(images, levels, matrices, values, channels, columns, names, **facts)


def _rounded(values: Tensor) -> list[float]:
    """Numbers as a table shows them."""
    return [float(f"{one:.{DIGITS}g}") for one in values.tolist()]


def _reduced(levels: Float[Tensor, "c h w"], count: int) -> Image.Image:
    """An image in its levels, from black to white."""
    outside = levels[:1] < 0
    grey = (levels / max(1, count - 1)).expand(3, -1, -1)
    return colour.photo(torch.where(outside, torch.tensor(OUTSIDE)[:, None, None], grey).float())


def _matrix(matrix: Float[Tensor, "L L"]) -> Image.Image:
    """A matrix as a picture, its grey levels along the left side and the top."""
    count = len(matrix)
    cell = max(1, SIDE // count)
    heat = np.asarray(colour.heat(matrix.sqrt()[None], signed=False)).repeat(cell, 0).repeat(cell, 1)
    wide = max(2, round(RAMP * len(heat)))
    ramp = np.linspace(0, 255, count).round().astype(np.uint8).repeat(cell)
    drawn = np.full((len(heat) + wide, len(heat) + wide, 3), 255, np.uint8)
    drawn[: wide - 1, wide:] = ramp[None, :, None]
    drawn[wide:, : wide - 1] = ramp[:, None, None]
    drawn[wide:, wide:] = heat
    return Image.fromarray(drawn)
