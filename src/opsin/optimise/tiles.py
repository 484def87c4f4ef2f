"""Score and gradient of a picture in tiles, exactly, where the objective needs only sums over positions."""

from dataclasses import dataclass
from math import ceil
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.errors import NetworkError
from opsin.network.activations import Activations
from opsin.network.backward import differentiating
from opsin.network.model import Model
from opsin.network.regions import receptive_fields
from opsin.objectives.objective import Objective, Place

_known: WeakKeyDictionary[Model, dict[tuple[str, ...], tuple[dict[str, int], int]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Window:
    """A tile's rows and columns, and those of the crop around it that its units see, in pixels."""

    tile: tuple[slice, slice]
    crop: tuple[slice, slice]


def tiled(
    model: Model, objective: Objective, images: Float[Tensor, "n 3 h w"], side: int
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3 h w"]]:
    """The scores and ∂(sum of scores)/∂images of an objective of `terms`, with one tile's graph at a time.

    First every term's sum is gathered over the tiles, without a graph; then each tile is run again and
    differentiated by its share. That is one forward more than the whole picture at once takes.

    Raises `NetworkError` where a layer's unit sees the whole picture.
    """
    strides, reach = _geometry(model, objective.layers)
    step = max(strides.values())
    rows, columns = (
        _spans(length, max(1, side // step) * step, ceil(reach / step) * step) for length in images.shape[-2:]
    )
    windows = [Window((r, c), (wide_r, wide_c)) for r, wide_r in rows for c, wide_c in columns]
    sizes: dict[str, tuple[int, int]] = {}

    def parts(window: Window, run: Activations) -> list[Tensor]:
        found = []
        for term in objective.terms:
            stride, maps = strides[term.layer], run.maps(term.layer)
            before = [crop.start // stride for crop in window.crop]
            if term.layer not in sizes:  # the last window ends where the picture does
                sizes[term.layer] = (before[0] + maps.shape[2], before[1] + maps.shape[3])
            ends = [
                whole if tile.stop == length else tile.stop // stride
                for tile, whole, length in zip(window.tile, sizes[term.layer], images.shape[-2:], strict=True)
            ]
            place = Place(
                slice(window.tile[0].start // stride, ends[0]),
                slice(window.tile[1].start // stride, ends[1]),
                sizes[term.layer],
            )
            inner = [slice(s.start - b, s.stop - b) for s, b in zip(place[:2], before, strict=True)]
            found.append(term.part(maps[..., inner[0], inner[1]], place))
        return found

    totals: list[Tensor] = []
    for window in reversed(windows):
        with torch.no_grad():
            new = parts(window, model.run(images[..., *window.crop], objective.layers))
        totals = [a + b for a, b in zip(totals, new, strict=True)] if totals else new
    leaves = [total.requires_grad_() for total in totals]
    scores = torch.stack([t.score(leaf) for t, leaf in zip(objective.terms, leaves, strict=True)]).sum(0)
    signals = torch.autograd.grad(scores.sum(), leaves)
    gradient = torch.zeros_like(images)
    for window in windows:
        run = model.run(images[..., *window.crop], objective.layers, start="image")
        shares = [(p * s).sum() for p, s in zip(parts(window, run), signals, strict=True)]
        with differentiating():
            (seen,) = torch.autograd.grad(torch.stack(shares).sum(), run["image"])
        gradient[..., *window.crop] += seen
    return scores.detach(), gradient


def _spans(length: int, side: int, halo: int) -> list[tuple[slice, slice]]:
    """Tiles along one axis, each with its crop; the last tile takes what is left over."""
    starts = list(range(0, max(1, length - side // 2), side))
    ends = [*starts[1:], length]
    return [
        (slice(a, b), slice(max(0, a - halo), min(length, b + halo)))
        for a, b in zip(starts, ends, strict=True)
    ]


def _geometry(model: Model, layers: tuple[str, ...]) -> tuple[dict[str, int], int]:
    """Each layer's stride, and how many pixels beyond its own a unit of any of them sees; found once."""
    known = _known.setdefault(model, {})
    if layers not in known:
        known[layers] = _measured(model, layers)
    return known[layers]


def _measured(model: Model, layers: tuple[str, ...]) -> tuple[dict[str, int], int]:
    strides, reach = {}, 0
    fields = receptive_fields(model, layers)
    for layer in layers:
        if layer not in fields or fields[layer].size == model.size:
            raise NetworkError(
                f"a unit of layer {layer!r} sees the whole picture, which cannot be worked in tiles: "
                "set a larger tile or take earlier layers"
            )
        extent, field = model.calls[layer].extent or (1, 1), fields[layer]
        strides[layer] = stride = round(model.size[0] / extent[0])
        row, column = (stride * (side // 2) for side in extent)
        before, behind = (row - field.top, column - field.left), (field.bottom - row, field.right - column)
        reach = max(reach, *before, *(edge - stride for edge in behind))
    return strides, reach
