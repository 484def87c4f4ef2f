"""Lines over numbers, drawn as SVG for pages: they take the page's colours, light or dark."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 560, 240  # of the drawing's own units
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 42  # margins for the axes


@dataclass(frozen=True)
class Line:
    """One line: its name, and where its points are in the drawing."""

    name: str
    points: tuple[tuple[float, float, str], ...]  # x, y, and what stands there in words

    @property
    def path(self) -> str:
        """The points as SVG has them."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in self.points)


@dataclass(frozen=True)
class Curve:
    """Lines over one horizontal axis, with the ticks of both axes."""

    title: str
    across: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]

    width, height, left, bottom = WIDTH, HEIGHT, LEFT, HEIGHT - BOTTOM


def curve(
    title: str,
    across: str,
    names: Sequence[str],
    values: Mapping[str, Sequence[float]],
    *,
    shown: int = 8,
    logarithmic: bool = False,
) -> Curve:
    """A drawing of several lines: the i-th value of each stands at the i-th name.

    At most `shown` names are written. A logarithmic axis leaves out what is not above zero.
    """
    several = [v for line in values.values() for v in line if math.isfinite(v) and (v > 0 or not logarithmic)]
    low, high = (min(several, default=0.0), max(several, default=1.0)) if logarithmic else (0.0, 1.0)
    if logarithmic:
        low, high = math.floor(math.log10(low or 1)), math.ceil(math.log10(high or 1))
        high = max(high, low + 1)

    def x(index: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * index / max(1, len(names) - 1)

    def y(value: float) -> float:
        share = ((math.log10(value) if logarithmic else value) - low) / (high - low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    lines = tuple(
        Line(
            name,
            tuple(
                (x(i), y(v), f"{name}, {names[i]}: {v:.3g}")
                for i, v in enumerate(line)
                if math.isfinite(v) and (v > 0 or not logarithmic)
            ),
        )
        for name, line in values.items()
    )
    if logarithmic:
        y_ticks = tuple((y(10.0**power), f"{10.0**power:g}") for power in range(int(low), int(high) + 1))
    else:
        y_ticks = tuple((y(share), f"{100 * share:.0f} %") for share in (0, 0.25, 0.5, 0.75, 1))
    every = max(1, math.ceil(len(names) / shown))
    x_ticks = tuple((x(i), name) for i, name in enumerate(names) if i % every == 0)
    return Curve(title, across, lines, x_ticks, y_ticks)
