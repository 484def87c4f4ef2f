"""Many small pictures under headings."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any, SupportsIndex, TypeVar

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from typing_extensions import TypedDict  # pydantic reads typing's from Python 3.12 on

from opsin.base.arrays import array
from opsin.base.errors import InputError
from opsin.base.slugs import stems
from opsin.images import colour
from opsin.results.cells import Cell
from opsin.results.indexing import chosen
from opsin.results.result import Result, equal, plain
from opsin.results.sheets import sheet

KIND = re.compile(r" \([^()]*\)$")  # of a layer, behind its name
T = TypeVar("T")


class GalleryFacts(TypedDict):
    """A gallery in `record.json`: each panel's group, title and caption."""

    panels: list[tuple[str, str, str]]


@dataclass(frozen=True, eq=False, repr=False)
class Panel:
    """Tiles that are shown together, on one colour scale; several panels may share a `group`."""

    group: str
    title: str
    caption: str
    values: Float[Tensor, "k c h w"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", plain(self.values))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Panel) and all(
            equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Panel({self.group!r}, {self.title!r}, {self.caption!r}, {tuple(self.values.shape)})"

    def picture(self) -> Image.Image:
        """The tiles as one grid: three channels in colour, one on the signed scale, zero in the middle."""
        return colour.grid(self.values)


@dataclass(frozen=True, eq=False, repr=False)
class Gallery(Result):
    """Pictures with captions, in groups.

    `len(gallery)` is the number of panels, `gallery[i]` a gallery of one of them (a slice: of several).
    """

    stored_as = GalleryFacts
    indexed = True
    panels: tuple[Panel, ...]

    def __len__(self) -> int:
        return len(self.panels)

    def __getitem__(self, index: SupportsIndex | slice) -> "Gallery":
        numbers = chosen(index, len(self), "panels")
        return replace(self, panels=tuple(self.panels[number] for number in numbers))

    def __iter__(self) -> Iterator["Gallery"]:
        return (self[index] for index in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise InputError("the panels of a gallery have many shapes: take one, as in gallery.panels[0].values")

    def pictures(self) -> list[tuple[str, Image.Image]]:
        """One picture per panel."""
        return [(f"{p.group} {p.title} {p.caption}".strip(), p.picture()) for p in self.panels]

    def contents(self) -> tuple[str, str]:
        """How many panels there are, in how many groups."""
        groups = [group for group, _ in self.groups()] or ["none"]
        named = groups[0] if len(groups) == 1 else f"{len(groups)} groups from {groups[0]} to {groups[-1]}"
        return "shows", f"{len(self)} panel{'s' * (len(self) != 1)} of {named}"

    def cells(self, most: int) -> tuple[list[Cell], int]:
        """The panels; if they are too many, the first ones of groups from the first group to the last."""
        panels = list(self.panels)
        if len(panels) > most:
            firsts = [own[0] for _, own in self.groups()]
            panels = panels[:most] if len(firsts) == 1 else spread(firsts, most)
        return [Cell(f"{p.group}: {p.title}", p.caption, p.picture()) for p in panels], len(self)

    def groups(self) -> list[tuple[str, list[Panel]]]:
        """Each group's name and panels, in their order."""
        return [(name, list(own)) for name, own in groupby(self.panels, lambda panel: panel.group)]

    def files(self) -> list[tuple[str, Image.Image]]:
        """A sheet for each group with its panels, named after the group without its kind of layer."""
        groups = self.groups()
        technique = self.record.technique if self.record else "gallery"
        names = stems([(KIND.sub("", name),) for name, _ in groups], technique)
        return [
            (f"{name}.png", own[0].picture() if len(own) == 1 else _sheet(own))
            for name, (_, own) in zip(names, groups, strict=True)
        ]

    def _arrays(self) -> dict[str, Tensor]:
        return {f"{p.group}: {p.title}": p.values for p in self.panels}

    def _to_arrays(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        arrays = {f"{index:05d}": panel.values for index, panel in enumerate(self.panels)}
        return arrays, {"panels": [[p.group, p.title, p.caption] for p in self.panels]}

    @classmethod
    def _from_arrays(cls, arrays: dict[str, Tensor], facts: dict[str, Any]) -> "Gallery":
        texts = facts.pop("panels")
        panels = [
            Panel(g, t, c, array(arrays, f"{index:05d}", None, (1, 3), None, None))
            for index, (g, t, c) in enumerate(texts)
        ]
        return cls(tuple(panels), **facts)


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many items, evenly from the first to the last."""
    if len(items) <= most:
        return list(items)
    return [items[number] for number in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _sheet(panels: list[Panel]) -> Image.Image:
    """The panels of one group, each under its title."""
    return sheet([(panel.title, panel.caption, panel.picture()) for panel in panels])
