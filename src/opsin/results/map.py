"""Photos laid out on a plane: similar ones are near each other."""

import builtins
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageOps
from torch import Tensor
from typing_extensions import TypedDict

from opsin.base.arrays import array, array_of_bytes, whole_numbers
from opsin.base.errors import InputError
from opsin.base.folders import PAGE, storing
from opsin.results.findings import stored_picture
from opsin.results.html import page, webp_uri
from opsin.results.result import Result

# The picture, in pixels; all but the first found by trial.
SIDE = 2400  # the longer side
SIDES = (160, 128, 104, 84, 68, 56)  # of thumbnails; the largest is the size that a scan stores
KEPT = 0.75  # share of the images shown at the smallest size that a larger one must still show
MARGIN = 40
BORDER, THIN = 4, 1  # borders of thumbnails with and without a colour
COVERED = 0.1  # share of a thumbnail that another may cover
GROUND, LINE = "#faf9f7", "#d8d3ca"  # light, of style.css

ATLAS = 4096  # pixels, the most along a side of the page's sheet of all thumbnails
# Six are the bright scheme of Tol: Colour Schemes, 2021; the others contrast with them on light and dark.
COLOURS = "#4477aa #ee6677 #228833 #ccbb44 #66ccee #aa3377 #ee7733 #009988 #8866dd #a0703c #9acd32 #f49ac2"
PALETTE = tuple(COLOURS.split())


@dataclass(frozen=True)
class Spot:
    """An image of a map: its label, its predicted class (`seen`), and a thumbnail as JPEG bytes."""

    path: str
    label: str | None
    seen: str | None
    probability: float | None
    thumbnail: bytes = field(repr=False)

    def size(self, side: int) -> tuple[int, int]:
        """Width and height; the longer is `side`."""
        sides = stored_picture(self.thumbnail).size
        width, height = (max(1, round(length * side / max(sides))) for length in sides)
        return width, height

    def drawn(self, size: tuple[int, int]) -> Image.Image:
        """The thumbnail, resized."""
        return stored_picture(self.thumbnail, whole=True).resize(size, Image.Resampling.BICUBIC)


class MapFacts(TypedDict):
    """A map in `record.json`: each image's path, label, class, probability and position."""

    title: str
    intro: str
    spots: list[tuple[str, str | None, str | None, float | None, float, float]]


@dataclass(frozen=True, eq=False, repr=False)
class Map(Result):
    """Images with their positions in a plane, in the unit of the method; the second coordinate points up."""

    stored_as = MapFacts
    title: str
    intro: str
    places: Float[Tensor, "n 2"]
    spots: tuple[Spot, ...]

    def pictures(self) -> list[tuple[str, Image.Image]]:
        """One picture: thumbnails at their positions, without those that would cover others."""
        least = len(self._laid(SIDES[-1])[1])
        boxes, shown = next(laid for laid in builtins.map(self._laid, SIDES) if len(laid[1]) >= KEPT * least)
        width, height = (boxes[:, 2:].max(0) + MARGIN).tolist()
        sheet = Image.new("RGB", (width, height), GROUND)
        colours = {name: colour for name, colour, _ in legend([spot.label for spot in self.spots])}
        for index in shown:
            left, top, right, bottom = boxes[index].tolist()
            spot, colour = self.spots[index], colours.get(self.spots[index].label or "")
            border = BORDER if colour else THIN
            inner = (max(1, right - left - 2 * border), max(1, bottom - top - 2 * border))
            sheet.paste(ImageOps.expand(spot.drawn(inner), border, colour or LINE), (left, top))
        hidden = ", the others would cover them" if len(shown) < len(boxes) else ""
        return [(f"{len(shown):,} of {len(boxes):,} images shown{hidden}", sheet)]

    def contents(self) -> tuple[str, str]:
        """The title and the number of images."""
        return "shows", f"{self.title}: {len(self.spots):,} images"

    def html(self) -> str:
        """The page with embedded thumbnails."""
        return page("map.html", result=self, atlas=self._atlas(), data=self._data())

    def write_into(self, place: Path) -> None:
        """Write the files of `save` and the page."""
        super().write_into(place)
        with storing():
            (place / PAGE).write_text(self.html(), "utf-8", errors="backslashreplace")

    def _laid(self, side: int) -> tuple[Int[np.ndarray, "n 4"], list[int]]:
        """Left, top, right and bottom of thumbnails of a size in the picture, and which are shown."""
        edge = MARGIN + side / 2
        centres = edge + (SIDE - 2 * edge) * self._unit()
        sizes = np.array([spot.size(side) for spot in self.spots])
        corners = (centres - sizes / 2).round().astype(int)
        boxes = np.concatenate([corners, corners + sizes], 1)
        return boxes, uncovered(boxes)

    def _unit(self) -> Float[np.ndarray, "n 2"]:
        """The positions scaled to [0, 1] along the longer extent, rightwards and downwards."""
        places = self.places.double().numpy() * (1, -1)
        low, high = places.min(0), places.max(0)
        unit: Float[np.ndarray, "n 2"] = (places - low) / (float((high - low).max()) or 1.0)
        return unit

    def _tile(self) -> tuple[int, int]:
        """The side of a tile of the atlas, and the number of tiles per row."""
        columns = ceil(sqrt(len(self.spots)))
        return max(1, min(SIDES[0], ATLAS // columns)), columns

    def _atlas(self) -> str:
        side, columns = self._tile()
        sheet = Image.new("RGB", (columns * side, ceil(len(self.spots) / columns) * side))
        for index, spot in enumerate(self.spots):
            sheet.paste(spot.drawn(spot.size(side)), (index % columns * side, index // columns * side))
        return webp_uri(sheet, max(sheet.size))

    def _data(self) -> dict[str, Any]:
        """What the page's script reads."""
        side, columns = self._tile()
        points = [
            {
                "x": round(x, 5),
                "y": round(y, 5),
                "size": spot.size(side),
                "path": spot.path,
                "label": spot.label,
                "seen": spot.seen,
                "probability": spot.probability,
            }
            for (x, y), spot in zip(self._unit().tolist(), self.spots, strict=True)
        ]
        names = {name: legend([getattr(spot, name) for spot in self.spots]) for name in ("label", "seen")}
        return {"side": side, "columns": columns, "points": points, "legends": names}

    def _to_arrays(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        paths = b"\0".join(os.fsencode(spot.path) for spot in self.spots)  # exact; no path has a zero byte
        arrays = {
            "places": self.places,
            "paths": _as_bytes(paths),
            "thumbnails": _as_bytes(b"".join(spot.thumbnail for spot in self.spots)),
            "ends": torch.tensor([len(spot.thumbnail) for spot in self.spots]).cumsum(0),
        }
        spots = [
            [_readable(spot.path), spot.label, spot.seen, spot.probability, *place]
            for spot, place in zip(self.spots, self.places.tolist(), strict=True)
        ]
        return arrays, {"title": self.title, "intro": self.intro, "spots": spots}

    @classmethod
    def _from_arrays(cls, arrays: dict[str, Tensor], facts: dict[str, Any]) -> "Map":
        stored_spots = facts.pop("spots")
        paths = [os.fsdecode(path) for path in array_of_bytes(arrays, "paths").split(b"\0")]
        data, ends = array_of_bytes(arrays, "thumbnails"), whole_numbers(arrays, "ends", len(stored_spots))
        thumbnails = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        if len(paths) != len(stored_spots):
            raise InputError(f"the array 'paths' names {len(paths)} images, not {len(stored_spots)}")
        spots = [
            Spot(path, label, seen, probability, thumbnail)
            for path, (_, label, seen, probability, *_), thumbnail in zip(
                paths, stored_spots, thumbnails, strict=True
            )
        ]
        return cls(**facts, places=array(arrays, "places", len(stored_spots), 2), spots=tuple(spots))


def uncovered(boxes: Int[np.ndarray, "n 4"]) -> list[int]:
    """The boxes (left, top, right, bottom), in order, that overlap no earlier one by more than a tenth of
    the smaller box.
    """
    shown: list[int] = []
    starts, ends = boxes[:, :2], boxes[:, 2:]
    areas = (ends - starts).prod(1)
    for index, (start, end, area) in enumerate(zip(starts, ends, areas, strict=True)):
        shared = np.minimum(ends[shown], end) - np.maximum(starts[shown], start)
        if (shared.clip(0).prod(1) <= COVERED * np.minimum(areas[shown], area)).all():
            shown.append(index)
    return shown


def legend(names: Sequence[str | None]) -> list[tuple[str, str, int]]:
    """The most frequent names with colour and count; if there are many, only names of several images."""
    counts = sorted(Counter(name for name in names if name).items(), key=lambda item: (-item[1], item[0]))
    if len(counts) > len(PALETTE):
        counts = [item for item in counts if item[1] > 1]
    return [(name, colour, count) for (name, count), colour in zip(counts, PALETTE, strict=False)]


def _as_bytes(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _readable(path: str) -> str:
    """A path as text, even if it is not UTF-8."""
    return path.encode("utf-8", "backslashreplace").decode()
