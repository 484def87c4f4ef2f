"""Pictures made by a technique, with its measurements."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
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
from opsin.base.folders import storing
from opsin.base.slugs import first_name
from opsin.images import colour
from opsin.results.cells import Cell
from opsin.results.describing import sizes
from opsin.results.indexing import chosen
from opsin.results.result import Result, equal, plain


class PicturesFacts(TypedDict):
    """Pictures in `record.json`: each one's group, caption and whether it was made."""

    panels: list[tuple[str, str, bool]]
    film: bool
    stopped: str


@dataclass(frozen=True, eq=False, repr=False)
class Picture:
    """An image in [0, 1] with a caption; several pictures may share a `group`.

    A picture was `made` by the technique, or was its input and is shown for comparison.
    """

    group: str
    caption: str
    image: Float[Tensor, "3 h w"]
    made: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "image", plain(self.image))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and all(
            equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        made = "" if self.made else ", made=False"
        return f"Picture({self.group!r}, {self.caption!r}, {sizes([self.image])}{made})"


@dataclass(frozen=True, eq=False, repr=False)
class Pictures(Result):
    """Images that were made, with captions, in groups.

    `numbers` are measurements (the score per step, an error per layer). `state` is what `opsin.resume` needs
    to continue the optimisation. `stopped` says where that was stopped early; it is empty if it was finished.
    If it is a `film`, the made pictures are its frames.

    `len(pictures)` is the number of pictures that were made, `pictures[i]` one of them (a slice: several),
    without numbers and state, and `np.asarray(pictures)` are their `images`.
    """

    stored_as = PicturesFacts
    indexed = True
    panels: tuple[Picture, ...]
    film: bool = False
    stopped: str = ""
    numbers: Mapping[str, Tensor] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("numbers", "state"):
            object.__setattr__(self, name, {k: plain(v) for k, v in getattr(self, name).items()})

    @property
    def images(self) -> Float[Tensor, "n 3 h w"]:
        """The made pictures as one tensor. Raises `InputError` if they differ in size, or there are none."""
        made = [panel.image for panel in self._made()]
        if not made:
            raise InputError("no picture was made: the work was stopped before the first step")
        if len(sizes := {image.shape for image in made}) > 1:
            raise InputError(f"pictures of {len(sizes)} sizes do not fit into one tensor: use `panels`")
        return torch.stack(made)

    def __len__(self) -> int:
        return len(self._made())

    def __getitem__(self, index: SupportsIndex | slice) -> "Pictures":
        made = self._made()
        panels = tuple(made[number] for number in chosen(index, len(made), "pictures"))
        return replace(self, panels=panels, film=self.film and len(panels) > 1, numbers={}, state={})

    def __iter__(self) -> Iterator["Pictures"]:
        return (self[index] for index in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.images.numpy(), dtype=dtype, copy=copy)

    def _made(self) -> list[Picture]:
        return [panel for panel in self.panels if panel.made]

    def pictures(self) -> list[tuple[str, Image.Image]]:
        """One picture per image."""
        return [(f"{p.group} {p.caption}".strip(), colour.photo(p.image)) for p in self.panels]

    def contents(self) -> tuple[str, str]:
        """How many pictures were made, of what size, and what they show."""
        made = self._made()
        if not made:
            return "made", "nothing yet"
        groups = ", ".join(dict.fromkeys(panel.group for panel in made))
        stopped = f", {self.stopped}" if self.stopped else ""
        return "made", f"{len(made)} of {sizes([panel.image for panel in made])}{stopped}: {groups}"

    def cells(self, most: int) -> tuple[list[Cell], int]:
        """The first pictures with their captions."""
        cells = [Cell(p.group, p.caption, colour.photo(p.image)) for p in self.panels[:most]]
        return cells, len(self.panels)

    def files(self) -> list[tuple[str, Image.Image]]:
        """One picture per image, named after its group, an input beside made ones after its caption too."""
        made = {panel.group for panel in self._made()}
        return self._named(
            [(first_name(p.group), "" if p.made or p.group not in made else p.caption) for p in self.panels]
        )

    def _made_pictures(self) -> list[Image.Image]:
        return [colour.photo(panel.image) for panel in self._made()]

    def _arrays(self) -> dict[str, Tensor]:
        return {f"the picture {p.group!r}": p.image for p in self.panels if p.made} | dict(self.numbers)

    def _to_arrays(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        arrays = {f"{index:05d}": panel.image for index, panel in enumerate(self.panels)}
        kept = {f"{kind}.{k}": v for kind in ("numbers", "state") for k, v in getattr(self, kind).items()}
        return arrays | kept, {
            "panels": [[p.group, p.caption, p.made] for p in self.panels],
            "film": self.film,
            "stopped": self.stopped,
        }

    def write_into(self, place: Path) -> None:
        """Write the files of `save`, and `animation.webp` for a film."""
        super().write_into(place)
        if self.film:
            with storing():
                colour.animate(list(self.images), place / "animation.webp")

    @classmethod
    def _from_arrays(cls, arrays: dict[str, Tensor], facts: dict[str, Any]) -> "Pictures":
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
