"""Results in matplotlib."""

import textwrap
from math import ceil
from typing import Any

import numpy as np

from opsin.base.errors import InputError
from opsin.base.extras import extra
from opsin.results.cells import Cell

COLUMNS = 3
SIDE = 4.0  # inches of one picture
LETTERS, LONGEST = 50, 200  # of a line of a title, and of the whole


def plotted(cells: list[Cell], total: int, ax: Any) -> Any:
    """The pictures on axes: on `ax`, which takes one, or on a new figure; maps have a colour bar.

    Returns the axes, of several pictures an array of them. Raises `InputError` if there are several pictures
    for one `ax`, and without matplotlib.
    """
    with extra("plot"):
        import matplotlib.pyplot as plt  # noqa: PLC0415 (an extra)
    if not cells:
        raise InputError("this result has no pictures to draw")
    if ax is not None:
        if total > 1:
            raise InputError(f"{total} pictures for one axes: choose one, as in result[0].plot(ax)")
        _draw(cells[0], ax)
        return ax
    columns = min(COLUMNS, len(cells))
    rows = ceil(len(cells) / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(SIDE * columns, SIDE * rows), squeeze=False, layout="constrained"
    )
    axes = grid.flatten()
    for cell, own in zip(cells, axes, strict=False):
        _draw(cell, own)
    for own in axes[len(cells) :]:
        own.remove()
    if total > len(cells):
        figure.suptitle(f"{len(cells)} of {total} shown")
    return axes[0] if total == 1 else axes[: len(cells)]


def _draw(cell: Cell, ax: Any) -> None:
    from matplotlib.cm import ScalarMappable  # noqa: PLC0415 (an extra)
    from matplotlib.colors import ListedColormap, Normalize  # noqa: PLC0415

    ax.imshow(np.asarray(cell.picture))
    lines = [line for text in (cell.title, cell.caption) for line in textwrap.wrap(text[:LONGEST], LETTERS)]
    ax.set_title("\n".join(lines), fontsize="small", parse_math=False)
    ax.set_axis_off()
    if cell.scale is not None:
        colours = ListedColormap(np.asarray(cell.scale.bar)[0] / 255)
        mappable = ScalarMappable(Normalize(cell.scale.low, cell.scale.high), colours)
        ax.figure.colorbar(mappable, ax=ax, shrink=0.8)
