"""One map per image: which parts of it count, and how."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from typing_extensions import TypedDict  # pydantic reads typing's from Python 3.12 on

from opsin.base.arrays import array
from opsin.base.errors import InputError
from opsin.images import colour
from opsin.results.result import Result, plain


class HeatmapFacts(TypedDict):
    """The settings of a heatmap in `record.json`."""

    signed: bool
    overlay: bool


@dataclass(frozen=True, eq=False)
class Heatmap(Result):
    """One map per image, raw: with the sign and unit of the technique's formula.

    `values` may be coarser than `images` (a layer's resolution). `signed` maps have a neutral zero;
    `overlay` maps are drawn over the photo. `extras` are further arrays of the technique.
    """

    stored_as = HeatmapFacts
    values: Float[Tensor, "n c h w"]
    images: Float[Tensor, "n 3 H W"]
    signed: bool
    overlay: bool
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", plain(self.values))
        object.__setattr__(self, "images", plain(self.images))
        object.__setattr__(self, "extras", {name: plain(extra) for name, extra in self.extras.items()})

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
        """One picture per image."""
        drawn = []
        for index, (values, image) in enumerate(zip(self.upsampled(), self.images, strict=True)):
            photo = image if self.overlay else None
            drawn.append((f"image {index}", colour.heat(values, signed=self.signed, photo=photo)))
        return drawn

    def _to_arrays(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        extras = {f"extra_{name}": value for name, value in self.extras.items()}
        arrays = {"values": self.values, "images": self.images, **extras}
        return arrays, {"signed": self.signed, "overlay": self.overlay}

    @classmethod
    def _from_arrays(cls, arrays: dict[str, Tensor], facts: dict[str, Any]) -> "Heatmap":
        images = array(arrays, "images", None, 3, None, None)
        values = array(arrays, "values", len(images), None, None, None)
        record = facts.get("record")
        if record is not None and len(record.targets) not in (0, len(images)):
            raise InputError(f"{len(record.targets)} targets for {len(images)} images")
        extras = {k.removeprefix("extra_"): v for k, v in arrays.items() if k not in ("images", "values")}
        return cls(values, images, extras=extras, **facts)
