"""How an image is changed so that a score rises."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

from torch import Tensor

from opsin.base.choices import Move
from opsin.base.errors import InputError, unknown
from opsin.optimise.canvas import Canvas, Pixels
from opsin.optimise.transforms import Transform

if TYPE_CHECKING:
    from opsin.network.model import Model
    from opsin.objectives.objective import Objective

Constraint = Callable[[Tensor, Tensor, int], None]  # (parameters, gradient, step), in place
# the scores (n,) of images, and the signal (n, 3, h, w) that the step follows: by default their gradient
Signal = Callable[["Model", "Objective", Tensor], tuple[Tensor, Tensor]]
MOVES = tuple(word for kind in get_args(Move) for word in (get_args(kind) or (kind,)))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of an ascent.

    `adam` and `lbfgs` are torch's; `gradient` adds rate · (v/|v| averaged over the image), v the
    gradient; `sign` adds rate · sign(v), `unit` rate · v/‖v‖₂ and `whole` rate · v. The rate falls evenly,
    on a logarithmic scale, to `decline` times itself. The image is held as the parameters of a `canvas` and
    seen through random `transforms`, drawn anew in every step from `seed`.
    `constrain` may change the parameters after every step. A picture larger than a `tile` is worked tile by
    tile, exactly where the objective is of `terms`, else each tile for itself: memory does not grow with it.
    A `signal` is followed in place of the gradient; it finds the scores too, and may be zero.

    Raises `InputError` on transforms with `lbfgs`, whose line search compares evaluations, and on its
    rate of zero.
    """

    steps: int
    rate: float
    canvas: Canvas = field(default_factory=Pixels)
    transforms: Sequence[Transform] = ()
    optimiser: Move = "adam"
    decline: float = 1.0
    seed: int = 0
    constrain: Constraint | None = None
    tile: int | None = None
    signal: Signal | None = None

    def __post_init__(self) -> None:
        if self.optimiser not in MOVES:
            raise unknown("optimiser", self.optimiser, MOVES)
        if self.optimiser == "lbfgs" and self.transforms:
            raise InputError("lbfgs compares evaluations, which random transforms change: use adam")
        if self.optimiser == "lbfgs" and self.rate == 0:
            raise InputError("lbfgs needs a rate above zero")
