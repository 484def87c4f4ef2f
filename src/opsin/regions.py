"""Which part of the image a layer's unit sees, and which units a part of the image can change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from opsin.errors import NetworkError
from opsin.model import Activations, Call, Model
from opsin.progress import steps

NAMES = ("input", "weight", "bias", "stride", "padding", "dilation")  # of torch.conv2d's arguments
DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1}


@dataclass(frozen=True)
class Region:
    """Rows top to bottom and columns left to right, ends excluded, in pixels of the model's size."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left


class _OneChannel(TorchFunctionMode):
    """Convolutions on one channel of nought and not-a-number: which units are reached, not their values."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch.conv2d:
            return func(*args, **(kwargs or {}))
        given = {**DEFAULTS, **dict(zip(NAMES, args, strict=False)), **(kwargs or {})}
        weight, (stride, padding, dilation) = given["weight"], (given[name] for name in DEFAULTS)
        reached = given["input"].isnan().any(1, keepdim=True).float()
        # of ones and noughts, as in half precision or by transforms NaN reaches more than it should
        kernel = torch.ones_like(weight[:1, :1], dtype=torch.float32)
        wide = torch.conv2d(reached, kernel, None, stride, padding, dilation) > 0.5
        return torch.where(wide, torch.nan, 0).to(weight).repeat(1, len(weight), 1, 1)


@dataclass(frozen=True)
class Fields:
    """What each row and each column of a layer's units sees: from the first pixel to behind the last."""

    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]

    def at(self, row: int, column: int) -> Region:
        """The receptive field of one unit."""
        (top, bottom), (left, right) = self.rows[row], self.columns[column]
        return Region(top, left, bottom, right)


def fields(model: Model, layer: str) -> Fields:
    """The receptive fields of all units of a layer with a spatial extent.

    Of units that the experiment does not reach (`torch.where` and the like may take NaN out) it is the
    whole image. Raises `NetworkError` where the layer has none.
    """
    call = model.call(layer)
    if call is None or call.extent is None:
        raise NetworkError(f"layer {layer!r} has no spatial extent: every unit sees the whole image")
    rows, columns = call.extent

    def between(first: int, last: int, side: int) -> tuple[int, int]:
        return (first, last) if first < last else (0, side)

    return Fields(
        *(
            tuple(
                between(edges[start, layer, unit], side - edges[end, layer, unit], side)
                for unit in range(count)
            )
            for start, end, side, count in (
                ("top", "bottom", model.size[0], rows),
                ("left", "right", model.size[1], columns),
            )
            for edges in [_edges(model, {layer: range(count)}, (start, end))]
        )
    )


def receptive_fields(model: Model, layers: Sequence[str] | None = None) -> dict[str, Region]:
    """The receptive field of the unit in the middle of every layer with a spatial extent, or of `layers`."""
    found = {
        c.name: c.extent for c in model.calls.values() if c.extent and (layers is None or c.name in layers)
    }
    height, width = model.size
    down = _edges(model, {name: [h // 2] for name, (h, _) in found.items()}, ("top", "bottom"))
    along = _edges(model, {name: [w // 2] for name, (_, w) in found.items()}, ("left", "right"))
    return {
        name: Region(
            down["top", name, h // 2],
            along["left", name, w // 2],
            height - down["bottom", name, h // 2],
            width - along["right", name, w // 2],
        )
        for name, (h, w) in found.items()
    }


def _edges(
    model: Model, units: Mapping[str, Sequence[int]], sides: tuple[str, str]
) -> dict[tuple[str, str, int], int]:
    """How many pixels of a side a layer's rows or columns do not see, by side, layer and unit.

    Found by experiment, so on any architecture: pixels that are not a number make every unit that
    sees them not a number. The largest band of such pixels that leaves a unit a number is found by
    halving, for all units of all layers at once.
    """
    edges = {}
    length = model.size[0] if "top" in sides else model.size[1]
    for side in steps(sides, len(sides), "receptive fields"):
        every = [(name, unit) for name, wanted in units.items() for unit in wanted]
        todo = [(0, length, every)]  # the clean band's size lies in [low, high] for these units
        while todo:
            low, high, group = todo.pop()
            if low == high:
                edges.update({(side, *unit): low for unit in group})
                continue
            middle = (low + high + 1) // 2
            spoiled = _spoiled(model, sorted({name for name, _ in group}), side, middle)
            parts = [u for u in group if spoiled[u[0]][u[1]]], [u for u in group if not spoiled[u[0]][u[1]]]
            todo += [
                (*ends, part)
                for ends, part in zip(((low, middle - 1), (middle, high)), parts, strict=True)
                if part
            ]
    return edges


def _spoiled(model: Model, names: list[str], side: str, band: int) -> dict[str, list[bool]]:
    """Of each layer, which rows or columns see a band of so many pixels along one side."""
    image = torch.full((1, 3, *model.size), 0.5, device=model.device)
    along = 2 if side in ("top", "bottom") else 3
    start = 0 if side in ("top", "left") else image.shape[along] - band
    image.narrow(along, start, band).fill_(torch.nan)
    with _OneChannel():
        run = model.run(image, names)
    reached = {name: run.maps(name)[0].isnan().any(0) for name in names}  # (h, w)
    return {
        name: (one[:, one.shape[1] // 2] if along == 2 else one[one.shape[0] // 2]).tolist()
        for name, one in reached.items()
    }


# A detour that saves less than this share of the multiplications is not worth its own work; found by trial.
LEAST_SAVING = 0.08
TRIES = 16  # detours are checked by running them, so not every layer is


@dataclass(frozen=True)
class Detour:
    """How to run a network on images that differ from a known one inside a square only.

    Up to `layer` the network runs on a crop of `side` pixels around the square; there the units that
    the square can change are put into the known image's maps, and the network goes on with these. A
    unit u of the layer sees no pixel outside [stride·u + low, stride·u + high).
    """

    layer: str
    stride: int
    low: int
    high: int
    side: int

    def run(
        self,
        model: Model,
        images: Float[Tensor, "k 3 h w"],
        corners: Sequence[tuple[int, int]],
        patch: int,
        layers: Sequence[str],
        known: Float[Tensor, "1 c rows columns"],
    ) -> Activations:
        """What `model.run(images, layers)` gives; `known` are the layer's maps of the known image."""
        crops, places = [], []
        for image, corner in zip(images, corners, strict=True):
            cuts, units = zip(
                *map(self._along, corner, image.shape[1:], known.shape[2:], (patch, patch)), strict=True
            )
            crops.append(image[:, *(slice(cut, cut + self.side) for cut in cuts)])
            places.append((units, cuts))

        def pasted(maps: Tensor) -> Tensor:
            whole = known.repeat(len(maps), 1, 1, 1)
            for own, inner, (units, cuts) in zip(whole, maps, places, strict=True):
                moved = (
                    slice(u.start - c // self.stride, u.stop - c // self.stride)
                    for u, c in zip(units, cuts, strict=True)
                )
                own[:, *units] = inner[:, *moved]
            return whole.contiguous(memory_format=torch.channels_last)

        run = model.run(torch.stack(crops), layers, replace={self.layer: pasted})
        run["image"] = images
        return run

    def _along(self, start: int, length: int, units: int, patch: int) -> tuple[int, slice]:
        """Along one side: where the crop begins, and which units the square can change."""
        first = max(0, (start - self.high) // self.stride + 1)
        last = min(units - 1, -(-(start + patch - self.low) // self.stride) - 1)
        begin = (self.stride * first + self.low) // self.stride * self.stride
        return min(max(0, begin), length - self.side), slice(first, last + 1)


def detour(
    model: Model, images: Float[Tensor, "n 3 h w"], layers: Sequence[str], patch: int
) -> Detour | None:
    """The detour that saves most for squares of `patch` pixels; `None` where none is right or worth it.

    How far a square reaches in each layer is seen by making it not-a-number. A detour is taken only
    where the numbers say that everything behind its layer depends on it alone, and that the pasted
    maps are the true ones.
    """
    _, _, height, width = images.shape
    order = list(model.calls)
    end = min((order.index(layer) for layer in layers if layer in order), default=len(order))
    names = [name for name in order[:end] if model.calls[name].layout == "maps"]
    corner = ((height - patch) // 2, (width - patch) // 2)
    spoiled = images[:1].clone()
    spoiled[..., corner[0] : corner[0] + patch, corner[1] : corner[1] + patch] = torch.nan
    run = model.run(spoiled, names) if names else {}
    works = _multiplications(model)
    found = []
    for name in names:
        reached = run[name].isnan().any(1)[0]  # (h, w)
        made = _detour(name, reached, corner, patch, (height, width))
        if made is not None:
            saved = sum(works[: order.index(name) + 1]) * (1 - made.side**2 / (height * width))
            if saved >= LEAST_SAVING * sum(works):
                found.append((saved, order.index(name), made))
    for _, _, made in sorted(found, key=lambda one: one[:2], reverse=True)[:TRIES]:
        if _is_right(made, model, images[:1], layers, patch):
            return made
    return None


def _detour(
    name: str, reached: Tensor, corner: tuple[int, int], patch: int, size: tuple[int, int]
) -> Detour | None:
    strides = {size[0] / reached.shape[0], size[1] / reached.shape[1]}
    stride = int(max(strides))
    if strides != {stride} or not reached.any():
        return None
    lows, highs = [], []
    for start, units in zip(corner, (reached.any(1), reached.any(0)), strict=True):
        first, last = (int(edge) for edge in units.nonzero().flatten()[[0, -1]])
        lows.append(start + patch - stride * last - stride)
        highs.append(start - stride * first + stride)
    low, high = min(lows), max(highs)
    side = -(-(patch + 2 * (high - low)) // stride) * stride + stride
    return Detour(name, stride, low, high, side) if side < min(size) else None


def _multiplications(model: Model) -> list[int]:
    """Of each call, in the order of `model.calls`, those of its own convolution; the rest counts little."""

    def count(call: Call) -> int:
        module = model.network.get_submodule(call.layer)
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 4 or call.extent is None:
            return 0
        return weight.numel() * call.extent[0] * call.extent[1]

    return [count(call) for call in model.calls.values()]


def _is_right(
    detour: Detour, model: Model, image: Float[Tensor, "1 3 h w"], layers: Sequence[str], patch: int
) -> bool:
    """Whether squares at a corner, in the middle and at an odd place give what the plain way gives."""
    generator = torch.Generator().manual_seed(0)
    whole = model.run(image, (*layers, detour.layer))
    known = whole[detour.layer]
    crop = torch.rand(1, 3, detour.side, detour.side, generator=generator).to(image)
    height, width = image.shape[-2:]
    corners = [(int(r * (height - patch)), int((1 - r) * (width - patch) * 0.9)) for r in (0, 0.5, 1)]
    images = image.repeat(len(corners), 1, 1, 1)
    for one, (top, left) in zip(images, corners, strict=True):
        noise = torch.rand(3, patch, patch, generator=generator)
        one[:, top : top + patch, left : left + patch] = noise.to(one)
    try:
        alone = model.run(crop, layers, replace={detour.layer: lambda _: known})
        if not all(_close(alone[layer], whole[layer]) for layer in layers):
            return False
        local = detour.run(model, images, corners, patch, layers, known)
    except (NetworkError, RuntimeError):  # the network does not take images of the crop's size
        return False
    plain = model.run(images, layers)
    return all(_close(local[layer], plain[layer]) for layer in layers)


def _close(one: Tensor, other: Tensor) -> bool:
    tolerance = torch.finfo(other.dtype).eps ** 0.5 / 4
    return one.shape == other.shape and bool((one - other).norm() <= tolerance * other.norm())
