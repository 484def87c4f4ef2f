"""Findings in a collection: pictures in groups, tables, and the same data as JSON."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import TypedDict

from opsin.base.arrays import array_of_bytes
from opsin.base.errors import InputError
from opsin.base.folders import FACTS, PAGE, storing
from opsin.base.records import as_json
from opsin.results.html import page
from opsin.results.result import Result

QUALITY = 82  # of WebP pictures; JPEG needs about twice the bytes for the same sharpness
SIGNATURES = {b"\x89PNG": "png", b"RIFF": "webp", b"\xff\xd8\xff": "jpeg"}  # how stored pictures begin


@dataclass(frozen=True)
class Shot:
    """A picture as WebP or JPEG bytes, with a caption; a `lead` shot heads its group."""

    group: str
    caption: str
    data: bytes = field(repr=False)
    lead: bool = False

    @classmethod
    def of(cls, group: str, caption: str, picture: Image.Image, *, lead: bool = False) -> "Shot":
        """A shot of a picture, which is compressed."""
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=QUALITY)
        return cls(group, caption, buffer.getvalue(), lead)

    @property
    def format(self) -> str:
        """The format of the stored bytes: `webp`, `jpeg` or `png`."""
        return next((name for start, name in SIGNATURES.items() if self.data.startswith(start)), "jpeg")

    @property
    def uri(self) -> str:
        """The picture as a `data:` URI."""
        return f"data:image/{self.format};base64,{base64.b64encode(self.data).decode()}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return stored_picture(self.data).size

    @property
    def picture(self) -> Image.Image:
        """The decoded picture. Raises `InputError` if the bytes are damaged."""
        return stored_picture(self.data, whole=True)


def stored_picture(data: bytes, *, whole: bool = False) -> Image.Image:
    """The picture in stored bytes; unless `whole`, only its header is read.

    Raises `InputError` if they are damaged.
    """
    try:
        picture = Image.open(io.BytesIO(data), formats=["WEBP", "JPEG", "PNG"])
        return picture.convert("RGB") if whole else picture
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"the bytes of a stored picture are damaged: {error}") from error


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers under a title."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float, ...], ...]


class FindingsFacts(TypedDict):
    """Findings in `record.json`: group, caption and `lead` of shots, title and cells of tables."""

    title: str
    intro: str
    shots: list[tuple[str, str, bool]]
    tables: list[tuple[str, list[str], list[list[str | int | float | None]]]]
    facts: dict[str, Any]


@dataclass(frozen=True, eq=False, repr=False)
class Findings(Result):
    """Pictures in groups and tables, under a title; `facts` hold the same data for programs."""

    stored_as: ClassVar[type] = FindingsFacts
    title: str
    intro: str
    shots: tuple[Shot, ...]
    tables: tuple[Table, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def pictures(self) -> list[tuple[str, Image.Image]]:
        """One picture per shot."""
        return [(f"{shot.group}: {shot.caption}", shot.picture) for shot in self.shots]

    def contents(self) -> tuple[str, str]:
        """The title, and how many pictures and tables there are."""
        return "found", f"{self.title}: {len(self.shots)} pictures, {len(self.tables)} tables"

    def groups(self) -> list[tuple[str, list[Shot], list[Shot]]]:
        """Each group's name, the shots that head it, and the others."""
        members = [(name, list(shots)) for name, shots in groupby(self.shots, lambda shot: shot.group)]
        return [
            (name, [s for s in all_ if s.lead], [s for s in all_ if not s.lead]) for name, all_ in members
        ]

    def html(self) -> str:
        """The page with embedded pictures."""
        return self._page([shot.uri for shot in self.shots])

    def write_into(self, place: Path) -> None:
        """Write the files of `save`, the page, which links to the pictures beside it, and `facts.json`."""
        super().write_into(place)
        with storing():
            (place / PAGE).write_text(self._page(self._names()), "utf-8")
            (place / FACTS).write_text(as_json(self.facts), "utf-8")

    def _page(self, addresses: Sequence[str]) -> str:
        """The page with the pictures at these addresses."""
        return page("findings.html", result=self, address=dict(zip(self.shots, addresses, strict=True)))

    def _names(self) -> list[str]:
        """The names of the pictures' files, in the order of the pictures."""
        width = max(3, len(str(len(self.shots))))
        suffixes = [shot.format.replace("jpeg", "jpg") for shot in self.shots]
        return [f"{index:0{width}d}.{suffix}" for index, suffix in enumerate(suffixes)]

    def _draw_into(self, place: Path) -> None:
        for name, shot in zip(self._names(), self.shots, strict=True):
            (place / name).write_bytes(shot.data)

    def _to_arrays(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        arrays = {f"{i:05d}": torch.tensor(np.frombuffer(s.data, np.uint8)) for i, s in enumerate(self.shots)}
        return arrays, {
            "title": self.title,
            "intro": self.intro,
            "shots": [[s.group, s.caption, s.lead] for s in self.shots],
            "tables": [[t.title, t.columns, t.rows] for t in self.tables],
            "facts": self.facts,
        }

    @classmethod
    def _from_arrays(cls, arrays: dict[str, Tensor], facts: dict[str, Any]) -> "Findings":
        shots = [
            Shot(group, caption, array_of_bytes(arrays, f"{i:05d}"), lead)
            for i, (group, caption, lead) in enumerate(facts.pop("shots"))
        ]
        tables = [
            Table(title, tuple(columns), tuple(map(tuple, rows)))
            for title, columns, rows in facts.pop("tables")
        ]
        return cls(**facts, shots=tuple(shots), tables=tuple(tables))
