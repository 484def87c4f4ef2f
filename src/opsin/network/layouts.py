"""How an output may be laid out, and which evidence decides.

One forward on a random image shows every call's shape. A shape alone may be read in several ways: (1, 96,
96, 96) as channels first or last, 30 tokens as 5 x 6 or as 5 x 5 after five others. The evidence, in this
order: the kind of module; a second forward on two images of another shape, in which positions change and
channels do not; the extents of layers with a single possible reading; and an image with NaN in one
corner, which reaches some positions and all of their channels.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor, nn

Layout = Literal["maps", "maps_last", "tokens", "vector", "other"]

MAX_PREFIX_TOKENS = 8
PAIR = 2  # images in the second trace: a first dimension that does not become 2 is not the batch
CHANNEL: dict[Layout, int] = {"maps": 1, "maps_last": 3, "tokens": 2, "vector": 1}  # its dimension
CHANNELS_FIRST = (
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.BatchNorm2d,
    nn.InstanceNorm2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)
CHANNELS_LAST = (nn.Linear, nn.LayerNorm)  # not their subclasses, which may permute maps


Key = tuple[str, int]  # a layer, and the number of its call, from 1


class Reading(NamedTuple):
    """One way to read an output: `extent` is (h, w) of its positions, `prefix` the tokens before them."""

    layout: Layout
    extent: tuple[int, int] | None = None
    prefix: int = 0

    def __str__(self) -> str:
        return f"tokens+{self.prefix}" if self.prefix else self.layout


OTHER = Reading("other")


def readings(shape: tuple[int, ...], size: tuple[int, int]) -> list[Reading]:
    """All readings that the shape of an output for one image of `size` allows."""
    if not shape or shape[0] != 1:
        return []
    if len(shape) == 2:
        return [Reading("vector")]
    if len(shape) == 4:
        first, last = Reading("maps", shape[2:4]), Reading("maps_last", shape[1:3])
        return [r for r in (first, last) if r.extent and _tiles(*r.extent, size)]
    if len(shape) != 3:
        return []
    token_readings = []
    for prefix in range(min(MAX_PREFIX_TOKENS + 1, shape[1])):
        positions = shape[1] - prefix
        h = round((positions * size[0] / size[1]) ** 0.5)
        if h > 1 and positions % h == 0 and _tiles(h, positions // h, size):
            token_readings.append(Reading("tokens", (h, positions // h), prefix))
    return token_readings


def _tiles(h: int, w: int, size: tuple[int, int]) -> bool:
    """Whether h x w positions have the image's aspect ratio, up to rounding."""
    return h <= size[0] and w <= size[1] and abs(h * size[1] - w * size[0]) <= max(size)


def _fills(h: int, w: int, size: tuple[int, int]) -> bool:
    """Whether h x w positions have the image's aspect ratio exactly."""
    return h * size[1] == w * size[0]


def other_size(size: tuple[int, int]) -> tuple[int, int]:
    """The image size of the second trace: the same height, about a third narrower."""
    height, width = size
    step = next(step for step in (32, 8, 1) if width >= 3 * step or step == 1)
    narrower = max(step, 2 * width // 3 // step * step)
    return height, narrower if narrower != height else max(1, narrower - step)


def by_kind(module: nn.Module, possible: Sequence[Reading]) -> list[Reading]:
    """The readings that the module's class allows."""
    if isinstance(module, CHANNELS_FIRST):
        return [reading for reading in possible if reading.layout == "maps"]
    if type(module) in CHANNELS_LAST:
        return [reading for reading in possible if reading.layout != "maps"]
    return list(possible)


def by_second_trace(
    shape: tuple[int, ...],
    other: tuple[int, ...],
    size: tuple[int, int],
    possible: Sequence[Reading],
) -> list[Reading]:
    """The readings under which the output for two images of another `size` changes as it must."""
    if len(other) != len(shape) or other[0] != PAIR:
        return []
    return [reading for reading in possible if _agrees(reading, shape, other, size)]


def _agrees(reading: Reading, shape: tuple[int, ...], other: tuple[int, ...], size: tuple[int, int]) -> bool:
    channel = CHANNEL[reading.layout]
    if shape[channel] != other[channel]:
        return False
    if reading.extent is None or shape[1:] == other[1:]:  # pooled to one extent whatever the image
        return True
    h, w = reading.extent
    if reading.layout == "tokens":
        rows, (columns, remainder) = h, divmod(other[1] - reading.prefix, h)
    else:
        rows, columns = (other[2], other[3]) if reading.layout == "maps" else (other[1], other[2])
        remainder = 0
    return (rows, remainder) == (h, 0) and (0 < columns < w or (columns == w and _tiles(rows, columns, size)))


def by_other_layers(
    possible: Mapping[Key, Sequence[Reading]], fixed: set[Key], size: tuple[int, int]
) -> dict[Key, list[Reading]]:
    """Readings of ambiguous layers that agree with the layers that have a single reading.

    Tokens are read with the extent of maps or of other tokens if any reading has it; else with exactly the
    image's aspect ratio; else with a prefix that other tokens have. A square whose side is the number of
    tokens is an attention matrix; for networks with a fixed input size (`fixed`) no second trace shows that.
    """
    remaining = {key: list(several) for key, several in possible.items()}

    def decided() -> list[Reading]:
        return [several[0] for several in remaining.values() if len(several) == 1]

    extents = {reading.extent for reading in decided()}
    doubtful = [
        key for key, several in remaining.items() if len(several) > 1 and several[0].layout == "tokens"
    ]
    for key in doubtful:
        known = [reading for reading in remaining[key] if reading.extent in extents]
        exact = [reading for reading in remaining[key] if reading.extent and _fills(*reading.extent, size)]
        remaining[key] = known or exact or remaining[key]
    tokens = [reading for reading in decided() if reading.layout == "tokens"]
    prefixes = {reading.prefix for reading in tokens}
    for key in doubtful:
        remaining[key] = [reading for reading in remaining[key] if reading.prefix in prefixes] or remaining[
            key
        ]
    lengths = {r.prefix + r.extent[0] * r.extent[1] for r in tokens if r.extent}
    squares = {(length, length) for length in lengths}
    return {
        key: [reading for reading in several if not (key in fixed and reading.extent in squares)]
        for key, several in remaining.items()
    }


def by_corner(reached: Bool[Tensor, "1 *shape"], possible: Sequence[Reading]) -> list[Reading]:
    """The readings under which a corner of the image reaches all channels of a position or none."""
    if not reached.any() or reached.all():
        return list(possible)  # no evidence
    across = {reading: reached.movedim(CHANNEL[reading.layout], 0) for reading in possible}
    return [reading for reading, units in across.items() if bool((units == units[:1]).all())]


def corner(image: Tensor) -> Tensor:
    """The image with NaN in one corner, which is wider than high."""
    h, w = image.shape[-2:]
    spoiled = image.clone()
    spoiled[..., : max(1, h // 5), : max(1, w // 3)] = torch.nan
    return spoiled
