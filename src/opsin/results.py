"""What a technique returns: frozen data that draws, saves and loads itself."""

import base64
import html
import io
import json
import math
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from opsin import colour
from opsin.errors import InputError

RECORD = "record.json"
VALUES = "values.npz"
PAGE = "index.html"
FACTS = "facts.json"
OWN_FILES = re.compile(rf"{RECORD}|{VALUES}|{PAGE}|{FACTS}|\d{{3,}}\.(png|jpg)|(animation|steps)\.(gif|webp)")

CAUTION = "Caution: "

_notes: ContextVar[list[str] | None] = ContextVar("notes", default=None)


def note(text: str) -> None:
    """Write a line into the record of the technique that is running; without one, nothing happens.

    A line that begins with `CAUTION` stands beside the picture on the page.
    """
    notes = _notes.get()
    if notes is not None and text not in notes:
        notes.append(text)


def as_json(about: object) -> str:
    """Valid JSON: numbers that are not finite are null."""

    def finite(value: object) -> object:
        if isinstance(value, dict):
            return {key: finite(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [finite(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(about), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def noting() -> Iterator[list[str]]:
    """Collect the notes of the block."""
    notes: list[str] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


@dataclass(frozen=True)
class Record:
    """How a result was made: enough to make it again."""

    technique: str
    paper: str
    arguments: Mapping[str, Any]
    model: Mapping[str, Any]
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Result(ABC):
    """Data with the record of how it was made."""

    kinds: ClassVar[dict[str, type["Result"]]] = {}
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

    @abstractmethod
    def _take_apart(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Arrays and JSON facts, from which `_put_together` makes the same value."""

    @classmethod
    @abstractmethod
    def _put_together(cls, arrays: dict[str, Tensor], facts: dict[str, Any]) -> "Result": ...

    def save(self, folder: str | Path) -> Path:
        """Write pictures (PNG, of findings JPEG), raw arrays (`values.npz`) and `record.json` into `folder`.

        The folder appears whole or not at all. Raises `InputError` where it cannot be written or
        holds something that is not a result.
        """
        with writing(folder) as place:
            self.write_into(place)
        return Path(folder)

    def write_into(self, place: Path) -> None:
        """Write the files of `save` into an existing folder."""
        arrays, facts = self._take_apart()
        self._draw_into(place)
        np.savez_compressed(place / VALUES, **cast(Any, {k: v.numpy() for k, v in arrays.items()}))
        about = {"kind": type(self).__name__, **facts, "record": asdict(self.record) if self.record else None}
        (place / RECORD).write_text(as_json(about), "utf-8")

    def _draw_into(self, place: Path) -> None:
        for index, (_, picture) in enumerate(self.pictures()):
            picture.save(place / f"{index:03d}.png")

    @staticmethod
    def load(folder: str | Path) -> "Result":
        """The result that `save` wrote into `folder`, equal to it."""
        place = Path(folder)
        if not (place / RECORD).is_file():
            raise InputError(f"{place} holds no {RECORD}: not a saved result")
        facts = json.loads((place / RECORD).read_text("utf-8"))
        if facts["kind"] not in Result.kinds:  # of a collection, perhaps: these kinds stand on this module
            from opsin.collection import findings, map  # noqa: F401, PLC0415
        if facts["kind"] not in Result.kinds:
            inner = sorted(str(path.parent) for path in place.rglob(VALUES))
            raise InputError(f"{place} holds several results, load one of them: {', '.join(inner[:6])}")
        with np.load(place / VALUES, allow_pickle=False) as stored:
            arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
        record = facts.pop("record")
        facts["record"] = Record(**{**record, "notes": tuple(record["notes"])}) if record else None
        return Result.kinds[facts.pop("kind")]._put_together(arrays, facts)

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

    values: Float[Tensor, "n c h w"]
    images: Float[Tensor, "n 3 H W"]
    signed: bool
    overlay: bool
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _plain(self.values))
        object.__setattr__(self, "images", _plain(self.images))
        object.__setattr__(self, "extras", {name: _plain(extra) for name, extra in self.extras.items()})

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
        values, images = arrays.pop("values"), arrays.pop("images")
        return cls(values, images, extras={k.removeprefix("extra_"): v for k, v in arrays.items()}, **facts)


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

    panels: tuple[Panel, ...]

    def pictures(self) -> list[tuple[str, Image.Image]]:
        """One picture a panel."""
        return [(f"{p.group} {p.title} {p.caption}".strip(), p.picture()) for p in self.panels]

    def _take_apart(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        arrays = {f"{index:05d}": panel.values for index, panel in enumerate(self.panels)}
        return arrays, {"panels": [[p.group, p.title, p.caption] for p in self.panels]}

    @classmethod
    def _put_together(cls, arrays: dict[str, Tensor], facts: dict[str, Any]) -> "Gallery":
        texts = facts.pop("panels")
        panels = [Panel(g, t, c, arrays[f"{index:05d}"]) for index, (g, t, c) in enumerate(texts)]
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
    is needed to go on climbing: see `opsin.resume`. Of a `film` what was made are its frames.
    """

    panels: tuple[Picture, ...]
    film: bool = False
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

    def _take_apart(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        arrays = {f"{index:05d}": panel.image for index, panel in enumerate(self.panels)}
        kept = {f"{kind}.{k}": v for kind in ("numbers", "state") for k, v in getattr(self, kind).items()}
        return arrays | kept, {
            "panels": [[p.group, p.caption, p.made] for p in self.panels],
            "film": self.film,
        }

    def write_into(self, place: Path) -> None:
        """Write the files of `save`, and of a film `animation.webp`."""
        super().write_into(place)
        if self.film:
            colour.animate(list(self.images), place / "animation.webp")

    @classmethod
    def _put_together(cls, arrays: dict[str, Tensor], facts: dict[str, Any]) -> "Pictures":
        texts = facts.pop("panels")
        panels = [Picture(g, c, arrays[f"{index:05d}"], made) for index, (g, c, made) in enumerate(texts)]
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


@contextmanager
def writing(folder: str | Path) -> Iterator[Path]:
    """A folder to fill that takes the place of `folder` at the end, or vanishes on an error.

    Raises `InputError` where it cannot be written, or where `folder` holds a file that Opsin did not write.
    """
    target = Path(folder).resolve()
    if target.exists() and not _is_ours(target):
        raise InputError(f"{folder} holds something that Opsin did not write: choose another output folder")
    fresh, made = None, []
    try:
        made = [parent for parent in target.parents if not parent.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        yield fresh
        fresh.chmod(0o755)
        if target.exists():
            before = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            target.rename(before / "before")
            fresh.rename(target)
            shutil.rmtree(before)
        else:
            fresh.rename(target)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error
    finally:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # it holds the result
                parent.rmdir()


def _is_ours(folder: Path) -> bool:
    """Whether a folder is empty, or holds a record and nothing that Opsin does not write."""
    if not folder.is_dir():
        return False
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    return not files or (
        (folder / RECORD).is_file() and all(OWN_FILES.fullmatch(path.name) for path in files)
    )


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
