"""Running a network on images that differ from a known one only in a square: on windows around it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from math import prod

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from opsin.base.errors import NetworkError
from opsin.network.activations import Activations
from opsin.network.graph import nodes
from opsin.network.model import Model
from opsin.network.regions import OneChannel
from opsin.network.tracing import Call

# a detour that saves less than this share of the multiplications does not pay off; found by trial
LEAST_SAVING = 0.08
PASTE = 100  # multiplications that take as long as copying one activation; found by trial

Place = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True)
class Reach:
    """A unit u sees nothing outside [stride·u + low, stride·u + high), along rows or columns."""

    stride: int
    low: int
    high: int

    def since(self, other: "Reach") -> "Reach":
        """The reach relative to the units of an earlier layer through which everything passes."""
        step = other.stride
        return Reach(
            self.stride // step, (self.low - other.low) // step, (self.high - other.high) // step + 1
        )

    def changed(self, start: int, size: int, units: int) -> slice:
        """Which of `units` units see a part of the interval [start, start + size)."""
        first = max(0, (start - self.high) // self.stride + 1)
        last = min(units - 1, -(-(start + size - self.low) // self.stride) - 1)
        return slice(first, last + 1)

    def most(self, size: int) -> int:
        """The most units that can see a part of an interval of length `size`."""
        return (size + self.high - self.low - 2) // self.stride + 1

    def window(self, units: int) -> int:
        """A length, a multiple of the stride, that covers what `units` adjacent units see."""
        extent = self.stride * (units - 1) + self.high - self.low
        return -(-(extent + self.stride - 1) // self.stride) * self.stride


@dataclass(frozen=True)
class Side:
    """Along rows or columns: the reach of a stop's units into the image and into the maps at the stop before.

    `length` is that of the window of these maps (of the image, at the first stop) that the network runs on.
    """

    image: Reach
    before: Reach
    length: int

    def window(self, units: slice, whole: int) -> slice:
        """The window, within maps of length `whole`, that covers what these units see."""
        begin = (units.start + self.before.low // self.before.stride) * self.before.stride
        begin = min(max(0, begin), whole - self.length)
        return slice(begin, begin + self.length)


@dataclass(frozen=True)
class Stop:
    """A layer where the units that a square can change are pasted into the known image's maps."""

    layer: str
    sides: tuple[Side, Side]

    def pasting(
        self, known: Float[Tensor, "1 c h w"], ran: list[Place], changed: list[Place], next_: list[Place]
    ) -> Callable[[Float[Tensor, "k c _ _"]], Float[Tensor, "k c _ _"]]:
        """A function that turns each image's maps on its `ran` window into those on its `next_` window."""

        def pasted(maps: Tensor) -> Tensor:
            pasted_maps = torch.cat([known[:, :, *window] for window in next_])
            pasted_maps = pasted_maps.contiguous(memory_format=torch.channels_last)
            for target, source, ran_window, changed_units, next_window in zip(
                pasted_maps, maps, ran, changed, next_, strict=True
            ):
                target_place, source_place = [], []
                for side, ran_side, changed_side, next_side in zip(
                    self.sides, ran_window, changed_units, next_window, strict=True
                ):
                    first = max(changed_side.start, next_side.start)
                    last = min(changed_side.stop, next_side.stop)
                    target_place.append(slice(first - next_side.start, last - next_side.start))
                    offset = ran_side.start // side.before.stride
                    source_place.append(slice(first - offset, last - offset))
                target[:, *target_place] = source[:, *source_place]
            return pasted_maps

        return pasted


@dataclass(frozen=True)
class Detour:
    """From stop to stop the network runs only on a window around what the square can change.

    At each stop the changed units are pasted into the known image's maps, from which the next window is
    cut. After the last stop the network continues with the whole maps.
    """

    stops: tuple[Stop, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers whose maps of the known image are needed."""
        return tuple(stop.layer for stop in self.stops)

    def run(
        self,
        model: Model,
        images: Float[Tensor, "k 3 h w"],
        corners: Sequence[tuple[int, int]],
        patch: int,
        layers: Sequence[str],
        known: Mapping[str, Tensor],
    ) -> Activations:
        """What `model.run(images, layers)` gives; `known` are the activations of the known image."""
        extents = [tuple(images.shape[2:]), *(tuple(known[layer].shape[2:]) for layer in self.layers)]
        windows: list[list[Place]] = []
        changed: list[list[Place]] = []
        for stop, before, extent in zip(self.stops, extents, extents[1:], strict=False):
            reaches = [side.image for side in stop.sides]
            changed.append(
                [_both(Reach.changed, reaches, corner, (patch, patch), extent) for corner in corners]
            )
            windows.append([_both(Side.window, stop.sides, units, before) for units in changed[-1]])
        windows.append([_both(slice, (0, 0), extents[-1])] * len(images))
        replace = {
            stop.layer: stop.pasting(known[stop.layer], *places)
            for stop, *places in zip(self.stops, windows, changed, windows[1:], strict=False)
        }
        crops = torch.stack([image[:, *window] for image, window in zip(images, windows[0], strict=True)])
        run = model.run(crops, layers, replace=replace)
        run["image"] = images
        return run


def _both(make: Callable[..., slice], *sides: Sequence[object]) -> Place:
    rows, columns = map(make, *sides)
    return rows, columns


def detour(
    model: Model, images: Float[Tensor, "n 3 h w"], layers: Sequence[str], patch: int
) -> Detour | None:
    """The cheapest detour for squares of `patch` pixels; `None` if none is exact or pays off.

    It is used only if on test images its results equal those of a plain run.
    """
    stops = _cheapest(model, images[:1], layers, patch)
    while stops:
        candidate = Detour(tuple(stops))
        if _is_right(candidate, model, images[:1], layers, patch):
            return candidate
        stops.pop()
    return None


def _cheapest(model: Model, image: Float[Tensor, "1 3 h w"], layers: Sequence[str], patch: int) -> list[Stop]:
    """The stops with the fewest multiplications; none if they save too little."""
    reaches = {"image": (Reach(1, 0, 1),) * 2} | _reaches(model, image, patch, layers)
    shapes = {"image": image.shape} | _passages(model, image, layers, list(reaches)[1:])
    same_reach = groupby(list(shapes)[1:], key=reaches.__getitem__)  # the smallest of layers with equal reach
    names = [min(reversed(list(group)), key=lambda name: shapes[name].numel()) for _, group in same_reach]
    order, works = list(model.calls), _multiplications(model)

    def work(first: str, last: str | None) -> float:
        """The work from after one layer to the end of another."""
        begin = 0 if first == "image" else order.index(first) + 1
        return sum(works[begin : order.index(last) + 1 if last else None]) + PASTE * shapes[first].numel()

    cheapest: dict[str, tuple[float, list[Stop]]] = {"image": (0, [])}
    for first, second in combinations(["image", *names], 2):
        if first in cheapest and all(
            after.stride % before.stride == 0
            for before, after in zip(reaches[first], reaches[second], strict=True)
        ):
            cost, stops = cheapest[first]
            relative = [
                after.since(before) for before, after in zip(reaches[first], reaches[second], strict=True)
            ]
            lengths = [
                before.window(reach.most(patch))
                for before, reach in zip(relative, reaches[second], strict=True)
            ]
            total = cost + prod(lengths) / prod(shapes[first][2:]) * work(first, second)
            fits = all(length < whole for length, whole in zip(lengths, shapes[first][2:], strict=True))
            if fits and (second not in cheapest or total < cheapest[second][0]):
                rows, columns = map(Side, reaches[second], relative, lengths)
                cheapest[second] = (total, [*stops, Stop(second, (rows, columns))])
    totals = {name: cost + work(name, None) for name, (cost, _) in cheapest.items()}
    best = min(totals, key=totals.__getitem__)
    return cheapest[best][1] if totals[best] <= (1 - LEAST_SAVING) * totals["image"] else []


def _passages(
    model: Model, image: Float[Tensor, "1 3 h w"], layers: Sequence[str], names: Sequence[str]
) -> dict[str, torch.Size]:
    """The shapes of those of `names` through which alone `layers` depend on the image, by the graph."""
    try:
        run = model.run(image, (*names, *layers), start="image")
    except NetworkError:  # the network cannot be differentiated
        return {}
    leaves = (run["image"] + 0).grad_fn
    pixels = leaves and leaves.next_functions[0][0]
    roots = [run[layer].grad_fn for layer in layers]
    return {
        name: run[name].shape
        for name in names
        if all(node is not pixels for node in nodes(roots, without=run[name].grad_fn))
    }


def _reaches(
    model: Model, image: Float[Tensor, "1 3 h w"], patch: int, layers: Sequence[str]
) -> dict[str, tuple[Reach, Reach]]:
    """The reach along rows and columns of each layer of maps before the first of `layers`.

    It is measured with a square of NaN. Layers in which the square reaches the edge are left out.
    """
    order = list(model.calls)
    end = min((order.index(layer) for layer in layers if layer in order), default=len(order))
    names = [name for name in order[:end] if model.calls[name].layout == "maps"]
    size = image.shape[2:]
    corner = [(length - patch) // 2 for length in size]
    spoiled = torch.zeros_like(image)
    spoiled[..., corner[0] : corner[0] + patch, corner[1] : corner[1] + patch] = torch.nan
    with OneChannel():
        run = model.run(spoiled, names)
    reaches = {}
    for name in names:
        reached = run[name].isnan().any(1)[0]  # (h, w)
        rows, columns = map(_reach, (reached.any(1), reached.any(0)), corner, size, (patch, patch))
        if rows and columns:
            reaches[name] = (rows, columns)
    return reaches


def _reach(reached: Bool[Tensor, " n"], start: int, length: int, patch: int) -> Reach | None:
    """The reach of units along one axis, inferred from which units a patch at `start` changed."""
    stride, rest = divmod(length, len(reached))
    if rest or not reached.any() or reached[0] or reached[-1]:
        return None
    first, last = (int(edge) for edge in reached.nonzero().flatten()[[0, -1]])
    return Reach(stride, start + patch - stride * (last + 1), start - stride * (first - 1))


def _multiplications(model: Model) -> list[int]:
    """The multiplications of each call's convolution, in the order of `model.calls`; others count little."""

    weights = model.weights({call.layer for call in model.calls.values()})

    def count(call: Call) -> int:
        weight = weights.get(call.layer)
        if weight is None or weight.ndim != 4 or call.extent is None:
            return 0
        return weight.numel() * call.extent[0] * call.extent[1]

    return [count(call) for call in model.calls.values()]


def _is_right(
    detour: Detour, model: Model, image: Float[Tensor, "1 3 h w"], layers: Sequence[str], patch: int
) -> bool:
    """Whether a square in a corner and one at an odd position give the results of a plain run."""
    generator = torch.Generator().manual_seed(0)
    known = model.run(image, detour.layers)
    height, width = image.shape[-2:]
    corners = [(int(r * (height - patch)), int((1 - r) * (width - patch))) for r in (0, 0.55)]
    images = image.repeat(len(corners), 1, 1, 1)
    for changed_image, (top, left) in zip(images, corners, strict=True):
        noise = torch.rand(3, patch, patch, generator=generator)
        changed_image[:, top : top + patch, left : left + patch] = noise.to(changed_image)
    try:
        local = detour.run(model, images, corners, patch, layers, known)
    except (NetworkError, RuntimeError):  # the network does not accept images of the window's size
        return False
    plain = model.run(images, layers)
    return all(_close(local[layer], plain[layer]) for layer in layers)


def _close(values: Tensor, expected: Tensor) -> bool:
    tolerance = torch.finfo(expected.dtype).eps ** 0.5 / 4
    return values.shape == expected.shape and bool((values - expected).norm() <= tolerance * expected.norm())
