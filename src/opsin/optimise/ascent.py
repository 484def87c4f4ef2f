"""The one loop that climbs an objective by changing an image.

`ascend` is a stream of steps and knows nothing of who reads it. `climb` drains it for a technique: it
tells the steps to whoever listens, stops early when the listener has seen `Enough`, and leaves in the
result what is needed to go on from there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.choices import Optimiser
from opsin.base.errors import InputError, NetworkError, unknown
from opsin.network.backward import differentiating
from opsin.network.model import Model
from opsin.objectives.objective import Objective
from opsin.optimise.canvas import Canvas, Pixels
from opsin.optimise.tiles import tiled
from opsin.optimise.transforms import Transform

MEMORY = 20  # pairs that L-BFGS remembers
MAX_EVALUATIONS = 25  # of a line search
MOMENTUM = 0.9
SMALL = 1e-12
DAMAGED = "the state to go on from is damaged: "

Constraint = Callable[[Tensor, Tensor, int], None]  # (parameters, gradient, step), in place


@dataclass(frozen=True)
class Step:
    """Where a climb stands after so many steps.

    `scores` (n,) are those that the last step started from, `None` before the first. `images()` gives
    the pictures in [0, 1], `state()` all that is needed to go on; both as they are when they are called.
    """

    number: int
    scores: Float[Tensor, " n"] | None
    images: Callable[[], Float[Tensor, "n 3 h w"]]
    state: Callable[[], dict[str, Tensor]]


def ascend(
    model: Model,
    objective: Objective,
    start: Float[Tensor, "n 3 h w"],
    *,
    steps: int,
    rate: float,
    canvas: Canvas | None = None,
    transforms: Sequence[Transform] = (),
    optimiser: Optimiser = "adam",
    decline: float = 1.0,
    seed: int = 0,
    constrain: Constraint | None = None,
    tile: int | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> Iterator[Step]:
    """Change `start` so that the objective's score rises; yields before the first and after every step.

    `adam` and `lbfgs` are torch's; `gradient` adds rate · (v/|v| averaged over the image), v the
    gradient. The rate falls evenly, on a logarithmic scale, to `decline` times itself. `constrain` may
    change the parameters after every step. A picture larger than a `tile` is worked tile by tile,
    exactly where the objective is of `terms`, else each tile for itself: memory does not grow with it.
    `state` is an earlier step's: the climb goes on from there, of Adam and plain gradients with the same
    bits as without the break. L-BFGS may leave [0, 1]; the score is that of the clipped pictures.

    Raises `InputError` where the score does not depend on the image, and on transforms with `lbfgs`, whose
    line search compares evaluations, or a rate of zero; `NetworkError` where the score is no longer a number.
    """
    transforms = _checked(optimiser, transforms, rate)
    canvas = canvas or Pixels()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        parameters = canvas.encode(start).clone()
    parameters.requires_grad_()
    climber = _climber(optimiser, parameters, rate)
    number = _restore(state, parameters, climber, generator) if state else 0
    latest: list[Tensor] = []
    scored: list[Tensor] = []  # of a step, beginning with where it starts; a line search tries more

    def evaluate() -> Tensor:
        """The loss, with the gradient in place; of the same parameters once."""
        if latest and optimiser == "lbfgs" and torch.equal(latest[0], parameters):
            parameters.grad = latest[2].clone()
            scored.append(latest[1])
            return latest[1].sum().neg()
        scores, gradient = _evaluate(model, objective, canvas, transforms, parameters, generator, tile)
        if number == 0 and not latest:
            _check(objective, gradient)
        if not scores.isfinite().all():
            raise NetworkError(f"the score of {objective.name!r} is {scores.tolist()} at step {number + 1}")
        if optimiser == "gradient":
            size = gradient.abs().flatten(1).mean(1)
            gradient = gradient / (size.view(-1, *[1] * (gradient.ndim - 1)) + SMALL)
        parameters.grad = gradient.neg().contiguous()
        latest[:] = [parameters.detach().clone(), scores, parameters.grad.clone()]
        scored.append(scores)
        return scores.sum().neg()

    def images() -> Tensor:
        with torch.no_grad():
            return canvas.decode(parameters).clamp(0, 1)

    def remembered() -> dict[str, Tensor]:
        kept = {} if optimiser == "lbfgs" else climber.state[parameters]
        moments = {f"moment.{name}": value.clone() for name, value in kept.items() if value is not None}
        at = {"parameters": parameters.detach().clone(), "number": torch.tensor(number)}
        return {**at, "generator": generator.get_state(), **moments}

    yield Step(number, None, images, remembered)
    while number < steps:
        climber.param_groups[0]["lr"] = rate * decline ** (number / steps)
        scored.clear()
        climber.step(evaluate)  # type: ignore[arg-type]
        number += 1
        with torch.no_grad():
            if optimiser != "lbfgs":
                canvas.project(parameters)
            if constrain is not None:
                constrain(parameters, latest[2].neg(), number)
        yield Step(number, scored[0], images, remembered)


def _restore(
    state: Mapping[str, Tensor],
    parameters: Tensor,
    climber: torch.optim.Optimizer,
    generator: torch.Generator,
) -> int:
    """Put a climb where an earlier step left it; the number of that step.

    Raises `InputError` where the state is not of such a climb.
    """
    moments = {k.removeprefix("moment."): v for k, v in state.items() if k.startswith("moment.")}
    number = step_number(state)
    wrong = [k for k, v in moments.items() if v.shape not in (parameters.shape, ())]
    if "parameters" not in state or state["parameters"].shape != parameters.shape:
        wrong.append("parameters")
    if wrong:
        raise InputError(f"{DAMAGED}{wrong[0]} is not of shape {tuple(parameters.shape)}")
    try:
        generator.set_state(state["generator"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise InputError(f"{DAMAGED}the generator: {error}") from error
    with torch.no_grad():
        parameters.copy_(state["parameters"])
    climber.state[parameters].update({name: value.clone() for name, value in moments.items()})
    return number


def step_number(state: Mapping[str, Tensor]) -> int:
    """How many steps have been climbed. Raises `InputError` where the state does not say."""
    number = state.get("number")
    if number is None or number.shape != () or number.dtype != torch.int64 or number < 0:
        raise InputError(f"{DAMAGED}the number of steps is {number}")
    return int(number)


def clipped(images: Float[Tensor, "n 3 h w"], _: torch.Generator) -> Float[Tensor, "n 3 h w"]:
    """The images in [0, 1]: a pixel beyond has no gradient."""
    return images.clamp(0, 1)


def _checked(optimiser: str, transforms: Sequence[Transform], rate: float) -> Sequence[Transform]:
    """What images are changed by. Raises `InputError` on what a line search cannot work with."""
    if optimiser not in get_args(Optimiser):
        raise unknown("optimiser", optimiser, get_args(Optimiser))
    if optimiser != "lbfgs":
        return transforms
    if transforms:
        raise InputError("lbfgs compares evaluations, which random transforms change: use adam")
    if rate == 0:
        raise InputError("lbfgs needs a rate above zero")
    return [clipped]


def _climber(optimiser: Optimiser, parameters: Tensor, rate: float) -> torch.optim.Optimizer:
    if optimiser == "adam":
        return torch.optim.Adam([parameters], lr=rate)
    if optimiser == "gradient":
        return torch.optim.SGD([parameters], lr=rate)
    return torch.optim.LBFGS(
        [parameters],
        lr=rate,
        max_iter=1,
        max_eval=MAX_EVALUATIONS,
        history_size=MEMORY,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )


def _evaluate(
    model: Model,
    objective: Objective,
    canvas: Canvas,
    transforms: Sequence[Transform],
    parameters: Tensor,
    generator: torch.Generator,
    tile: int | None,
) -> tuple[Tensor, Tensor]:
    """The scores (n,) and their gradient in the parameters."""
    seen = canvas.decode(parameters)
    for transform in transforms:
        seen = transform(seen, generator)
    if tile is None or max(seen.shape[-2:]) <= tile:
        scores, signal = _signal(model, objective, seen)
    elif objective.terms:
        scores, signal = tiled(model, objective, seen.detach(), tile)
    else:
        rows = seen.detach().tensor_split(-(-seen.shape[2] // tile), 2)
        parts = [row.tensor_split(-(-seen.shape[3] // tile), 3) for row in rows]
        found = [[_signal(model, objective, part) for part in row] for row in parts]
        scores = torch.stack([score for row in found for score, _ in row]).mean(0)
        signal = torch.cat([torch.cat([one for _, one in row], 3) for row in found], 2)
    if seen is not parameters:
        (signal,) = torch.autograd.grad(seen, parameters, signal)
    return scores, signal


def _signal(model: Model, objective: Objective, images: Tensor) -> tuple[Tensor, Tensor]:
    """The scores (n,) and their gradient in the images."""
    run = model.run(images, objective.layers, start="image")
    scores = objective.score(run)
    signal = None
    if scores.requires_grad:
        with differentiating():
            (signal,) = torch.autograd.grad(scores.sum(), run["image"], allow_unused=True)
    if signal is None:
        raise InputError(f"{objective.name!r} does not depend on the image")
    return scores.detach(), signal


def _check(objective: Objective, gradient: Tensor) -> None:
    flat = (gradient == 0).flatten(1).all(1)
    if flat.any():
        which = int(flat.nonzero()[0])
        raise InputError(
            f"the gradient of {objective.name!r} is exactly zero at the start of picture {which}: "
            "it does not depend on the image there (a unit behind a rectifier that is off?); "
            "start elsewhere (another seed), or ask for the layer before the rectifier"
        )
