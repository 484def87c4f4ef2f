"""An ascent to its end: what a technique calls, resumed where one was stopped."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.errors import InputError, NetworkError
from opsin.base.job import Step as Progress
from opsin.base.job import StopEarly, current, note, report
from opsin.base.trail import DAMAGED, Trail
from opsin.network.model import Model
from opsin.objectives.objective import Objective
from opsin.objectives.units import separated
from opsin.optimise.ascent import Step, ascend, step_number
from opsin.optimise.recipe import Recipe
from opsin.results.pictures import Picture, Pictures


@dataclass(frozen=True)
class Climb:
    """The pictures that a climb ended with, and the scores (steps, n) on its way.

    `begun` is false of a climb that comes after one that was stopped early: its pictures are its start.
    """

    images: Float[Tensor, "n 3 h w"]
    scores: Float[Tensor, "steps n"]
    begun: bool = True


def climb(
    label: str, model: Model, objective: Objective, start: Float[Tensor, "n 3 h w"], recipe: Recipe
) -> Climb:
    """`ascend` to its end, or until a listener asks to stop early.

    The `label` is what progress shows; within a technique no two climbs have the same.
    """
    state = saved_climb(label, len(start))
    if state is None:
        return Climb(start, torch.empty(0, len(start)), begun=False)
    if state and state["finished"].any():
        recipe = replace(recipe, steps=step_number(state))
    note(f"climbed: {objective.name}")
    if state and recipe.optimiser == "lbfgs":
        note("resumed: L-BFGS began with an empty memory")
    return followed(label, ascend(model, objective, start, recipe, state=state or None), recipe.steps, state)


def saved_climb(label: str, count: int) -> dict[str, Tensor] | None:
    """The state of this climb of so many pictures that an earlier run saved; empty where it begins now.

    `None` where a climb before it was stopped early. Raises `InputError` on a state that lacks its scores.
    """
    trail = current().trail or Trail()
    state = trail.saved_state(label)
    if trail.stopped:
        return None
    if state and not {"scores", "finished"} <= state.keys():
        raise InputError(f"{DAMAGED}climb {label!r} lacks its scores, or whether it was finished")
    if state and state["scores"].shape[1:] != (count,):
        raise InputError(f"{DAMAGED}it holds no scores of {count} pictures")
    return state


def followed(label: str, steps: Iterable[Step], total: int, state: dict[str, Tensor]) -> Climb:
    """A stream of steps to its end, or until a listener asks to stop early; its state goes into the trail.

    `state` is what an earlier run saved of it, empty where it begins now.
    """
    trail = current().trail or Trail()
    for earlier in trail.states.values():
        earlier["finished"] = torch.tensor(True)
    scores = list(state["scores"]) if state else []
    for step in steps:
        if step.scores is None:
            continue
        scores.append(step.scores.cpu())
        at = f"{label}: stopped at step {step.number} of {total}"
        try:
            report(_progress(label, total, step, scores, trail, at))
        except StopEarly:
            trail.stopped = at
            note(at)
            break
    images = step.images()
    history = torch.stack(scores) if scores else torch.empty(0, len(images))
    trail.states[label] = _resumable(step, history)
    return Climb(images, history)


def _progress(
    label: str, total: int, step: Step, scores: list[Tensor], trail: Trail, stopped: str
) -> Progress:
    """The step as listeners see it, with a result that goes on from here."""
    assert step.scores is not None
    make = trail.result

    def result() -> Pictures:
        assert make is not None
        so_far = trail.with_state(label, _resumable(step, torch.stack(scores)))
        return make(step.images(), label, replace(so_far, stopped=stopped))

    mean = float(step.scores.mean())
    return Progress(label, step.number, total, mean, step.images, result if make else None)


def _resumable(step: Step, scores: Float[Tensor, "steps n"]) -> dict[str, Tensor]:
    return {**step.state(), "scores": scores, "finished": torch.tensor(False)}


def climbed(found: Climb, target: Objective, model: Model) -> Pictures:
    """The result of a climb towards a target: of a classifier with the class that it sees in the picture."""
    names = separated(target.name) if target.count > 1 else [target.name] * len(found.images)
    panels = []
    seen = named(model, found.images)
    for index, (name, image) in enumerate(zip(names, found.images, strict=True)):
        caption = f"score {float(found.scores[-1, index]):.4g}" if len(found.scores) else "not begun"
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
