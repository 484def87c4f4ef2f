"""The one loop that changes an image so that an objective's score rises.

`ascend` is a stream of steps and knows nothing of who reads it; `climb` drains it for a technique.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.errors import InputError, NetworkError
from opsin.base.job import note, within
from opsin.base.trail import DAMAGED
from opsin.gradients.rules import applied, passing
from opsin.network.backward import differentiating
from opsin.network.cut import check_graph
from opsin.network.model import Model
from opsin.objectives.objective import Objective
from opsin.optimise.recipe import Recipe
from opsin.optimise.tiles import tiled

MEMORY = 20  # pairs that L-BFGS remembers
MAX_EVALUATIONS = 25  # of a line search
SMALL = 1e-12
# what a gradient is divided by, by optimiser
SIZES: Mapping[str, Callable[[Float[Tensor, "n d"]], Float[Tensor, " n"]]] = {
    "gradient": lambda flat: flat.abs().mean(1),
    "unit": lambda flat: flat.norm(dim=1),
}


@dataclass(frozen=True)
class Step:
    """Where an ascent stands after so many steps.

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
    recipe: Recipe,
    *,
    state: Mapping[str, Tensor] | None = None,
) -> Iterator[Step]:
    """Change `start` so that the objective's score rises; yields before the first and after every step.

    `state` is an earlier step's: the ascent goes on from there, of Adam and plain gradients with the same
    bits as without the break. L-BFGS may leave [0, 1]; the score is that of the clipped pictures.

    Raises `InputError` where the score does not depend on the image, `NetworkError` where it is no longer a
    number or the network's own code cuts the graph.
    """
    ascent = _Ascent(model, objective, start, recipe)
    if state:
        ascent.restore(state)
    yield ascent.step(None)
    while ascent.number < recipe.steps:
        yield ascent.step(ascent.advance())


class _Evaluation(NamedTuple):
    parameters: Tensor
    scores: Tensor  # (n,)
    gradient: Tensor  # of the score in the parameters


class _Ascent:
    """The parameters of the pictures, their optimiser, and what was evaluated last."""

    def __init__(self, model: Model, objective: Objective, start: Tensor, recipe: Recipe) -> None:
        self.model, self.objective, self.recipe = model, objective, recipe
        self.generator = torch.Generator().manual_seed(recipe.seed)
        with torch.no_grad():
            self.parameters = recipe.canvas.encode(start).clone()
        self.parameters.requires_grad_()
        self.optimiser = _optimiser(recipe, self.parameters)
        self.number = 0
        self.latest: _Evaluation | None = None

    def advance(self) -> Tensor:
        """One step of the optimiser; the scores (n,) that it started from."""
        recipe, scored = self.recipe, list[Tensor]()

        def loss() -> Tensor:
            self.latest = self._evaluated()
            scored.append(self.latest.scores)  # a line search tries more points than one
            self.parameters.grad = self.latest.gradient.neg()
            return self.latest.scores.sum().neg()

        self.optimiser.param_groups[0]["lr"] = recipe.rate * recipe.decline ** (self.number / recipe.steps)
        self.optimiser.step(loss)  # type: ignore[arg-type]
        self.number += 1
        assert self.latest is not None
        with torch.no_grad():
            if recipe.optimiser != "lbfgs":
                recipe.canvas.project(self.parameters)
            if recipe.constrain is not None:
                recipe.constrain(self.parameters, self.latest.gradient, self.number)
        return scored[0]

    def step(self, scores: Tensor | None) -> Step:
        return Step(self.number, scores, self._images, self._state)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to an earlier step's state. Raises `InputError` where it is that of another ascent."""
        moments = {k.removeprefix("moment."): v for k, v in state.items() if k.startswith("moment.")}
        self.number = step_number(state)
        shape = self.parameters.shape
        wrong = [k for k, v in moments.items() if v.shape not in (shape, ())]
        if "parameters" not in state or state["parameters"].shape != shape:
            wrong.append("parameters")
        if wrong:
            raise InputError(f"{DAMAGED}{wrong[0]} is not of shape {tuple(shape)}")
        try:
            self.generator.set_state(state["generator"])
        except (KeyError, RuntimeError, TypeError) as error:
            raise InputError(f"{DAMAGED}the generator: {error}") from error
        with torch.no_grad():
            self.parameters.copy_(state["parameters"])
        self.optimiser.state[self.parameters].update({name: v.clone() for name, v in moments.items()})

    def _evaluated(self) -> _Evaluation:
        """Scores and gradient of the parameters; a line search asks for the same ones again."""
        if (
            self.latest is not None
            and self.recipe.optimiser == "lbfgs"
            and torch.equal(self.latest.parameters, self.parameters)
        ):
            return self.latest
        scores, gradient = _score_and_gradient(
            self.model, self.objective, self.recipe, self.parameters, self.generator
        )
        if self.number == 0 and self.latest is None and self.recipe.signal is None:
            _check(self.objective, gradient)
        if not scores.isfinite().all():
            raise NetworkError(
                f"the score of {self.objective.name!r} is {scores.tolist()} at step {self.number + 1}"
            )
        if measure := SIZES.get(self.recipe.optimiser):
            size = measure(gradient.flatten(1))
            gradient = gradient / (size.view(-1, *[1] * (gradient.ndim - 1)) + SMALL)
        elif self.recipe.optimiser == "sign":
            gradient = gradient.sign()
        return _Evaluation(self.parameters.detach().clone(), scores, gradient.contiguous())

    def _images(self) -> Float[Tensor, "n 3 h w"]:
        with torch.no_grad():
            return self.recipe.canvas.decode(self.parameters).clamp(0, 1)

    def _state(self) -> dict[str, Tensor]:
        kept = {} if self.recipe.optimiser == "lbfgs" else self.optimiser.state[self.parameters]
        moments = {f"moment.{name}": value.clone() for name, value in kept.items() if value is not None}
        at = {"parameters": self.parameters.detach().clone(), "number": torch.tensor(self.number)}
        return {**at, "generator": self.generator.get_state(), **moments}


def step_number(state: Mapping[str, Tensor]) -> int:
    """How many steps have been made. Raises `InputError` where the state does not say."""
    number = state.get("number")
    if number is None or number.shape != () or number.dtype != torch.int64 or number < 0:
        raise InputError(f"{DAMAGED}the number of steps is {number}")
    return int(number)


def _optimiser(recipe: Recipe, parameters: Tensor) -> torch.optim.Optimizer:
    if recipe.optimiser == "adam":
        return torch.optim.Adam([parameters], lr=recipe.rate)
    if recipe.optimiser != "lbfgs":
        return torch.optim.SGD([parameters], lr=recipe.rate)
    return torch.optim.LBFGS(
        [parameters],
        lr=recipe.rate,
        max_iter=1,
        max_eval=MAX_EVALUATIONS,
        history_size=MEMORY,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )


def _score_and_gradient(
    model: Model, objective: Objective, recipe: Recipe, parameters: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The scores (n,) and their gradient in the parameters."""
    seen = recipe.canvas.decode(parameters)
    if recipe.optimiser == "lbfgs":
        seen = seen.clamp(0, 1)  # a pixel beyond has no gradient
    for transform in recipe.transforms:
        seen = transform(seen, generator)
    if recipe.signal is not None:
        scores, signal = recipe.signal(model, objective, seen.detach())
    elif recipe.tile is None or max(seen.shape[-2:]) <= recipe.tile:
        scores, signal = _signal(model, objective, seen)
    elif objective.terms:
        scores, signal = tiled(model, objective, seen.detach(), recipe.tile)
    else:
        scores, signal = _each_tile(model, objective, seen.detach(), recipe.tile)
    if seen is not parameters:
        (signal,) = torch.autograd.grad(seen, parameters, signal)
    return scores, signal


def _each_tile(model: Model, objective: Objective, images: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """The mean of the tiles' scores (n,), and each tile's own gradient in its pixels."""
    rows = images.tensor_split(-(-images.shape[2] // tile), 2)
    parts = [row.tensor_split(-(-images.shape[3] // tile), 3) for row in rows]
    signals = [[_signal(model, objective, part) for part in row] for row in parts]
    scores = torch.stack([score for row in signals for score, _ in row]).mean(0)
    return scores, torch.cat([torch.cat([signal for _, signal in row], 3) for row in signals], 2)


def _signal(model: Model, objective: Objective, images: Tensor) -> tuple[Tensor, Tensor]:
    """The scores (n,) and their gradient in the images."""
    run = model.run(images, objective.layers, start="image")
    check_graph(model, run, objective.layers)
    scores = objective.score(run)
    signal = None
    if scores.requires_grad:
        with differentiating():
            (signal,) = torch.autograd.grad(scores.sum(), run["image"], allow_unused=True)
    if signal is None:
        raise InputError(f"{objective.name!r} does not depend on the image")
    off = (signal == 0).flatten(1).all(1)
    if off.any():
        signal[off] = _through_closed_rectifiers(model, objective, images)[off]
    return scores.detach(), signal


def _through_closed_rectifiers(model: Model, objective: Objective, images: Tensor) -> Tensor:
    """The gradient as if every rectifier were open, for units that are off: zero where there is none."""
    run = model.run(images, objective.layers, start="image")
    roots = [run[name] for name in objective.layers if run[name].grad_fn is not None]
    try:
        with within(notes=[]), applied(passing, roots), differentiating():
            (signal,) = torch.autograd.grad(objective.score(run).sum(), run["image"])
    except NetworkError:  # there are no rectifiers, or they are hidden
        return torch.zeros_like(images)
    note(
        f"while {objective.name!r} was off, with a gradient of exactly zero, the gradient was passed through "
        "closed rectifiers"
    )
    return signal


def _check(objective: Objective, gradient: Tensor) -> None:
    flat = (gradient == 0).flatten(1).all(1)
    if flat.any():
        which = int(flat.nonzero()[0])
        raise InputError(
            f"the gradient of {objective.name!r} is exactly zero at the start of picture {which}: "
            "it does not depend on the image there (a unit behind a rectifier that is off?); "
            "start elsewhere (another seed), or ask for the layer before the rectifier"
        )
