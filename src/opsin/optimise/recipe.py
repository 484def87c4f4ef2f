"""How an image is changed so that a score rises."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import get_args

from torch import Tensor

from opsin.base.choices import Optimiser
from opsin.base.errors import InputError, unknown
from opsin.optimise.canvas import Canvas, Pixels
from opsin.optimise.transforms import Transform

Constraint = Callable[[Tensor, Tensor, int], None]  # (parameters, gradient, step), in place


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of an ascent.

    `adam` and `lbfgs` are torch's; `gradient` adds rate · (v/|v| averaged over the image), v the
    gradient. The rate falls evenly, on a logarithmic scale, to `decline` times itself. The image is held as
    the parameters of a `canvas` and seen through random `transforms`, drawn anew in every step from `seed`.
    `constrain` may change the parameters after every step. A picture larger than a `tile` is worked tile by
    tile, exactly where the objective is of `terms`, else each tile for itself: memory does not grow with it.

    Raises `InputError` on transforms with `lbfgs`, whose line search compares evaluations, and on its
    rate of zero.
    """

    steps: int
    rate: float
    canvas: Canvas = field(default_factory=Pixels)
    transforms: Sequence[Transform] = ()
    optimiser: Optimiser = "adam"
    decline: float = 1.0
    seed: int = 0
    constrain: Constraint | None = None
    tile: int | None = None

    def __post_init__(self) -> None:
        if self.optimiser not in get_args(Optimiser):
            raise unknown("optimiser", self.optimiser, get_args(Optimiser))
        if self.optimiser == "lbfgs" and self.transforms:
            raise InputError("lbfgs compares evaluations, which random transforms change: use adam")
        if self.optimiser == "lbfgs" and self.rate == 0:
            raise InputError("lbfgs needs a rate above zero")
