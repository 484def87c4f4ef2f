"""The patches of photos that units see, and the units' activations projected back to the pixels."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from opsin.base.errors import InputError, NetworkError, unknown
from opsin.base.job import CAUTION, note, tell
from opsin.collection.scan.chunks import as_maps
from opsin.collection.store.store import Collection
from opsin.collection.store.tables import Row
from opsin.gradients import rules
from opsin.gradients.custom import CustomFunctions
from opsin.images import colour
from opsin.images.photos import fitted
from opsin.images.tensors import enlarged
from opsin.network import graph
from opsin.network.backward import differentiating
from opsin.network.batches import chunks, forward_batch
from opsin.network.model import Model
from opsin.network.regions import Fields, Region
from opsin.results.findings import Shot
from opsin.results.units import GREY, PHOTOS

TILE, NARROWEST = 120, 96  # pixels of a patch on the page: its longer side, and the shorter one at least
KEPT = 256  # photos held in memory while patches are cut from them
PHOTO = 320  # pixels of the longer side of a whole photo

Projection = Literal["auto", "deconvnet", "guided", "gradient", "none"]


class Peak(NamedTuple):
    """Where a channel fires most in one image."""

    channel: int
    row: Row
    y: int
    x: int
    value: float


class Patch(NamedTuple):
    """A peak's patch and projection, as tiles, and the number of its photo among the shots of `Photos`."""

    peak: Peak
    patch: Image.Image
    projection: Image.Image | None
    photo: int


class Photos:
    """The photos of a collection as the network sees them; each one that is read is kept small and whole."""

    def __init__(self, collection: Collection, model: Model) -> None:
        self.collection, self.model = collection, model
        self.shots: list[Shot] = []
        self.numbers: dict[int, int] = {}
        self.image = lru_cache(KEPT)(self._read)

    def _read(self, row: Row) -> Float[Tensor, "3 h w"]:
        picture = self.collection.picture(row)
        image = torch.from_numpy(fitted(picture, self.model)).permute(2, 0, 1) / 255
        if row.id not in self.numbers:
            picture.thumbnail((PHOTO, PHOTO))
            self.numbers[row.id] = len(self.shots)
            self.shots.append(Shot.of(PHOTOS, row.name, picture))
        return image


def field_of(model: Model, field_grid: Fields | None, peak: Peak) -> Region:
    """What a peak's unit sees; the whole image where the layer has no positions."""
    return Region(0, 0, *model.size) if field_grid is None else field_grid.at(peak.y, peak.x)


def chosen_projection(model: Model, layer: str, wanted: Projection) -> Projection:
    """The projection to use; `auto` becomes the first that applies to the network."""
    if wanted not in get_args(Projection):
        raise unknown("projection", wanted, get_args(Projection))
    if wanted in ("none", "gradient"):
        return wanted
    image = torch.full((1, 3, *model.size), 0.5, device=model.device)
    with CustomFunctions() as custom:
        run = model.run(image, (layer,), start="image")
    try:
        with rules.applied(rules.guided, [run[layer]], custom):
            pass
    except NetworkError as error:
        if wanted != "auto":
            raise
        note(f"no rectifier below {layer} to act on, so projections are plain gradients ({error})")
        return "gradient"
    if wanted != "auto":
        return wanted
    pools = any(node.name().startswith("MaxPool") for node in graph.nodes([run[layer].grad_fn]))
    return "deconvnet" if pools else "guided"


def patches(
    photos: Photos, layer: str, peaks: Sequence[Peak], field_grid: Fields | None, method: Projection
) -> Iterator[Patch]:
    """The patch of each peak whose photo can be read; notes the others."""
    model = photos.model
    size = model.size if field_grid is None else largest(field_grid)
    for part in chunks(len(peaks), forward_batch(model, torch.empty(1, 3, *model.size))):
        tell(f"patches of {layer}", part.start, len(peaks))
        readable = []
        for peak in peaks[part]:
            try:
                readable.append((peak, photos.image(peak.row)))
            except InputError as error:
                note(f"{CAUTION}{error}")
        if not readable:
            continue
        images = torch.stack([image for _, image in readable])
        projected = _projected(model, images.to(model.device), layer, [peak for peak, _ in readable], method)
        for index, (peak, image) in enumerate(readable):
            region = field_of(model, field_grid, peak)
            patch = _tile(colour.photo(_cut(image, region)), region, size, model.size)
            projection = None
            if projected is not None:
                heatmap = colour.heat(_shrunk(_cut(projected[index], region), size), signed=True)
                projection = _tile(heatmap, region, size, model.size)
            yield Patch(peak, patch, projection, photos.numbers[peak.row.id])
    tell(f"patches of {layer}", len(peaks), len(peaks))


def _projected(
    model: Model, photos: Float[Tensor, "n 3 h w"], layer: str, peaks: Sequence[Peak], method: Projection
) -> Float[Tensor, "n 3 h w"] | None:
    """Each peak's activation, projected back to the pixels of its photo."""
    if method == "none":
        return None
    rule = {"deconvnet": rules.deconvnet, "guided": rules.guided}.get(method)
    with CustomFunctions() if rule else nullcontext() as custom:
        run = model.run(photos, (layer,), start="image")
    with torch.inference_mode(False), torch.enable_grad():
        maps = as_maps(run.channels(layer))
        units = torch.stack([maps[i, peak.channel, peak.y, peak.x] for i, peak in enumerate(peaks)])
        with rules.applied(rule, [run[layer]], custom) if rule else nullcontext(), differentiating():
            (gradient,) = torch.autograd.grad((units * units.detach().clamp(min=0)).sum(), run["image"])
    return gradient.float().cpu()


def _cut(values: Float[Tensor, "3 h w"], region: Region) -> Float[Tensor, "3 _ _"]:
    return values[:, region.top : region.bottom, region.left : region.right]


def _shrunk(values: Float[Tensor, "3 h w"], size: tuple[int, int]) -> Float[Tensor, "3 _ _"]:
    """A projection at the size it is shown at, so that its colours use the whole scale there."""
    return values if _zoom(size) >= 1 else enlarged(values[None], _scaled(values.shape[1:], size))[0]


def _zoom(size: tuple[int, int]) -> float:
    """Pixels of a tile for each pixel of the image; the largest field has the given `size`."""
    return max(TILE / max(size), NARROWEST / min(size))


def _scaled(sides: Sequence[int], size: tuple[int, int]) -> tuple[int, int]:
    """The sides in a tile that shows the largest field, which has the given `size`."""
    first, second = (max(1, round(side * _zoom(size))) for side in sides)
    return first, second


def largest(field_grid: Fields) -> tuple[int, int]:
    """Height and width of the largest receptive field."""
    return max(b - a for a, b in field_grid.rows), max(b - a for a, b in field_grid.columns)


def _tile(picture: Image.Image, region: Region, size: tuple[int, int], whole: tuple[int, int]) -> Image.Image:
    """A patch, resized smoothly to a tile; grey where the field extends beyond the image."""
    height, width = _scaled(region.size, size)
    tile = Image.new("RGB", _scaled(size, size)[::-1], GREY)
    left = 0 if region.right == whole[1] and region.left > 0 else tile.width - width
    top = 0 if region.bottom == whole[0] and region.top > 0 else tile.height - height
    tile.paste(picture.resize((width, height), Image.Resampling.BICUBIC), (left, top))
    return tile
