"""A climb to its end: what a technique calls, resumed where one was stopped."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.choices import Optimiser
from opsin.base.errors import InputError, NetworkError
from opsin.base.notes import note
from opsin.base.progress import Enough, report
from opsin.base.progress import Step as Progress
from opsin.network.model import Model
from opsin.objectives.objective import Objective
from opsin.objectives.units import separated
from opsin.optimise.ascent import DAMAGED, Constraint, Step, ascend, step_number
from opsin.optimise.canvas import Canvas
from opsin.optimise.transforms import Transform
from opsin.results.pictures import Picture, Pictures


@dataclass
class Trail:
    """What the climbs of one technique leave behind, in their order; `saved` is that of an earlier run.

    `result` makes a result that can be resumed of images, a caption and the trail. `stopped` says where a
    climb was ended early.
    """

    saved: Mapping[str, Tensor] = field(default_factory=dict)
    result: "Callable[[Tensor, str, Trail], Pictures] | None" = None
    stages: list[dict[str, Tensor]] = field(default_factory=list)
    stopped: str = ""

    def next(self) -> tuple[dict[str, Tensor], bool]:
        """The saved state of the climb that begins, and whether it had been finished."""
        index = len(self.stages)
        prefix = f"{index}."
        state = {k.removeprefix(prefix): v for k, v in self.saved.items() if k.startswith(prefix)}
        return state, any(k.startswith(f"{index + 1}.") for k in self.saved)

    def arrays(self) -> dict[str, Tensor]:
        """All stages, flat; what is kept of a finished one is its end."""
        kept = [{k: s[k] for k in ("parameters", "number", "generator", "scores")} for s in self.stages[:-1]]
        flat = [*kept, *self.stages[-1:]]
        return {f"{i}.{key}": value.cpu() for i, stage in enumerate(flat) for key, value in stage.items()}


_trail: ContextVar[Trail | None] = ContextVar("trail", default=None)


@contextmanager
def trailing(
    saved: Mapping[str, Tensor], result: Callable[[Tensor, str, Trail], Pictures]
) -> Iterator[Trail]:
    """Collect what the climbs of the block leave, going on from `saved`."""
    token = _trail.set(trail := Trail(saved, result))
    try:
        yield trail
    finally:
        _trail.reset(token)


@dataclass(frozen=True)
class Climb:
    """The pictures that a climb ended with, and the scores (steps, n) on its way."""

    images: Float[Tensor, "n 3 h w"]
    scores: Float[Tensor, "steps n"]


def climb(
    label: str,
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
) -> Climb:
    """`ascend` to its end, or until a listener has seen enough."""
    trail = _trail.get() or Trail()
    state, finished = trail.next()
    if trail.stopped:
        return Climb(start, torch.empty(0, len(start)))
    if state and ("scores" not in state or state["scores"].shape[1:] != (len(start),)):
        raise InputError(f"{DAMAGED}it holds no scores of {len(start)} pictures")
    if finished:
        steps = step_number(state)
    note(f"climbed: {objective.name}")
    if state and optimiser == "lbfgs":
        note("resumed: L-BFGS began with an empty memory")
    scores = list(state["scores"]) if state else []
    stream = ascend(
        model,
        objective,
        start,
        steps=steps,
        rate=rate,
        canvas=canvas,
        transforms=transforms,
        optimiser=optimiser,
        decline=decline,
        seed=seed,
        constrain=constrain,
        tile=tile,
        state=state or None,
    )
    for step in stream:
        if step.scores is None:
            continue
        scores.append(step.scores.cpu())
        at = f"{label}: stopped at step {step.number} of {steps}"

        def so_far(step: Step = step, at: str = at) -> Pictures:
            now = {**step.state(), "scores": torch.stack(scores)}
            assert trail.result is not None
            return trail.result(step.images(), label, replace(trail, stages=[*trail.stages, now], stopped=at))

        result = so_far if trail.result else None
        try:
            report(Progress(label, step.number, steps, float(step.scores.mean()), step.images, result))
        except Enough:
            trail.stopped = at
            note(at)
            break
    history = torch.stack(scores) if scores else torch.empty(0, len(start))
    trail.stages.append({**step.state(), "scores": history})
    return Climb(step.images(), history)


def climbed(found: Climb, target: Objective, model: Model) -> Pictures:
    """The result of a climb towards a target: of a classifier with the class that it sees in the picture."""
    names = separated(target.name) if target.count > 1 else [target.name] * len(found.images)
    panels = []
    seen = named(model, found.images)
    for index, (name, image) in enumerate(zip(names, found.images, strict=True)):
        caption = f"score {float(found.scores[-1, index]):.4g}" if len(found.scores) else "not climbed"
        caption += f"; the network sees {seen[index]}" if seen[index] else ""
        panels.append(Picture(name, caption, image))
    return Pictures(tuple(panels), numbers={"scores": found.scores})


def named(model: Model, images: Float[Tensor, "n 3 h w"]) -> list[str]:
    """The network's own top class of each image; empty where it gives none for images of this size."""
    if not model.classes:
        return [""] * len(images)
    try:
        outputs = model.run(images)["output"]
    except NetworkError:  # a classifier of one size, of which an inner layer was climbed at another
        return [""] * len(images)
    best = model.probabilities(outputs).max(1)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [f"{model.label(index)}, {100 * p:.1f} %" if math.isfinite(p) else "" for index, p in pairs]
