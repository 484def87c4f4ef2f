"""What makes the channels of a layer fire: sheets of patches, and the photos that they are cut from."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any, cast

from PIL import Image
from torch import Tensor
from typing_extensions import TypedDict

from opsin.base.errors import InputError
from opsin.results.findings import Findings, FindingsFacts, Shot
from opsin.results.html import page

GAP = 4  # pixels between the tiles of a sheet
PHOTOS = "photos"  # the group of the whole photos
GREY = (128, 128, 128)  # between tiles, and where a receptive field extends beyond the photo


class PeakFacts(TypedDict):
    """The strongest position of a channel in one image.

    `patch` is its receptive field in pixels of the network's input; `in_photo` is the same in the whole
    photo, as shares of its width and height, and `seen` the part that the network saw. All three are left,
    top, right, bottom. `photo` is the number of the photo's picture, `null` if its file could not be read.
    """

    path: str
    value: float | None
    row: int
    column: int
    at_edge: bool
    label: str | None
    label_name: str | None
    class_name: str | None
    probability: float | None
    patch: tuple[int, int, int, int]
    in_photo: tuple[float, float, float, float]
    seen: tuple[float, float, float, float]
    photo: int | None


class UnitFacts(TypedDict):
    """A channel's moments over all positions of all images, and its strongest images."""

    channel: int
    mean: float | None
    deviation: float | None
    sparsity: float | None
    mostly_at_edge: bool
    top: list[PeakFacts]


class UnitsFacts(TypedDict):
    """The facts of `units`; `field` is the height and width of a receptive field, `null` of the whole image.

    `edge` is the share of the layer's positions whose receptive field reaches into the padding.
    """

    layer: str
    channels: str | list[int]
    projection: str
    inside: bool
    field: tuple[int, int] | None
    edge: float | None
    units: list[UnitFacts]


class UnitsStored(FindingsFacts):
    """Units in `record.json`."""

    facts: UnitsFacts  # type: ignore[misc]


@dataclass(frozen=True)
class Sheet:
    """A picture of `count` tiles of one size, row by row: what the page shows of it."""

    shot: Shot
    address: str
    count: int

    @property
    def columns(self) -> int:
        """How many tiles are in a row."""
        return max(1, ceil(sqrt(self.count)))

    @property
    def tile(self) -> tuple[int, int]:
        """Width and height of a tile."""
        sides, counts = self.shot.size, (self.columns, max(1, ceil(self.count / self.columns)))
        width, height = ((side + GAP) // count - GAP for side, count in zip(sides, counts, strict=True))
        return width, height

    def corner(self, index: int) -> tuple[int, int]:
        """The left and upper end of a tile."""
        width, height = self.tile
        return index % self.columns * (width + GAP), index // self.columns * (height + GAP)


def sheet(tiles: Sequence[Image.Image]) -> Image.Image:
    """The picture of a `Sheet` with these tiles, all of one size."""
    columns = ceil(sqrt(len(tiles)))
    width, height = tiles[0].width + GAP, tiles[0].height + GAP
    picture = Image.new("RGB", (columns * width - GAP, ceil(len(tiles) / columns) * height - GAP), GREY)
    for index, tile in enumerate(tiles):
        picture.paste(tile, (index % columns * width, index // columns * height))
    return picture


@dataclass(frozen=True, eq=False)
class Units(Findings):
    """The strongest patches of channels.

    `shots` are, channel by channel in a group `layer:channel`, a sheet of patches and, unless there is no
    projection, a sheet of projections; then, in the group `photos`, every whole photo.
    """

    stored_as = UnitsStored

    @property
    def told(self) -> UnitsFacts:
        """The facts, in their declared shape."""
        return cast("UnitsFacts", self.facts)

    def _page(self, addresses: Sequence[str]) -> str:
        sheets: dict[str, list[tuple[Shot, str]]] = {}
        for shot, address in zip(self.shots, addresses, strict=True):
            sheets.setdefault(shot.group, []).append((shot, address))
        units: list[dict[str, Any]] = []
        seen: dict[int | None, tuple[float, float, float, float]] = {}
        for unit in self.told["units"]:
            name = f"{self.told['layer']}:{unit['channel']}"
            peaks = [peak for peak in unit["top"] if peak["photo"] is not None]
            seen |= {peak["photo"]: peak["seen"] for peak in peaks}
            own = [Sheet(shot, address, len(peaks)) for shot, address in sheets.get(name, [])]
            units.append({"name": name, "facts": unit, "peaks": peaks, "sheets": own})
        photos = [
            {"number": number, "seen": part, "address": addresses[number], "size": self.shots[number].size}
            for number, part in seen.items()
            if number is not None
        ]
        return page("units.html", result=self, units=units, photos=photos)

    @classmethod
    def _from_arrays(cls, arrays: dict[str, Tensor], facts: dict[str, Any]) -> "Units":
        loaded = cast("Units", super()._from_arrays(arrays, facts))
        for unit in loaded.told["units"]:
            for peak in unit["top"]:
                number = peak["photo"]
                if number is not None and not (
                    0 <= number < len(loaded.shots) and loaded.shots[number].group == PHOTOS
                ):
                    raise InputError(f"{number} is not the number of a photo")
        return loaded
