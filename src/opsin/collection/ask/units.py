"""What makes the channels of a layer fire: the patches of a collection where they fire most."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from opsin.base.errors import InputError
from opsin.base.job import noting
from opsin.collection.ask.edges import MOST, inside_tally, mostly
from opsin.collection.ask.patches import (
    Patch,
    Peak,
    Photos,
    Projection,
    chosen_projection,
    field_of,
    largest,
    patches,
)
from opsin.collection.ask.wording import counted, record
from opsin.collection.store.store import Collection, opened
from opsin.collection.store.tally import NONE, Tally
from opsin.images.photos import in_photo
from opsin.network.model import Model
from opsin.network.padding import padded
from opsin.network.regions import Fields, fields
from opsin.results.findings import Shot
from opsin.results.units import PeakFacts, UnitFacts, Units, sheet

PAPER = (
    "Zeiler, Fergus: Visualizing and Understanding Convolutional Networks, 2013 (arXiv:1311.2901), figure 2"
)
SAID = {"guided": "guided backpropagation", "gradient": "the plain gradient"}


def units(
    model: Model,
    collection: Collection | str | Path,
    *,
    layer: str | None = None,
    channels: Sequence[int] | None = None,
    projection: Projection = "auto",
    inside: bool = False,
) -> Units:
    """The patches where each channel of a layer fires most, and what in them made it fire.

    A patch is the receptive field of the channel's strongest unit in an image of the collection, strongest
    image first. With it comes that unit's activation projected back to the pixels by the deconvnet, guided
    backpropagation or the plain gradient. `auto` is the first of these that applies to the network:
    deconvnet needs max-pooling (its switches), guided backpropagation a rectifier.

    Each channel is listed with the mean and standard deviation of its activations over all positions of all
    images, and its sparsity, the share of positions where it is not above zero. A patch has the photo's
    colours; a projection has its own scale, on which grey is zero.

    A position is at the edge if its receptive field reaches into padding. A channel is said to fire mostly at
    the edge if more than half of its listed positions are there, and more than twice the share of all
    positions. `inside` leaves these positions out; for that the network runs over the images again.

    Raises `InputError` on a collection of another network, on a channel that does not exist, and with
    `inside` if all positions are at the edge; `NetworkError` if the requested projection needs a rectifier
    and the network has none. Departs from the paper: one peak per image, as there, but only the strongest
    over all positions of a channel.
    """
    collection = opened(collection)
    collection.check(model)
    if not len(collection):
        raise InputError(f"{collection.folder} holds no images yet")
    about = collection.about.layers[collection.layer(layer)]
    layer, count = about.name, about.channels
    chosen = list(range(count)) if channels is None else list(dict.fromkeys(channels))
    if wrong := [index for index in chosen if not 0 <= index < count]:
        raise InputError(f"layer {layer!r} has the channels 0 to {count - 1}, not {wrong[0]}")
    tally = collection.tally(layer)
    photos = Photos(collection, model)
    with noting() as notes:
        call = model.call(layer)
        has_positions = bool(call and call.extent and max(call.extent) > 1)
        field_grid = fields(model, layer) if has_positions else None
        edge = padded(model, layer) if has_positions else torch.ones(1, 1, dtype=torch.bool)
        method = chosen_projection(model, layer, projection)
        places = torch.tensor(chosen, dtype=torch.int64)
        listed = inside_tally(model, collection, layer, edge, places) if inside else tally.of_channels(places)
        peaks = _peaks(collection, listed, chosen, about.extent[1])
        flat = [peak for own in peaks.values() for peak in own]
        tiles: dict[int, list[Patch]] = {channel: [] for channel in chosen}
        for patch in patches(photos, layer, flat, field_grid, method):
            tiles[patch.peak.channel].append(patch)
    share = float(edge.float().mean()) if has_positions else None
    moments = {name: getattr(tally, name).tolist() for name in ("mean", "deviation", "sparsity")}
    shots = []
    for channel in chosen:
        statistics = ", ".join(f"{name} {values[channel]:.3g}" for name, values in moments.items())
        shots += _sheets(f"{layer}:{channel}", statistics, tiles[channel], method)
    facts: list[UnitFacts] = []
    for channel in chosen:
        numbers = {patch.peak.row.id: len(shots) + patch.photo for patch in tiles[channel]}
        top = [
            _peak_facts(collection, model, peak, field_grid, edge, has_positions, numbers)
            for peak in peaks[channel]
        ]
        at_edge = share is not None and mostly(sum(peak["at_edge"] for peak in top), len(top), share)
        facts.append(
            {
                "channel": channel,
                "mean": moments["mean"][channel],
                "deviation": moments["deviation"][channel],
                "sparsity": moments["sparsity"][channel],
                "mostly_at_edge": at_edge,
                "top": top,
            }
        )
    settings = {
        "layer": layer,
        "channels": "all" if channels is None else chosen,
        "projection": method,
        "inside": inside,
    }
    size = None if field_grid is None else largest(field_grid)
    return Units(
        f"What {layer} fires for",
        _intro(len(collection), size, share, facts, settings),
        (*shots, *photos.shots),
        facts={**settings, "field": size, "edge": share, "units": facts},
        record=record(collection, "units", PAPER, settings, notes),
    )


def _peaks(
    collection: Collection, listed: Tally, channels: Sequence[int], columns: int
) -> dict[int, list[Peak]]:
    """The peaks of each channel, strongest first; the tally has the channels in the same order."""
    rows = collection.with_ids(listed.ids[listed.ids != NONE].unique().tolist())
    lists = zip(listed.ids.tolist(), listed.places.tolist(), listed.values.tolist(), strict=True)
    return {
        channel: [
            Peak(channel, rows[id], place // columns, place % columns, value)
            for id, place, value in zip(*own, strict=True)
            if id in rows
        ]
        for channel, own in zip(channels, lists, strict=True)
    }


def _sheets(name: str, statistics: str, tiles: Sequence[Patch], method: Projection) -> list[Shot]:
    """A channel's patches, and its projections if there are any."""
    shots = []
    if tiles:
        shots.append(Shot.of(name, statistics, sheet([tile.patch for tile in tiles]), lead=True))
    if projections := [tile.projection for tile in tiles if tile.projection is not None]:
        shots.append(Shot.of(name, f"{SAID.get(method, method)} of each", sheet(projections), lead=True))
    return shots


def _peak_facts(
    collection: Collection,
    model: Model,
    peak: Peak,
    field_grid: Fields | None,
    edge: Bool[Tensor, "h w"],
    has_positions: bool,
    numbers: dict[int, int],
) -> PeakFacts:
    """What is known of a peak; `numbers` are those of the photos' pictures, by the images' ids."""
    row, region = peak.row, field_of(model, field_grid, peak)
    patch = (region.left, region.top, region.right, region.bottom)
    height, width = model.size
    return {
        "path": row.name,
        "value": peak.value,
        "row": peak.y,
        "column": peak.x,
        "at_edge": has_positions and bool(edge[peak.y, peak.x]),
        "label": row.label,
        "label_name": None if row.label is None else collection.named(row.label),
        "class_name": collection.label(row.classes[0]) if row.classes else None,
        "probability": row.probabilities[0] if row.probabilities else None,
        "patch": patch,
        "in_photo": in_photo(patch, row.width, row.height, model),
        "seen": in_photo((0, 0, width, height), row.width, row.height, model),
        "photo": numbers.get(row.id),
    }


def _intro(
    count: int,
    field: tuple[int, int] | None,
    edge: float | None,
    facts: Sequence[UnitFacts],
    settings: Mapping[str, Any],
) -> str:
    """The sentences below the title."""
    at_edge, total = sum(unit["mostly_at_edge"] for unit in facts), len(facts)
    sees = "the whole image" if field is None else "{}×{} pixels".format(*field)
    inner = ", away from the picture's edge" if settings["inside"] else ""
    text = f"Where each channel is strongest in {counted(count, 'image')}{inner}: what it sees there ({sees})"
    if settings["projection"] != "none":
        text += ", and below it what in this patch made it fire (the projection)"
    if edge is None or settings["inside"]:
        return f"{text}."
    if edge >= MOST:
        return f"{text}. Of the layer's positions {edge:.0%} see padding, beyond the picture's edge."
    if at_edge:
        fire = "fires" if at_edge == 1 else "fire"
        text += (
            f". {at_edge:,} of {total:,} channels {fire} mostly at the edge of the picture, where padding is "
            "seen: leave these positions out with --inside (inside=True)"
        )
    return f"{text}."
