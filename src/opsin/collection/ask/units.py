"""What makes the channels of a layer fire: the patches of a collection where they fire most."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from opsin.base.errors import InputError, NetworkError, unknown
from opsin.base.job import CAUTION, note, noting, tell
from opsin.collection.ask.wording import record
from opsin.collection.scan.chunks import as_maps
from opsin.collection.store.store import Collection, opened
from opsin.collection.store.tables import Row
from opsin.gradients import rules
from opsin.gradients.custom import CustomFunctions
from opsin.images import colour
from opsin.images.tensors import enlarged
from opsin.network import graph
from opsin.network.backward import differentiating
from opsin.network.batches import chunks, forward_batch
from opsin.network.model import Model
from opsin.network.regions import Fields, Region, fields
from opsin.results.findings import Findings, Shot

PAPER = (
    "Zeiler, Fergus: Visualizing and Understanding Convolutional Networks, 2013 (arXiv:1311.2901), figure 2"
)
TILE = 96  # pixels, the side of a patch on the page
GAP = 3
KEPT = 256  # photos held in memory while patches are cut from them
PIXELS = 32  # fields up to this size are enlarged without interpolation
GREY = (128, 128, 128)  # between patches, and where a receptive field extends beyond the photo

SAID = {"guided": "guided backpropagation", "gradient": "the plain gradient"}

Projection = Literal["auto", "deconvnet", "guided", "gradient", "none"]


def units(
    model: Model,
    collection: Collection | str | Path,
    *,
    layer: str | None = None,
    channels: Sequence[int] | None = None,
    projection: Projection = "auto",
) -> Findings:
    """The patches where each channel of a layer fires most, and what in them made it fire.

    A patch is the receptive field of the channel's strongest unit in an image of the collection, strongest
    image first. Beside it is that unit's activation projected back to the pixels by the deconvnet, guided
    backpropagation or the plain gradient. `auto` is the first of these that applies to the network:
    deconvnet needs max-pooling (its switches), guided backpropagation a rectifier.

    Each channel is listed with the mean and standard deviation of its activations over all positions of all
    images, and its sparsity, the share of positions where it is not above zero. A patch has the photo's
    colours; a projection has its own scale, on which grey is zero.

    Raises `InputError` on a collection of another network or a channel that does not exist, `NetworkError`
    if the requested projection needs a rectifier and the network has none. Departs from the paper: one peak
    per image, as there, but only the strongest over all positions of a channel.
    """
    collection = opened(collection)
    collection.check(model)
    if not len(collection):
        raise InputError(f"{collection.folder} holds no images yet")
    layer = collection.about.layers[collection.layer(layer)].name
    tally = collection.tally(layer)
    count = len(tally.values)
    chosen = list(range(count)) if channels is None else list(dict.fromkeys(channels))
    if wrong := [index for index in chosen if not 0 <= index < count]:
        raise InputError(f"layer {layer!r} has the channels 0 to {count - 1}, not {wrong[0]}")
    with noting() as notes:
        call = model.call(layer)
        field_grid = fields(model, layer) if call and call.extent and max(call.extent) > 1 else None
        method = _projection(model, layer, projection)
        rows = collection.with_ids(tally.ids[chosen].unique().tolist())
        columns = collection.about.layers[collection.layer(layer)].extent[1]
        peaks = [
            _Peak(channel, rows[image_id], position // columns, position % columns, value)
            for channel in chosen
            for image_id, position, value in zip(
                *(lists[channel].tolist() for lists in (tally.ids, tally.places, tally.values)), strict=True
            )
            if image_id in rows
        ]
        tiles_of: dict[int, list[tuple[Image.Image, Image.Image | None]]] = {
            channel: [] for channel in chosen
        }
        for peak, patch, projection_tile in _tiles(model, collection, layer, peaks, field_grid, method):
            tiles_of[peak.channel].append((patch, projection_tile))
    shots, facts = [], []
    for channel in chosen:
        numbers = {name: float(getattr(tally, name)[channel]) for name in ("mean", "deviation", "sparsity")}
        title = f"{layer}:{channel}"
        statistics = ", ".join(f"{name} {value:.3g}" for name, value in numbers.items())
        for index, kind in enumerate(("patches", method)):
            tiles = [tile for pair in tiles_of[channel] if (tile := pair[index]) is not None]
            if tiles:
                caption = statistics if not index else f"{SAID.get(kind, kind)} of each"
                shots.append(Shot.of(title, caption, _mosaic(tiles), lead=True))
        listed = [
            {"path": p.row.name, "row": p.y, "column": p.x, "value": p.value}
            for p in peaks
            if p.channel == channel
        ]
        facts.append({"channel": channel, **numbers, "top": listed})
    sees = "the whole image" if field_grid is None else "{}×{} pixels".format(*_largest(field_grid))
    settings = {"layer": layer, "channels": "all" if channels is None else chosen, "projection": method}
    return Findings(
        f"What {layer} fires for",
        f"Where each channel is strongest in {len(collection):,} images, with its receptive field ({sees}); "
        "beside it the projection: what in the patch made it fire.",
        tuple(shots),
        facts={**settings, "units": facts},
        record=record(collection, "units", PAPER, settings, notes),
    )


class _Peak(NamedTuple):
    """Where a channel fires most in one image."""

    channel: int
    row: Row
    y: int
    x: int
    value: float


def _projection(model: Model, layer: str, wanted: Projection) -> Projection:
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


def _tiles(
    model: Model,
    collection: Collection,
    layer: str,
    peaks: Sequence[_Peak],
    field_grid: Fields | None,
    method: Projection,
) -> Iterator[tuple[_Peak, Image.Image, Image.Image | None]]:
    """Each peak with its patch and its projection, as tiles."""
    opened = lru_cache(KEPT)(collection.photo)
    size = model.size if field_grid is None else _largest(field_grid)
    for part in chunks(len(peaks), forward_batch(model, torch.empty(1, 3, *model.size))):
        tell(f"patches of {layer}", part.start, len(peaks))
        readable = []
        for peak in peaks[part]:
            try:
                readable.append((peak, opened(peak.row, model)))
            except InputError as error:
                note(f"{CAUTION}{error}")
        if not readable:
            continue
        photos = torch.stack([photo for _, photo in readable])
        projected = _projected(model, photos.to(model.device), layer, [peak for peak, _ in readable], method)
        for index, (peak, photo) in enumerate(readable):
            region = Region(0, 0, *model.size) if field_grid is None else field_grid.at(peak.y, peak.x)
            patch = _tile(colour.photo(_cut(photo, region)), region, size, model.size)
            if projected is None:
                yield peak, patch, None
            else:
                heatmap = colour.heat(_shrunk(_cut(projected[index], region), size), signed=True)
                yield peak, patch, _tile(heatmap, region, size, model.size)
    tell(f"patches of {layer}", len(peaks), len(peaks))


def _projected(
    model: Model, photos: Float[Tensor, "n 3 h w"], layer: str, peaks: Sequence[_Peak], method: Projection
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
    return values if max(size) <= TILE else enlarged(values[None], _scaled(values.shape[1:], size))[0]


def _scaled(sides: Sequence[int], size: tuple[int, int]) -> tuple[int, int]:
    """The sides in a tile that shows the largest field, which has the given `size`."""
    first, second = (max(1, round(side * TILE / max(size))) for side in sides)
    return first, second


def _largest(field_grid: Fields) -> tuple[int, int]:
    """Height and width of the largest receptive field."""
    return max(b - a for a, b in field_grid.rows), max(b - a for a, b in field_grid.columns)


def _tile(picture: Image.Image, region: Region, size: tuple[int, int], whole: tuple[int, int]) -> Image.Image:
    """A patch, enlarged to a tile; grey where the field extends beyond the photo."""
    height, width = _scaled(region.size, size)
    filter_ = Image.Resampling.NEAREST if max(size) <= PIXELS else Image.Resampling.BICUBIC
    tile = Image.new("RGB", _scaled(size, size)[::-1], GREY)
    left = 0 if region.right == whole[1] and region.left > 0 else tile.width - width
    top = 0 if region.bottom == whole[0] and region.top > 0 else tile.height - height
    tile.paste(picture.resize((width, height), filter_), (left, top))
    return tile


def _mosaic(tiles: Sequence[Image.Image]) -> Image.Image:
    columns = ceil(len(tiles) ** 0.5)
    width, height = tiles[0].width + GAP, tiles[0].height + GAP
    sheet = Image.new("RGB", (columns * width - GAP, ceil(len(tiles) / columns) * height - GAP), GREY)
    for index, tile in enumerate(tiles):
        sheet.paste(tile, (index % columns * width, index // columns * height))
    return sheet
