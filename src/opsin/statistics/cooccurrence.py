"""Grey-level co-occurrence: which level lies beside which."""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opsin.base.choices import Convention
from opsin.base.errors import InputError, shown, unknown
from opsin.statistics.levels import OUTSIDE

Offset = tuple[int, int]  # rows down, columns to the right
Number = TypeVar("Number", int, float)
LARGEST_NUMBER = 2**15  # of a distance, an angle, an offset


class Rules(NamedTuple):
    """What a convention says where the literature differs.

    Levels are numbered from `first`, logarithms are to the `base`; an angle's offset is (d, d) on a diagonal
    or the `rounded` sine and cosine; angles turn `down`, with the rows, or up, as on paper.
    """

    first: int
    base: float
    rounded: bool
    down: bool


RULES: dict[str, Rules] = {
    "ibsi": Rules(1, 2.0, rounded=False, down=False),
    "haralick": Rules(1, math.e, rounded=False, down=False),
    "scikit-image": Rules(0, math.e, rounded=True, down=True),
}


def rules_of(convention: Convention) -> Rules:
    """The rules of a convention. Raises `InputError` on an unknown one."""
    if convention not in get_args(Convention):
        raise unknown("convention", convention, get_args(Convention))
    return RULES[convention]


def offset_of(distance: int, angle: float, rules: Rules) -> Offset:
    """The offset at a distance in pixels and an angle in degrees.

    At 45° and distance 2 it is 2 rows and 2 columns; rounded, as scikit-image does, 1 and 1. Angles between
    the eight directions need the rounded rule. Raises `InputError` where they do not have it.
    """
    turned = math.radians(angle)
    down, right = distance * math.sin(turned), distance * math.cos(turned)
    if not rules.rounded:
        if angle % 45:
            raise InputError(
                f"an angle of {angle:g} degrees is not a multiple of 45: give offsets, or the convention "
                "scikit-image, which rounds"
            )
        down, right = (math.copysign(distance, x) if abs(x) > 0.1 * distance else 0 for x in (down, right))
    return round(down) * (1 if rules.down else -1), round(right)


def pairs(
    levels: Int[Tensor, "*n h w"], offset: Offset
) -> tuple[Int[Tensor, "*n H W"], Int[Tensor, "*n H W"]]:
    """The level at every pixel from which the offset stays inside, and the level that it leads to.

    H = h - |rows|, W = w - |columns|; the first row and column are those of the pairs' upper left corners.
    """
    h, w = levels.shape[-2:]
    (top, down), (left, right) = ((max(0, -by), max(0, by)) for by in offset)
    high, wide = h - top - down, w - left - right
    if high <= 0 or wide <= 0:
        raise InputError(f"an offset of {offset[0]},{offset[1]} leads out of a picture of {w}x{h} pixels")
    return (
        levels[..., top : top + high, left : left + wide],
        levels[..., down : down + high, right : right + wide],
    )


def matrices(
    levels: Int[Tensor, "n h w"], offsets: Sequence[Offset], count: int, *, symmetric: bool
) -> Float[Tensor, "n k L L"]:
    """How often level i has level j at an offset: counts, for every picture and offset.

    A pair counts where both its pixels are inside the mask; `symmetric` counts it both ways. Raises
    `InputError` where a picture has no pair.
    """
    found = []
    for offset in offsets:
        one, other = pairs(levels, offset)
        whole = (one != OUTSIDE) & (other != OUTSIDE)
        if not whole.flatten(1).any(1).all():
            raise InputError(f"the mask leaves no two pixels at an offset of {offset[0]},{offset[1]}")
        number = torch.arange(len(levels), device=levels.device)[:, None, None]
        codes = ((number * count + one) * count + other)[whole]
        counts = torch.bincount(codes, minlength=len(levels) * count * count)
        found.append(counts.reshape(len(levels), count, count).double())
    counted = torch.stack(found, 1)
    return counted + counted.transpose(-1, -2) if symmetric else counted


def in_words(offset: Offset) -> str:
    """An offset for readers: `up 1, right 2`."""
    ways = ((offset[0], "up", "down"), (offset[1], "left", "right"))
    return ", ".join(f"{less if by < 0 else more} {abs(by)}" for by, less, more in ways if by)


def offsets_of(distances: str, angles: str, offsets: str | None, rules: Rules) -> tuple[Offset, ...]:
    """The offsets that texts name: `row,column; row,column`, or else every distance at every angle.

    Raises `InputError` on texts that are none, and on an offset of no distance or one that is named twice.
    """
    if offsets is not None:
        several = [_numbers("offsets", one, int) for one in offsets.split(";")]
        if any(len(one) != 2 for one in several):
            raise InputError(f"offsets are pairs row,column with semicolons between, not {shown(offsets)}")
        found = [(one[0], one[1]) for one in several]
    else:
        lengths = _numbers("distances", distances, int)
        if min(lengths) < 1:
            raise InputError(f"distances must be at least 1, not {min(lengths)}")
        turns = _numbers("angles", angles, float)
        found = [offset_of(length, turn, rules) for length in lengths for turn in turns]
    if (0, 0) in found:
        raise InputError("the offset 0,0 leads from a pixel to itself")
    if len(set(found)) < len(found):
        again = next(one for one in found if found.count(one) > 1)
        raise InputError(f"the offset {again[0]},{again[1]} is there twice: leave one distance or angle out")
    return tuple(found)


def _numbers(name: str, text: str, kind: type[Number]) -> list[Number]:
    """Numbers with commas between them."""
    try:
        found = [kind(word) for word in text.split(",")]
        if all(abs(one) <= LARGEST_NUMBER for one in found):
            return found
    except ValueError:
        pass
    raise InputError(
        f"{name} must be numbers with commas between, at most {LARGEST_NUMBER}, not {shown(text)}"
    )
