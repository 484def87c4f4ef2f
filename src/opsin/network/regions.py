"""Which part of the image a layer's unit sees."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from opsin.base.errors import NetworkError
from opsin.base.job import steps
from opsin.network.backward import differentiating
from opsin.network.batches import CPU_BATCH, chunks
from opsin.network.model import Model

NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")  # arguments of torch.conv2d
CHOOSING = {
    getattr(api, name) for api in (torch, torch.Tensor) for name in ("where", "nan_to_num", "fmax", "fmin")
}
SOME = 1e-5  # of the greatest gradient: more than this is not rounding
DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1}


@dataclass(frozen=True)
class Region:
    """Rows top to bottom and columns left to right, ends excluded, in pixels of the model's input."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left


class OneChannel(TorchFunctionMode):
    """Convolutions on one channel of zeros and NaN: they show which units are reached, not values."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in CHOOSING:
            return _spoiling(func, args, kwargs or {})
        if func is not torch.conv2d:
            return func(*args, **(kwargs or {}))
        given = {**DEFAULTS, **dict(zip(NAMES, args, strict=False)), **(kwargs or {})}
        weight, (stride, padding, dilation) = given["weight"], (given[name] for name in DEFAULTS)
        reached = given["input"].isnan().any(1, keepdim=True).float()
        # on zeros and ones: in half precision or with transforms, NaN spreads further than it should
        kernel = torch.ones_like(weight[:1, :1], dtype=torch.float32)
        wide = torch.conv2d(reached, kernel, None, stride, padding, dilation) > 0.5
        return torch.where(wide, torch.nan, 0).to(weight).repeat(1, len(weight), 1, 1)


def _spoiling(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function that may drop NaN; its result gets NaN wherever an argument has it."""
    result = func(*args, **kwargs)
    if isinstance(result, torch.Tensor):
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, torch.Tensor) and argument.is_floating_point():
                result = result.masked_fill(argument.isnan(), torch.nan)
    return result


@dataclass(frozen=True)
class Fields:
    """The range of pixels that each row and each column of a layer's units sees, end excluded."""

    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]

    def at(self, row: int, column: int) -> Region:
        """The receptive field of one unit."""
        (top, bottom), (left, right) = self.rows[row], self.columns[column]
        return Region(top, left, bottom, right)


def fields(model: Model, layer: str) -> Fields:
    """The receptive fields of all units of a layer with a spatial extent.

    It is the whole image for units that the experiment does not reach (a function may remove NaN), and for
    all units if the gradient of one reaches further than its field. Raises `NetworkError` if the layer has
    no spatial extent.
    """
    call = model.call(layer)
    if call is None or call.extent is None:
        raise NetworkError(f"layer {layer!r} has no spatial extent: every unit sees the whole image")
    rows, columns = call.extent
    height, width = model.size
    measured = Fields(
        _ranges(model, layer, rows, ("top", "bottom"), height),
        _ranges(model, layer, columns, ("left", "right"), width),
    )
    corners_and_middle = {(0, 0), (rows // 2, columns // 2), (rows - 1, columns - 1)}
    reached = _reached(model, layer, corners_and_middle, model.size)
    if any(_is_beyond(pixels, measured.at(*unit)) for unit, pixels in reached.items()):
        return Fields(((0, height),) * rows, ((0, width),) * columns)
    return measured


def fields_of(
    model: Model, layer: str, units: Iterable[tuple[int, int]], size: tuple[int, int]
) -> dict[tuple[int, int], Region]:
    """The receptive fields of a layer's units at some rows and columns, in images of any size.

    The whole image for units that are not reached by the experiment, or whose gradient reaches further.
    """
    height, width = size
    whole, regions = Region(0, 0, height, width), {}
    for unit, reached in _reached(model, layer, units, size).items():
        region = _touched(reached)
        top, bottom = (_edge(model, layer, unit[0], s, getattr(region, s), size) for s in ("top", "bottom"))
        left, right = (_edge(model, layer, unit[1], s, getattr(region, s), size) for s in ("left", "right"))
        measured = Region(top, left, height - bottom, width - right)
        known = top < measured.bottom and left < measured.right and not _is_beyond(reached, measured)
        regions[unit] = measured if known else whole
    return regions


def _edge(model: Model, layer: str, unit: int, side: str, guess: int, size: tuple[int, int]) -> int:
    """How many pixels from a side a row (or column) of units does not see, by bisection from a guess."""
    length = size[0] if side in ("top", "bottom") else size[1]
    guess = guess if side in ("top", "left") else length - guess
    low, high = 0, length  # the widest unseen band is in this range
    tests = [guess + 1, guess]  # a right guess takes no other
    while low < high:
        band = tests.pop() if tests else (low + high + 1) // 2
        if not low < band <= high:
            continue
        if _spoiled(model, [layer], [(side, band)], size)[0][layer][unit]:
            high = band - 1
        else:
            low = band
    return low


def _touched(reached: Tensor) -> Region:
    """The smallest box around all that is not zero in (h, w); the whole where nothing is."""
    rows, columns = (reached.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    if not rows:
        return Region(0, 0, *reached.shape)
    return Region(rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)


def _ranges(
    model: Model, layer: str, count: int, sides: tuple[str, str], length: int
) -> tuple[tuple[int, int], ...]:
    """The range of pixels that each row (or column) of units sees; all `length` pixels if it is unknown."""
    edges, (start, end) = _edges(model, {layer: range(count)}, sides), sides
    ranges = [(edges[start, layer, unit], length - edges[end, layer, unit]) for unit in range(count)]
    return tuple((first, last) if first < last else (0, length) for first, last in ranges)


def _reached(
    model: Model, layer: str, units: Iterable[tuple[int, int]], size: tuple[int, int]
) -> dict[tuple[int, int], Float[Tensor, "h w"]]:
    """The size of the gradient at every pixel of a random image, for units at some rows and columns."""
    drawn = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, *size, generator=drawn).to(model.device)
    run = model.run(image, (layer,), start="image")
    with torch.inference_mode(False), torch.enable_grad():
        maps = run.maps(layer)[0]  # (c, h, w)
        weighed = (maps * torch.randn(len(maps), 1, 1, generator=drawn).to(maps)).sum(0)
        reached = {}
        for row, column in set(units):
            with differentiating():
                (gradient,) = torch.autograd.grad(weighed[row, column], run["image"], retain_graph=True)
            reached[row, column] = gradient.abs().amax((0, 1))
    return reached


def _is_beyond(reached: Float[Tensor, "h w"], field: Region) -> bool:
    """Whether there is more than rounding outside a field."""
    beyond = reached.clone()
    beyond[field.top : field.bottom, field.left : field.right] = 0
    return bool(beyond.max() > SOME * reached.max())


def receptive_fields(model: Model, layers: Sequence[str] | None = None) -> dict[str, Region]:
    """The receptive field of the unit in the middle of every layer with a spatial extent, or of `layers`."""
    extents = {
        c.name: c.extent for c in model.calls.values() if c.extent and (layers is None or c.name in layers)
    }
    height, width = model.size
    down = _edges(model, {name: [h // 2] for name, (h, _) in extents.items()}, ("top", "bottom"))
    along = _edges(model, {name: [w // 2] for name, (_, w) in extents.items()}, ("left", "right"))
    return {
        name: Region(
            down["top", name, h // 2],
            along["left", name, w // 2],
            height - down["bottom", name, h // 2],
            width - along["right", name, w // 2],
        )
        for name, (h, w) in extents.items()
    }


def _edges(
    model: Model, units: Mapping[str, Sequence[int]], sides: tuple[str, str]
) -> dict[tuple[str, str, int], int]:
    """How many pixels from each side a layer's rows or columns do not see, by side, layer and unit.

    Found by experiment, so on any architecture: NaN pixels make every unit that sees them NaN. The widest
    band of such pixels that leaves a unit finite is found by bisection, for all units of all layers at once.
    """
    length = model.size[0] if "top" in sides else model.size[1]
    everything = [(name, unit) for name, wanted in units.items() for unit in wanted]
    edges: dict[tuple[str, str, int], int] = {}
    todo = [(side, 0, length, everything) for side in sides]  # the unseen band's width is in [low, high]
    levels = length.bit_length() + 1
    for _ in steps(range(levels), levels, "receptive fields"):
        edges |= {(side, *unit): low for side, low, high, group in todo if low == high for unit in group}
        todo = [part for part in todo if part[1] < part[2]]
        names = sorted({name for *_, group in todo for name, _ in group})
        bands = [(side, (low + high + 1) // 2) for side, low, high, _ in todo]
        halves = []
        spoiled = _spoiled(model, names, bands, model.size)
        for (side, low, high, group), (_, middle), sees in zip(todo, bands, spoiled, strict=True):
            halves += [
                (side, low, middle - 1, [u for u in group if sees[u[0]][u[1]]]),
                (side, middle, high, [u for u in group if not sees[u[0]][u[1]]]),
            ]
        todo = [half for half in halves if half[-1]]
    return edges


def _spoiled(
    model: Model, names: list[str], bands: Sequence[tuple[str, int]], size: tuple[int, int]
) -> list[dict[str, list[bool]]]:
    """Which rows or columns of each layer see a band of so many pixels along one side, for each band."""
    found = []
    for some in chunks(len(bands), CPU_BATCH):
        images = torch.full((len(bands[some]), 3, *size), 0.5, device=model.device)
        for image, (side, band) in zip(images, bands[some], strict=True):
            along = 1 if side in ("top", "bottom") else 2
            start = 0 if side in ("top", "left") else size[along - 1] - band
            image.narrow(along, start, band).fill_(torch.nan)
        with OneChannel():
            run = model.run(images, names)
        reached = {name: run.maps(name).isnan().any(1) for name in names}  # (n, h, w)
        found += [
            {name: _middle(maps[index], side) for name, maps in reached.items()}
            for index, (side, _) in enumerate(bands[some])
        ]
    return found


def _middle(reached: Bool[Tensor, "h w"], side: str) -> list[bool]:
    """The middle column of rows, or the middle row of columns."""
    h, w = reached.shape
    middle = reached[:, w // 2] if side in ("top", "bottom") else reached[h // 2]
    return middle.tolist()
