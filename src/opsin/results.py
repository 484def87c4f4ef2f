"""What a technique returns: frozen data that draws, saves and loads itself."""

import base64
import html
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, NotRequired, cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from typing_extensions import TypedDict  # pydantic reads typing's from Python 3.12 on

from opsin import colour
from opsin.arrays import array, read_arrays
from opsin.errors import InputError
from opsin.folders import RECORD, VALUES, storing, writing
from opsin.records import Record, as_json, read_json

CAUTION = "Caution: "

_notes: ContextVar[list[str] | None] = ContextVar("notes", default=None)


def note(text: str) -> None:
    """Write a line into the record of the technique that is running; without one, nothing happens.

    A line that begins with `CAUTION` stands beside the picture on the page.
    """
    notes = _notes.get()
    if notes is not None and text not in notes:
        notes.append(text)


@contextmanager
def noting() -> Iterator[list[str]]:
    """Collect the notes of the block."""
    notes: list[str] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


class Stored(TypedDict):
    """What `record.json` says of any result."""

    kind: str
    record: NotRequired[Record | None]


class HeatmapFacts(TypedDict):
    """What `record.json` says of a heatmap besides."""

    signed: bool
    overlay: bool


class GalleryFacts(TypedDict):
    """What `record.json` says of a gallery besides: each panel's group, title and caption."""

    panels: list[tuple[str, str, str]]


class PicturesFacts(TypedDict):
    """What `record.json` says of pictures besides: each one's group, caption and whether it was made."""

    panels: list[tuple[str, str, bool]]
    film: bool
    stopped: str


@dataclass(frozen=True, eq=False)
class Result(ABC):
    """Data with the record of how it was made.

    `stored_as` is the shape of what a kind of result keeps in `record.json` besides kind and record.
    """

    kinds: ClassVar[dict[str, type["Result"]]] = {}
    stored_as: ClassVar[type]
    record: Record | None = field(default=None, kw_only=True)

    def __init_subclass__(cls) -> None:
        Result.kinds[cls.__name__] = cls

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    __hash__ = None  # type: ignore[assignment]

    @abstractmethod
    def pictures(self) -> list[tuple[str, Image.Image]]:
        """The result as pictures, each with a caption."""

    def not_finite(self) -> list[str]:
        """Which of its arrays hold NaN or infinite numbers, by name."""
        return [name for name, values in self._arrays().items() if not values.isfinite().all()]

    def _arrays(self) -> dict[str, Tensor]:
        """What was computed, by the names that a reader knows it by."""
        return self._take_apart()[0]

    @abstractmethod
    def _take_apart(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Arrays and JSON facts of the shape `stored_as`, from which `_put_together` makes the same value."""

    @classmethod
    @abstractmethod
    def _put_together(cls, arrays: dict[str, Tensor], facts: dict[str, Any]) -> "Result":
        """Raises `InputError` where the arrays do not fit."""

    def save(self, folder: str | Path) -> Path:
        """Write pictures (PNG, of findings JPEG), raw arrays (`values.npz`) and `record.json` into `folder`.

        All files are written or none. Raises `InputError` where the folder cannot be written, or holds
        something that Opsin did not write.
        """
        with writing(folder) as place:
            self.write_into(place)
        return Path(folder)

    def write_into(self, place: Path) -> None:
        """Write the files of `save` into an existing folder."""
        with storing():
            self._draw_into(place)
        self.write_data(place)

    def write_data(self, place: Path, *, compress: bool = True) -> None:
        """Write what `load` reads into an existing folder, without pictures."""
        arrays, facts = self._take_apart()
        about = {"kind": type(self).__name__, **facts, "record": asdict(self.record) if self.record else None}
        save = np.savez_compressed if compress else np.savez
        with storing():
            save(place / VALUES, **cast(Any, {k: v.numpy() for k, v in arrays.items()}))
            (place / RECORD).write_text(as_json(about), "utf-8")

    def _draw_into(self, place: Path) -> None:
        for index, (_, picture) in enumerate(self.pictures()):
            picture.save(place / f"{index:03d}.png")

    @staticmethod
    def load(folder: str | Path) -> "Result":
        """The result that `save` wrote into `folder`, equal to it.

        The folder may come from anybody: what is in it is read as data. Raises `InputError`, naming file and
        fault, where it holds no result or a damaged one.
        """
        place = Path(folder)
        if not (place / RECORD).exists():
            raise InputError(f"{place} holds no {RECORD}: not a saved result")
        kind = read_json(place / RECORD, Stored)["kind"]
        if kind not in Result.kinds:  # of a collection, perhaps: these kinds stand on this module
            from opsin.collection import findings, map  # noqa: F401, PLC0415
        if kind not in Result.kinds:
            inner = sorted(str(path.parent) for path in place.rglob(f"*/{VALUES}"))
            if not inner:
                raise InputError(f"{place / RECORD} is damaged: {kind!r} is no kind of result")
            raise InputError(f"{place} holds several results, load one of them: {', '.join(inner[:6])}")
        stored = read_json(place / RECORD, Stored)
        facts: dict[str, Any] = read_json(place / RECORD, Result.kinds[kind].stored_as)
        own = {name: fact for name, fact in facts.items() if name not in Stored.__annotations__}
        arrays = read_arrays(place / VALUES)
        try:
            return Result.kinds[kind]._put_together(arrays, {**own, "record": stored.get("record")})
        except InputError as error:
            raise InputError(f"{place / VALUES} does not fit its {RECORD}: {error}") from error

    def _repr_html_(self) -> str:
        title = html.escape(self.record.technique if self.record else type(self).__name__)
        cells = "".join(
            f'<figure style="margin:0"><img src="{data_uri(picture)}" style="max-width:224px">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            for caption, picture in self.pictures()
        )
        return f'<b>{title}</b><div style="display:flex;flex-wrap:wrap;gap:8px">{cells}</div>'


@dataclass(frozen=True, eq=False)
class Heatmap(Result):
    """One map an image, raw: the sign and the unit of the technique's formula are kept.

    `values` may be coarser than `images` (a layer's resolution). `signed` maps have a neutral zero;
    `overlay` maps are drawn over the photo. `extras` are further arrays that the technique gives.
    """

    stored_as = HeatmapFacts
    values: Float[Tensor, "n c h w"]
    images: Float[Tensor, "n 3 H W"]
    signed: bool
    overlay: bool
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _plain(self.values))
        object.__setattr__(self, "images", _plain(self.images))
        object.__setattr__(self, "extras", {name: _plain(extra) for name, extra in self.extras.items()})

    def _arrays(self) -> dict[str, Tensor]:
        maps = {f"the map of image {index}": values for index, values in enumerate(self.values)}
        return maps | {f"extras[{name!r}]": values for name, values in self.extras.items()}

    def blank(self) -> list[int]:
        """The images whose values are all zero."""
        return [index for index, values in enumerate(self.values) if not values.any()]

    def upsampled(self) -> Float[Tensor, "n c H W"]:
        """The values at the images' resolution, bilinear."""
        return interpolate(self.values, self.images.shape[-2:], mode="bilinear", align_corners=False)

    def pictures(self) -> list[tuple[str, Image.Image]]:
        """One picture an image."""
        drawn = []
        for index, (values, image) in enumerate(zip(self.upsampled(), self.images, strict=True)):
            photo = image if self.overlay else None
            drawn.append((f"image {index}", colour.heat(values, signed=self.signed, photo=photo)))
        return drawn

    def _take_apart(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        extras = {f"extra_{name}": value for name, value in self.extras.items()}
        arrays = {"values": self.values, "images": self.images, **extras}
        return arrays, {"signed": self.signed, "overlay": self.overlay}

    @classmethod
    def _put_together(cls, arrays: dict[str, Tensor], facts: dict[str, Any]) -> "Heatmap":
        images = array(arrays, "images", None, 3, None, None)
        values = array(arrays, "values", len(images), None, None, None)
        extras = {k.removeprefix("extra_"): v for k, v in arrays.items() if k not in ("images", "values")}
        return cls(values, images, extras=extras, **facts)


@dataclass(frozen=True, eq=False)
class Panel:
    """Tiles that are looked at together, on one colour scale; `group` is what several panels share."""

    group: str
    title: str
    caption: str
    values: Float[Tensor, "k c h w"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _plain(self.values))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Panel) and all(
            _equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)
        )

    __hash__ = None  # type: ignore[assignment]

    def picture(self) -> Image.Image:
        """The tiles as one grid: three channels in colour, one on the signed scale, zero in the middle."""
        return colour.grid(self.values)


@dataclass(frozen=True, eq=False)
class Gallery(Result):
    """Pictures with captions, in groups."""

    stored_as = GalleryFacts
    panels: tuple[Panel, ...]

    def pictures(self) -> list[tuple[str, Image.Image]]:
        """One picture a panel."""
        return [(f"{p.group} {p.title} {p.caption}".strip(), p.picture()) for p in self.panels]

    def _arrays(self) -> dict[str, Tensor]:
        return {f"{p.group}: {p.title}": p.values for p in self.panels}

    def _take_apart(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        arrays = {f"{index:05d}": panel.values for index, panel in enumerate(self.panels)}
        return arrays, {"panels": [[p.group, p.title, p.caption] for p in self.panels]}

    @classmethod
    def _put_together(cls, arrays: dict[str, Tensor], facts: dict[str, Any]) -> "Gallery":
        texts = facts.pop("panels")
        panels = [
            Panel(g, t, c, array(arrays, f"{index:05d}", None, (1, 3), None, None))
            for index, (g, t, c) in enumerate(texts)
        ]
        return cls(tuple(panels), **facts)


@dataclass(frozen=True, eq=False)
class Picture:
    """An image in [0, 1] with a caption; `group` is what several pictures share.

    A picture was `made` by the technique, or was given to it and stands beside for comparison.
    """

    group: str
    caption: str
    image: Float[Tensor, "3 h w"]
    made: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "image", _plain(self.image))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and all(
            _equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Pictures(Result):
    """Images that were made, with captions, in groups.

    `numbers` are what was measured on the way (the score by step, an error a layer). `state` holds what
    is needed to go on climbing: see `opsin.resume`. `stopped` says where the climb was ended before its last
    step; it is empty where it came to its end. Of a `film` what was made are its frames.
    """

    stored_as = PicturesFacts
    panels: tuple[Picture, ...]
    film: bool = False
    stopped: str = ""
    numbers: Mapping[str, Tensor] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("numbers", "state"):
            object.__setattr__(self, name, {k: _plain(v) for k, v in getattr(self, name).items()})

    @property
    def images(self) -> Float[Tensor, "n 3 h w"]:
        """What was made, one tensor. Raises `InputError` where the pictures are of several sizes."""
        made = [panel.image for panel in self.panels if panel.made]
        if len(sizes := {image.shape for image in made}) > 1:
            raise InputError(f"pictures of {len(sizes)} sizes are no one tensor: take `panels`")
        return torch.stack(made)

    def pictures(self) -> list[tuple[str, Image.Image]]:
        """One picture an image."""
        return [(f"{p.group} {p.caption}".strip(), colour.photo(p.image)) for p in self.panels]

    def _arrays(self) -> dict[str, Tensor]:
        return {f"the picture {p.group!r}": p.image for p in self.panels if p.made} | dict(self.numbers)

    def _take_apart(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        arrays = {f"{index:05d}": panel.image for index, panel in enumerate(self.panels)}
        kept = {f"{kind}.{k}": v for kind in ("numbers", "state") for k, v in getattr(self, kind).items()}
        return arrays | kept, {
            "panels": [[p.group, p.caption, p.made] for p in self.panels],
            "film": self.film,
            "stopped": self.stopped,
        }

    def write_into(self, place: Path) -> None:
        """Write the files of `save`, and of a film `animation.webp`."""
        super().write_into(place)
        if self.film:
            with storing():
                colour.animate(list(self.images), place / "animation.webp")

    @classmethod
    def _put_together(cls, arrays: dict[str, Tensor], facts: dict[str, Any]) -> "Pictures":
        texts = facts.pop("panels")
        panels = [
            Picture(g, c, array(arrays, f"{index:05d}", 3, None, None), made)
            for index, (g, c, made) in enumerate(texts)
        ]
        kept: dict[str, Any] = {"numbers": {}, "state": {}}
        for name, value in arrays.items():
            kind, _, rest = name.partition(".")
            if kind in kept:
                kept[kind][rest] = value
        return cls(tuple(panels), **kept, **facts)


def data_uri(picture: Image.Image) -> str:
    """The picture as a PNG inside a `data:` address, for a page that needs no other file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _plain(values: Tensor) -> Tensor:
    """On the CPU, without a graph, in a dtype that NumPy has."""
    values = values.detach().cpu().contiguous().clone()  # not the network's or the caller's own
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (
            a.dtype == b.dtype
            and a.shape == b.shape
            and np.array_equal(a.numpy(), b.numpy(), equal_nan=a.is_floating_point())
        )
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    return bool(a == b)
