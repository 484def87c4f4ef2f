"""Objectives on the image itself."""

from torch import Tensor

from opsin.base.choices import MOST_EXPONENT
from opsin.base.errors import InputError, shown
from opsin.network.activations import Activations
from opsin.objectives.features import SMALL
from opsin.objectives.objective import Objective, check_finite, written


def total_variation(beta: float = 2.0) -> Objective:
    """Minus the image's total variation: -Σ ((x(i, j+1) - x(i, j))² + (x(i+1, j) - x(i, j))²)^(β/2)."""
    _check_exponent(beta)

    def score(activations: Activations) -> Tensor:
        x = activations["image"]
        right = x[..., :-1, 1:] - x[..., :-1, :-1]
        down = x[..., 1:, :-1] - x[..., :-1, :-1]
        return -(right.square() + down.square()).clamp(min=SMALL).pow(beta / 2).flatten(1).sum(1)

    return Objective(f"total_variation({written(beta)})", ("image",), score)


def norm(alpha: float = 2.0, centre: Tensor | float = 0.0, unit: Tensor | float = 1.0) -> Objective:
    """Minus the image's α-norm to the power α: -Σ |(x - centre) / unit|^α."""
    _check_exponent(alpha)
    numbers = [alpha]
    if not isinstance(centre, Tensor) and not isinstance(unit, Tensor) and (centre, unit) != (0, 1):
        numbers += [check_finite(centre), check_finite(unit)]
        if not unit:
            raise InputError("the unit of a norm must not be zero")
    return Objective(
        f"norm({', '.join(map(written, numbers))})",
        ("image",),
        lambda a: -((a["image"] - centre) / unit).abs().pow(alpha).flatten(1).sum(1),
    )


def _check_exponent(exponent: float) -> None:
    if not 1 <= exponent <= MOST_EXPONENT:
        raise InputError(f"the exponent of a prior must be from 1 to {MOST_EXPONENT}, not {shown(exponent)}")
