"""Many small pictures under headings."""

from dataclasses import dataclass, fields
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor
from typing_extensions import TypedDict  # pydantic reads typing's from Python 3.12 on

from opsin.base.arrays import array
from opsin.images import colour
from opsin.results.result import Result, equal, plain


class GalleryFacts(TypedDict):
    """A gallery in `record.json`: each panel's group, title and caption."""

    panels: list[tuple[str, str, str]]


@dataclass(frozen=True, eq=False)
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

    def picture(self) -> Image.Image:
        """The tiles as one grid: three channels in colour, one on the signed scale, zero in the middle."""
        return colour.grid(self.values)


@dataclass(frozen=True, eq=False)
class Gallery(Result):
    """Pictures with captions, in groups."""

    stored_as = GalleryFacts
    panels: tuple[Panel, ...]

    def pictures(self) -> list[tuple[str, Image.Image]]:
        """One picture per panel."""
        return [(f"{p.group} {p.title} {p.caption}".strip(), p.picture()) for p in self.panels]

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
