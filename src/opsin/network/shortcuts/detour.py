"""How to run a network on images that differ from a known one in a square only: on windows around it."""

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

# A detour that saves less than this share of the multiplications is not worth its own work; found by trial.
LEAST_SAVING = 0.08
PASTE = 100  # multiplications that take as long as to copy one activation; found by trial

Place = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True)
class Reach:
    """A unit u sees nothing outside [stride·u + low, stride·u + high), along rows or columns."""

    stride: int
    low: int
    high: int

    def since(self, other: "Reach") -> "Reach":
        """What the unit sees of the units of a layer before, where all that it sees goes through these."""
        step = other.stride
        return Reach(
            self.stride // step, (self.low - other.low) // step, (self.high - other.high) // step + 1
        )

    def changed(self, start: int, size: int, units: int) -> slice:
        """Which of so many units see some of what begins at `start` and is `size` long."""
        first = max(0, (start - self.high) // self.stride + 1)
        last = min(units - 1, -(-(start + size - self.low) // self.stride) - 1)
        return slice(first, last + 1)

    def most(self, size: int) -> int:
        """How many units at most see some of what is `size` long."""
        return (size + self.high - self.low - 2) // self.stride + 1

    def window(self, units: int) -> int:
        """A length, as a multiple of the stride, that holds what so many units see."""
        seen = self.stride * (units - 1) + self.high - self.low
        return -(-(seen + self.stride - 1) // self.stride) * self.stride


@dataclass(frozen=True)
class Side:
    """Along rows or columns: what a stop's units see of the image, and of the maps at the stop before.

    On a window of so many of those (of the image, before the first stop) the network is run.
    """

    image: Reach
    before: Reach
    length: int

    def window(self, units: slice, whole: int) -> slice:
        """The window in a whole of such a length that holds what these units see."""
        begin = (units.start + self.before.low // self.before.stride) * self.before.stride
        begin = min(max(0, begin), whole - self.length)
        return slice(begin, begin + self.length)


@dataclass(frozen=True)
class Stop:
    """A layer where the units that a square can change are put into the known image's maps."""

    layer: str
    sides: tuple[Side, Side]

    def pasting(
        self, known: Float[Tensor, "1 c h w"], ran: list[Place], changed: list[Place], next_: list[Place]
    ) -> Callable[[Float[Tensor, "k c _ _"]], Float[Tensor, "k c _ _"]]:
        """The maps on each image's `next_` window, from those on the window that was `ran`."""

        def pasted(maps: Tensor) -> Tensor:
            made = torch.cat([known[:, :, *window] for window in next_])
            made = made.contiguous(memory_format=torch.channels_last)
            for own, inner, before, units, window in zip(made, maps, ran, changed, next_, strict=True):
                to, of = [], []
                for side, b, u, w in zip(self.sides, before, units, window, strict=True):
                    first, last = max(u.start, w.start), min(u.stop, w.stop)
                    to.append(slice(first - w.start, last - w.start))
                    moved = b.start // side.before.stride
                    of.append(slice(first - moved, last - moved))
                own[:, *to] = inner[:, *of]
            return made

        return pasted


@dataclass(frozen=True)
class Detour:
    """From stop to stop the network runs on a window around what the square can change.

    At each the units that it can change are put into the known image's maps, of which the next window
    is cut. Behind the last stop the network goes on with the whole maps.
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
    """The cheapest detour for squares of `patch` pixels; `None` where none is right or worth it.

    It is taken only where the numbers say that it gives what the plain way gives.
    """
    stops = _cheapest(model, images[:1], layers, patch)
    while stops:
        made = Detour(tuple(stops))
        if _is_right(made, model, images[:1], layers, patch):
            return made
        stops.pop()
    return None


def _cheapest(model: Model, image: Float[Tensor, "1 3 h w"], layers: Sequence[str], patch: int) -> list[Stop]:
    """The stops that leave the fewest multiplications; none where these save too little."""
    seen = {"image": (Reach(1, 0, 1),) * 2} | _reaches(model, image, patch, layers)
    shapes = {"image": image.shape} | _passages(model, image, layers, list(seen)[1:])
    alike = groupby(list(shapes)[1:], key=seen.__getitem__)  # of layers that see the same the smallest
    names = [min(reversed(list(group)), key=lambda name: shapes[name].numel()) for _, group in alike]
    order, works = list(model.calls), _multiplications(model)

    def work(first: str, last: str | None) -> float:
        """From behind one layer to the end of another."""
        begin = 0 if first == "image" else order.index(first) + 1
        return sum(works[begin : order.index(last) + 1 if last else None]) + PASTE * shapes[first].numel()

    least: dict[str, tuple[float, list[Stop]]] = {"image": (0, [])}
    for one, other in combinations(["image", *names], 2):
        if one in least and all(
            b.stride % a.stride == 0 for a, b in zip(seen[one], seen[other], strict=True)
        ):
            cost, stops = least[one]
            befores = [b.since(a) for a, b in zip(seen[one], seen[other], strict=True)]
            lengths = [
                before.window(reach.most(patch)) for before, reach in zip(befores, seen[other], strict=True)
            ]
            total = cost + prod(lengths) / prod(shapes[one][2:]) * work(one, other)
            fits = all(length < whole for length, whole in zip(lengths, shapes[one][2:], strict=True))
            if fits and (other not in least or total < least[other][0]):
                rows, columns = map(Side, seen[other], befores, lengths)
                least[other] = (total, [*stops, Stop(other, (rows, columns))])
    totals = {name: cost + work(name, None) for name, (cost, _) in least.items()}
    best = min(totals, key=totals.__getitem__)
    return least[best][1] if totals[best] <= (1 - LEAST_SAVING) * totals["image"] else []


def _passages(
    model: Model, image: Float[Tensor, "1 3 h w"], layers: Sequence[str], names: Sequence[str]
) -> dict[str, torch.Size]:
    """The `names`, with shapes, through which alone `layers` depend on the image, according to the graph."""
    try:
        run = model.run(image, (*names, *layers), start="image")
    except NetworkError:  # one that cannot be differentiated
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
    """What units see along rows and columns, by layer of maps before the first of `layers`.

    Layers in which a square reaches the edge are left out. It is not-a-number, so that its reach is seen.
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
    found = {}
    for name in names:
        reached = run[name].isnan().any(1)[0]  # (h, w)
        rows, columns = map(_reach, (reached.any(1), reached.any(0)), corner, size, (patch, patch))
        if rows and columns:
            found[name] = (rows, columns)
    return found


def _reach(reached: Bool[Tensor, " n"], start: int, length: int, patch: int) -> Reach | None:
    """What each of so many units sees, of which a patch at `start` along a side reached some."""
    stride, rest = divmod(length, len(reached))
    if rest or not reached.any() or reached[0] or reached[-1]:
        return None
    first, last = (int(edge) for edge in reached.nonzero().flatten()[[0, -1]])
    return Reach(stride, start + patch - stride * (last + 1), start - stride * (first - 1))


def _multiplications(model: Model) -> list[int]:
    """The multiplications of each call's own convolution, in the order of `model.calls`."""

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
    """Whether a square in a corner and one at an odd place give what the plain way gives."""
    generator = torch.Generator().manual_seed(0)
    known = model.run(image, detour.layers)
    height, width = image.shape[-2:]
    corners = [(int(r * (height - patch)), int((1 - r) * (width - patch))) for r in (0, 0.55)]
    images = image.repeat(len(corners), 1, 1, 1)
    for one, (top, left) in zip(images, corners, strict=True):
        noise = torch.rand(3, patch, patch, generator=generator)
        one[:, top : top + patch, left : left + patch] = noise.to(one)
    try:
        local = detour.run(model, images, corners, patch, layers, known)
    except (NetworkError, RuntimeError):  # the network does not take images of the window's size
        return False
    plain = model.run(images, layers)
    return all(_close(local[layer], plain[layer]) for layer in layers)


def _close(one: Tensor, other: Tensor) -> bool:
    tolerance = torch.finfo(other.dtype).eps ** 0.5 / 4
    return one.shape == other.shape and bool((one - other).norm() <= tolerance * other.norm())
