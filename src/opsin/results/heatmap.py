"""One map per image: which parts of it count, and how."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NotRequired, SupportsIndex

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from typing_extensions import TypedDict  # pydantic reads typing's from Python 3.12 on

from opsin.base.arrays import array
from opsin.base.errors import InputError
from opsin.base.records import Record
from opsin.base.slugs import first_name
from opsin.images import colour
from opsin.results.cells import Cell, scale_of, scored
from opsin.results.describing import extent
from opsin.results.indexing import chosen
from opsin.results.result import Result, plain


class HeatmapFacts(TypedDict):
    """The settings of a heatmap in `record.json`."""

    signed: bool
    overlay: bool
    summed: NotRequired[bool]


@dataclass(frozen=True, eq=False, repr=False)
class Heatmap(Result):
    """One map per image, raw: with the sign and unit of the technique's formula.

    `values` may be coarser than `images` (a layer's resolution). `signed` maps have a neutral zero;
    `overlay` maps are drawn over the photo, `summed` ones as their sum over the colours. `extras` are
    further arrays of the technique.

    `len(heatmap)` is the number of images, `heatmap[i]` the heatmap of one of them (a slice: of several), and
    `np.asarray(heatmap)` are the values.
    """

    stored_as = HeatmapFacts
    indexed = True
    values: Float[Tensor, "n c h w"]
    images: Float[Tensor, "n 3 H W"]
    signed: bool
    overlay: bool
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    summed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", plain(self.values))
        object.__setattr__(self, "images", plain(self.images))
        object.__setattr__(self, "extras", {name: plain(extra) for name, extra in self.extras.items()})

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: SupportsIndex | slice) -> "Heatmap":
        numbers = chosen(index, len(self), "images")
        whole = numbers == list(range(len(self)))
        extras = {k: v[numbers] if v.shape[:1] == (len(self),) else v for k, v in self.extras.items()}
        return replace(
            self,
            values=self.values[numbers],
            images=self.images[numbers],
            extras=extras,
            record=self.record if whole or self.record is None else self._part_of_record(numbers),
        )

    def __iter__(self) -> Iterator["Heatmap"]:
        return (self[index] for index in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values.numpy(), dtype=dtype, copy=copy)

    def _part_of_record(self, numbers: list[int]) -> Record:
        """The record with these images' targets, and a note that its notes number the images of the batch."""
        assert self.record is not None
        listed = ", ".join(map(str, numbers))
        part = f"image {listed} of a batch of {len(self)}, whose numbers these notes use"
        targets = tuple(self.record.targets[index] for index in numbers) if self.record.targets else ()
        return replace(self.record, targets=targets, notes=(*self.record.notes, part))

    def contents(self) -> tuple[str, str]:
        """The shape and the range of the values."""
        return "values", f"{tuple(self.values.shape)}, {extent(self.values)}"

    def cells(self, most: int) -> tuple[list[Cell], int]:
        """Maps beside their photos, with their targets and scales."""
        shown = self[:most]
        targets = shown.record.targets if shown.record else ()
        cells = []
        for index, (values, image, (caption, picture)) in enumerate(
            zip(shown.drawn(), shown.images, shown.pictures(), strict=True)
        ):
            title = scored(targets[index]) if targets else caption
            scale = scale_of(values, signed=self.signed, overlay=self.overlay)
            cells.append(Cell(title, "", picture, colour.photo(image), scale))
        return cells, len(self)

    def files(self) -> list[tuple[str, Image.Image]]:
        """One picture per image, named after the technique and the image's target."""
        technique = self.record.technique if self.record else "heatmap"
        targets = self.record.targets if self.record else ()
        names = [first_name(target.name) for target in targets] or [""] * len(self)
        return self._named([(technique, name) for name in names])

    def _arrays(self) -> dict[str, Tensor]:
        maps = {f"the map of image {index}": values for index, values in enumerate(self.values)}
        return maps | {f"extras[{name!r}]": values for name, values in self.extras.items()}

    def blank(self) -> list[int]:
        """The images whose values are all zero."""
        return [index for index, values in enumerate(self.values) if not values.any()]

    def upsampled(self) -> Float[Tensor, "n c H W"]:
        """The values at the images' resolution, bilinear."""
        return interpolate(self.values, self.images.shape[-2:], mode="bilinear", align_corners=False)

    def drawn(self) -> Float[Tensor, "n c H W"]:
        """What the pictures show: the values at the images' resolution, coarse maps smoothed."""
        values = self.values.sum(1, keepdim=True) if self.summed else self.values
        return colour.smooth(values, (self.images.shape[-2], self.images.shape[-1]))

    def pictures(self) -> list[tuple[str, Image.Image]]:
        """One picture per image."""
        pictures = []
        for index, (values, image) in enumerate(zip(self.drawn(), self.images, strict=True)):
            photo = image if self.overlay else None
            pictures.append((f"image {index}", colour.heat(values, signed=self.signed, photo=photo)))
        return pictures

    def _to_arrays(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        extras = {f"extra_{name}": value for name, value in self.extras.items()}
        arrays = {"values": self.values, "images": self.images, **extras}
        return arrays, {"signed": self.signed, "overlay": self.overlay, "summed": self.summed}

    @classmethod
    def _from_arrays(cls, arrays: dict[str, Tensor], facts: dict[str, Any]) -> "Heatmap":
        images = array(arrays, "images", None, 3, None, None)
        values = array(arrays, "values", len(images), None, None, None)
        record = facts.get("record")
        if record is not None and len(record.targets) not in (0, len(images)):
            raise InputError(f"{len(record.targets)} targets for {len(images)} images")
        extras = {k.removeprefix("extra_"): v for k, v in arrays.items() if k not in ("images", "values")}
        return cls(values, images, extras=extras, **facts)
