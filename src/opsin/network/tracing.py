"""Which layers a forward calls, and the layouts of their outputs."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from opsin.base.errors import InputError, NetworkError, unknown
from opsin.network.layouts import (
    OTHER,
    PAIR,
    Key,
    Layout,
    Reading,
    by_corner,
    by_kind,
    by_other_layers,
    by_second_trace,
    corner,
    other_size,
    readings,
)
from opsin.network.outputs import tensor_in, unreadable, version

POOL = re.compile(r"Pool\w*2d$")
PASSIVE = re.compile(POOL.pattern + r"|^(Identity|Dropout\w*|DropPath|StochasticDepth|Flatten|Softmax)$")

# (layer, number of its call, its input, its output) -> output to continue with
Capture = Callable[[str, int, Any, Any], Any]
T = TypeVar("T")
Forward = Callable[[Tensor, set[str], Capture], Any]


@dataclass(frozen=True)
class Call:
    """One call of one layer in the network's forward, as traced on an image of the model's size.

    `layout` is that of the output: `maps` (n, c, h, w), `maps_last` (n, h, w, c), `tokens`
    (n, prefix + h*w, c), `vector` (n, c) or `other`; `extent` is (h, w) for the first three. `index`
    counts the layer's calls from 1. A `passive` call only pools, drops or passes on another layer's output.
    One that is not `readable` gives no dense tensor of real numbers and cannot be shown. If several readings
    fit and no evidence decides, the layout is `other`, and `undecided` holds them.
    """

    name: str
    layer: str
    index: int
    kind: str
    shape: tuple[int, ...]
    layout: Layout
    extent: tuple[int, int] | None
    prefix: int
    passive: bool
    readable: bool
    undecided: tuple[Reading, ...] = ()


class Trace(NamedTuple):
    """The calls of a forward by name, the output's shape, and the calls that a later operation overwrites."""

    calls: dict[str, Call]
    output: tuple[int, ...]
    overwritten: set[str]

    @property
    def classes(self) -> int | None:
        """How many classes the output has; `None` if it is not of shape (n, classes)."""
        return self.output[1] if len(self.output) == 2 else None


def trace(network: nn.Module, forward: Forward, image: Tensor, layouts: Mapping[str, str]) -> Trace:
    """The calls that `forward` makes on a random image, with their layouts.

    `layouts` states some of them by name. Raises `InputError` on an unknown name or a wrong layout.
    """
    modules = dict(network.named_modules())
    inner = tuple(f"{name}." for name, m in modules.items() if isinstance(m, ParametrizationList))
    layers = {name for name in modules if name and not f"{name}.".startswith(inner)}
    outputs: dict[Key, tuple[Tensor, int, bool]] = {}
    pooled: list[Tensor] = []

    def capture(layer: str, index: int, _given: Any, output: Any) -> None:
        value = tensor_in(output)
        if value is not None:
            kind = type(modules[layer]).__name__
            if POOL.search(kind):
                pooled.append(value)
            passive = bool(PASSIVE.search(kind)) or any(value is p for p in pooled)
            outputs[layer, index] = value, version(value), passive

    result = tensor_in(forward(image, layers, capture))
    times = Counter(layer for layer, _ in outputs)
    names = {key: f"{key[0]}#{key[1]}" if times[key[0]] > 1 else key[0] for key in outputs}
    possible = _possible({key: value for key, (value, _, _) in outputs.items()}, modules, forward, image)
    calls = {}
    for key, (value, _, passive) in outputs.items():
        kind, several = type(modules[key[0]]).__name__, possible[key]
        if (declared := layouts.get(names[key])) is not None:
            several = _declared(names[key], declared, readings(tuple(value.shape), _size(image)))
        read = several[0] if len(several) == 1 else OTHER
        undecided = tuple(several) if len(several) > 1 else ()
        shape, readable = tuple(value.shape), not unreadable(value)
        calls[names[key]] = Call(
            names[key], *key, kind, shape, read.layout, read.extent, read.prefix, passive, readable, undecided
        )
    if unknown_names := [name for name in layouts if name not in calls]:
        raise unknown("layer", unknown_names[0], calls)
    overwritten = {
        names[key]
        for key, (value, before, _) in outputs.items()
        if value.is_inference() or version(value) != before  # of inference mode it cannot be told
    }
    return Trace(calls, () if result is None else tuple(result.shape), overwritten)


def spatial_layers(calls: Mapping[str, Call]) -> list[str]:
    """The layers that compute maps of more than one position, the last one first.

    Layers that only pool or pass on are left out, and so are the linear maps inside attention.
    """
    return [
        call.name
        for call in reversed(list(calls.values()))
        if not call.passive
        and call.extent not in (None, (1, 1))
        and (call.layout == "maps" or "Linear" not in call.kind)
    ]


def _declared(name: str, layout: str, possible: Sequence[Reading]) -> list[Reading]:
    """The reading that the user declares, if the shape allows it."""
    fitting = [reading for reading in possible if str(reading) == layout]
    if not fitting and layout != OTHER.layout:
        allowed = ", ".join(map(str, (*possible, OTHER)))
        raise InputError(f"layer {name!r} cannot have the layout {layout!r}: its shape allows {allowed}")
    return fitting


def _possible(
    outputs: Mapping[Key, Tensor], modules: Mapping[str, nn.Module], forward: Forward, image: Tensor
) -> dict[Key, list[Reading]]:
    """The readings of each output that are left after all evidence."""
    size, shapes = _size(image), {key: tuple(value.shape) for key, value in outputs.items()}
    possible = {
        key: [] if unreadable(value) else by_kind(modules[key[0]], readings(shapes[key], size))
        for key, value in outputs.items()
    }
    height, width = other_size(size)
    wanted = {key for key, several in possible.items() if several}
    resized = _seen(forward, image[..., :height, :width].expand(PAIR, -1, -1, -1), wanted, _shape)
    fixed = wanted - resized.keys()  # a network for one input size may fail after its first layers
    paired = _seen(forward, image.expand(PAIR, -1, -1, -1), fixed, _shape) if fixed else {}
    for others, other_image_size in ((resized, (height, width)), (paired, size)):
        for key, other in others.items():
            possible[key] = by_second_trace(shapes[key], other, other_image_size, possible[key])
    possible = by_other_layers(possible, fixed, size)
    if undecided := {key for key, several in possible.items() if len(several) > 1}:
        for key, reached in _seen(forward, corner(image), undecided, torch.isnan).items():
            possible[key] = by_corner(reached, possible[key])
    return possible


def _seen(forward: Forward, images: Tensor, wanted: set[Key], see: Callable[[Tensor], T]) -> dict[Key, T]:
    """`see` of each wanted call's output, as far as the forward gets; it may fail on images of this size."""
    observed: dict[Key, T] = {}

    def capture(layer: str, index: int, _given: Any, output: Any) -> None:
        value = tensor_in(output)
        if value is not None and (layer, index) in wanted:
            observed[layer, index] = see(value)

    with suppress(NetworkError):
        forward(images, {layer for layer, _ in wanted}, capture)
    return observed


def _shape(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape)


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]
