"""A collection laid out in two dimensions: what is alike to a network lies near each other."""

import builtins
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageOps
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor
from typing_extensions import TypedDict

from opsin.arrays import array, array_of_bytes, whole_numbers
from opsin.collection.findings import jpeg, record
from opsin.collection.store import WNID, Collection, opened, truth
from opsin.collection.tables import Row
from opsin.errors import InputError, NetworkError, at_least, unknown
from opsin.folders import PAGE, storing
from opsin.report import page, webp_uri
from opsin.results import Result, note, noting

Method = Literal["tsne", "pca"]
PAPERS: Mapping[Method, str] = {
    "tsne": "van der Maaten, Hinton: Visualizing Data using t-SNE, 2008",
    "pca": "Pearson: On Lines and Planes of Closest Fit to Systems of Points in Space, 1901",
}
SAID: Mapping[Method, str] = {"tsne": "t-SNE", "pca": "the first two principal components"}
COMPONENTS = 50  # of the principal component analysis before t-SNE; the paper takes 30
PERPLEXITY = 30.0  # of t-SNE, less where there are few images
FEWEST = 10  # images for t-SNE: of fewer it makes places that mean nothing, found by trial
ALIKE = 1e-6  # directions that differ by no more in any channel are the same but for rounding
SPREAD = 1e-4  # standard deviation of the first coordinate where t-SNE starts, scikit-learn's own

# Of the picture, in pixels, all but the first found by trial.
SIDE = 2400  # the longer one
SIDES = (160, 128, 104, 84, 68, 56)  # of thumbnails; the largest is as a scan keeps them
KEPT = 0.75  # share of the images shown at the smallest size that a larger one must still show
MARGIN = 40
BORDER, THIN = 4, 1  # of a thumbnail with a colour, and of one without
COVERED = 0.1  # share of a thumbnail that another may cover
GROUND, LINE = "#faf9f7", "#d8d3ca"  # light, of style.css

ATLAS = 4096  # pixels, the side of the page's picture of all thumbnails: so its size does not grow with them
# Six are the bright scheme of Tol: Colour Schemes, 2021; the others stand off from them on light and dark.
COLOURS = "#4477aa #ee6677 #228833 #ccbb44 #66ccee #aa3377 #ee7733 #009988 #8866dd #a0703c #9acd32 #f49ac2"
PALETTE = tuple(COLOURS.split())


@dataclass(frozen=True)
class Spot:
    """An image of a map: its label, the class it is seen as, and a thumbnail as the bytes of a JPEG."""

    path: str
    label: str | None
    seen: str | None
    probability: float | None
    thumbnail: bytes

    def size(self, side: int) -> tuple[int, int]:
        """Width and height where the longer is `side`."""
        sides = jpeg(self.thumbnail).size
        width, height = (max(1, round(length * side / max(sides))) for length in sides)
        return width, height

    def drawn(self, size: tuple[int, int]) -> Image.Image:
        """The thumbnail at a size."""
        return jpeg(self.thumbnail, whole=True).resize(size, Image.Resampling.BICUBIC)


class MapFacts(TypedDict):
    """What `record.json` says of a map: each image's path, label, class, probability and place."""

    title: str
    intro: str
    spots: list[tuple[str, str | None, str | None, float | None, float, float]]


@dataclass(frozen=True, eq=False)
class Map(Result):
    """Images with their places in a plane, in the unit of the method; the second coordinate points up."""

    stored_as = MapFacts
    title: str
    intro: str
    places: Float[Tensor, "n 2"]
    spots: tuple[Spot, ...]

    def pictures(self) -> list[tuple[str, Image.Image]]:
        """One picture: thumbnails at their places, without those that would cover others."""
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

    def html(self) -> str:
        """The page."""
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
        """The places with the longer extent one, from zero on, rightwards and downwards."""
        places = self.places.double().numpy() * (1, -1)
        low, high = places.min(0), places.max(0)
        unit: Float[np.ndarray, "n 2"] = (places - low) / (float((high - low).max()) or 1.0)
        return unit

    def _tile(self) -> tuple[int, int]:
        """The side of a tile of the atlas, and how many stand in a row."""
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

    def _take_apart(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
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
    def _put_together(cls, arrays: dict[str, Tensor], facts: dict[str, Any]) -> "Map":
        told = facts.pop("spots")
        paths = [os.fsdecode(path) for path in array_of_bytes(arrays, "paths").split(b"\0")]
        data, ends = array_of_bytes(arrays, "thumbnails"), whole_numbers(arrays, "ends", len(told))
        thumbnails = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        if len(paths) != len(told):
            raise InputError(f"the array 'paths' names {len(paths)} images, not {len(told)}")
        spots = [
            Spot(path, label, seen, probability, thumbnail)
            for path, (_, label, seen, probability, *_), thumbnail in zip(
                paths, told, thumbnails, strict=True
            )
        ]
        return cls(**facts, places=array(arrays, "places", len(told), 2), spots=tuple(spots))


def map(
    collection: Collection | str | Path,
    *,
    layer: str | None = None,
    method: Method = "tsne",
    most: int = 2000,
    seed: int = 0,
) -> Map:
    """Lay the images of a collection out in a plane, so that those alike in a layer's features lie near.

    The pooled features f are normalised, f / |f|, so that distances are those of their directions (the
    square is twice the cosine distance). By `pca` the places are their first two principal components; by
    `tsne` their first 50 go through t-SNE with perplexity 30, or a third of the other images where these
    are few; fewer than ten lie by principal components. By default the layer is the collection's first.
    Of more than `most` images a random sample is laid out. Labels that are a class's index or WordNet
    number are shown with its name.

    Raises `InputError` on fewer than two images, `NetworkError` on features that are no finite numbers.
    Departs from the t-SNE paper: neighbours and repulsion are approximated (van der Maaten: Accelerating
    t-SNE using Tree-Based Algorithms, 2014), and it starts from the first two components, not at random.
    """
    collection = opened(collection)
    layer = collection.about.layers[collection.layer(layer)].name
    if method not in get_args(Method):
        raise unknown("method", method, get_args(Method))
    at_least(2, most=most)
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is at least 0 and below 2^32, not {seed}")
    if (n := len(collection)) < 2:
        raise InputError(f"a map needs at least 2 images, {collection.folder} holds {n}")
    with noting() as notes:
        chosen = _sample(n, most, seed)
        features = collection.features(layer, chosen)
        if not np.isfinite(features).all():
            raise NetworkError(f"the features of layer {layer!r} hold NaN or infinite numbers")
        places = laid_out(features, method, seed)
    spots = tuple(_spot(collection, row) for row in collection.rows(chosen))
    settings = {"layer": layer, "method": method, "most": most, "seed": seed}
    return Map(
        f"{len(chosen):,} images as {collection.about.model['name']} sees them",
        f"What lies near each other is alike in the features at {layer}, laid out by {SAID[method]}.",
        torch.from_numpy(places),
        spots,
        record=record(collection, "map", PAPERS[method], settings, notes),
    )


def laid_out(features: Float[np.ndarray, "n c"], method: Method, seed: int) -> Float[np.ndarray, "n 2"]:
    """Places of features in the plane; by one thread, so that the bits do not depend on their number."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    units = features / np.where(lengths > 0, lengths, 1)
    if np.abs(units - units[0]).max() <= ALIKE:
        note("all features have the same direction: the images lie at one place")
        return np.zeros((len(units), 2), np.float32)
    if method == "tsne" and len(units) < FEWEST:
        note(f"{len(units)} images are too few for t-SNE: laid out by {SAID['pca']}")
        method = "pca"
    with threadpool_limits(1):
        count = min(COMPONENTS if method == "tsne" else 2, *units.shape)
        places: Float[np.ndarray, "n c"] = PCA(count, random_state=seed).fit_transform(units)
        if count < 2:  # a single channel has no second component
            places = np.pad(places, ((0, 0), (0, 1)))
        if method == "tsne":
            start = SPREAD * places[:, :2] / places[:, 0].std()
            perplexity = min(PERPLEXITY, (len(places) - 1) / 3)
            places = TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(places)
    return places


def uncovered(boxes: Int[np.ndarray, "n 4"]) -> list[int]:
    """The boxes (left, top, right, bottom), in their order, that share no more than a tenth of the smaller
    with any before.
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
    """The most frequent names with a colour and their number; of many names, none that stands alone."""
    counts = sorted(Counter(name for name in names if name).items(), key=lambda one: (-one[1], one[0]))
    if len(counts) > len(PALETTE):
        counts = [one for one in counts if one[1] > 1]
    return [(name, colour, count) for (name, count), colour in zip(counts, PALETTE, strict=False)]


def _sample(n: int, most: int, seed: int) -> list[int]:
    """The rows that are laid out."""
    if n <= most:
        return list(range(n))
    note(f"a random sample of {most:,} of the {n:,} images is laid out")
    drawn = np.random.default_rng(seed).choice(n, most, replace=False)
    return sorted(drawn.tolist())


def _spot(collection: Collection, row: Row) -> Spot:
    names = collection.about.labels or ()
    label = row.label
    if label and names and (label.isdecimal() or WNID.fullmatch(label)):
        index = truth(label, names)
        label = label if index is None else f"{collection.label(index)} ({label})"
    seen = collection.label(row.classes[0]) if row.classes else None
    probability = row.probabilities[0] if row.probabilities else None
    return Spot(row.path, label, seen, probability, row.thumbnail)


def _as_bytes(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _readable(path: str) -> str:
    """A path as text, also where it is no UTF-8."""
    return path.encode("utf-8", "backslashreplace").decode()
