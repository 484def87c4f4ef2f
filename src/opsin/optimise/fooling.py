"""What all attacks share: whom to fool, the climb inside a ball, and the result with its evidence."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opsin.base.errors import InputError
from opsin.base.job import CAUTION, note
from opsin.gradients.derivatives import scores_and_gradient
from opsin.network.activations import Activations
from opsin.network.model import Model
from opsin.objectives.losses import class_scores, cross_entropy, logits_ratio, margin
from opsin.objectives.objective import Objective
from opsin.optimise.ascent import ascend
from opsin.optimise.ball import Ball
from opsin.optimise.recipe import Recipe
from opsin.results.attack import LEVELS, Attack, Outcome, Seen

Loss = Literal["cross_entropy", "margin", "logits_ratio"]
LOSSES = {"cross_entropy": cross_entropy, "margin": margin, "logits_ratio": logits_ratio}
TOP = 5  # classes before and after
STEP = 2.5  # Madry et al.: so many radii are gone in all steps together
ROUNDING = 1e-5  # of the radius, and of colours, in single precision


@dataclass(frozen=True)
class Goal:
    """The class that each image shall leave, and the one that it shall be taken for, if any.

    `before` are the scores on the photos themselves; `given` says that the labels are the user's, so that a
    photo may have been seen as another class before.
    """

    labels: Int[Tensor, " n"]
    towards: Int[Tensor, " n"] | None
    before: Float[Tensor, "n c"]
    given: bool

    def fooled(self, output: Float[Tensor, "n c"]) -> Bool[Tensor, " n"]:
        """Whether the network sees what the attack wants; of equal scores the first leads."""
        seen = output.argmax(1).cpu()
        return seen != self.labels if self.towards is None else seen == self.towards

    @property
    def right(self) -> Bool[Tensor, " n"]:
        """Whether the network saw the label before."""
        return self.before.argmax(1).cpu() == self.labels

    def of(self, rows: Tensor) -> "Goal":
        """The goal of some of the images."""
        towards = None if self.towards is None else self.towards[rows]
        return Goal(self.labels[rows], towards, self.before[rows], self.given)

    def objective(self, loss: Loss) -> Objective:
        """What rises as the network is fooled: the label's loss, or minus that of the wanted class."""
        return LOSSES[loss](self.labels) if self.towards is None else -LOSSES[loss](self.towards)


def goal_of(
    model: Model, images: Float[Tensor, "n 3 h w"], label: list[int] | None, towards: list[int] | None
) -> Goal:
    """Whom to fool. Without a label it is the class that the network sees.

    Raises `InputError` on a network without classes, and on a wanted class that is already seen, or is the
    label.
    """
    before = class_scores(model.run(images)).cpu()
    seen = before.argmax(1)
    labels = seen if label is None else torch.tensor(label)
    wanted = None if towards is None else torch.tensor(towards)
    for index, (own, now) in enumerate(zip(labels.tolist(), seen.tolist(), strict=True)):
        if wanted is not None and int(wanted[index]) in (own, now):
            which = "is already seen in" if int(wanted[index]) == now else "is the label of"
            raise InputError(
                f"the wanted class {model.label(int(wanted[index]))!r} {which} image {index}: name another"
            )
    return Goal(labels, wanted, before, label is not None)


def gradient(
    model: Model, objective: Objective, images: Float[Tensor, "n 3 h w"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3 h w"]]:
    """The scores and their gradient, with a caution where it is zero: a step of a sign then stays."""
    scores, signal = scores_and_gradient(model, images, objective)
    if (blind := int((signal == 0).flatten(1).all(1).sum())) > 0:
        several = "1 image" if blind == 1 else f"{blind} images"
        note(
            f"{CAUTION}the gradient of the loss is exactly zero on {several} in some step: a network that "
            "hides its gradient is not safe for it; try loss=margin, or an attack without gradients (square)"
        )
    return scores, signal


Step = Callable[[Tensor, Model, Objective, Tensor], tuple[Tensor, Tensor]]  # a `Signal`, of these rows


def gradient_steps(ball: Ball, steps: int, rate: float) -> Callable[[Tensor], Recipe]:
    """For `pursue`: steps by the gradient's sign in an L∞ ball, by its direction in an L2 ball."""
    kind: Literal["sign", "unit"] = "sign" if ball.norm == "linf" else "unit"
    return lambda rows: Recipe(steps=steps, rate=rate, canvas=ball.of(rows), optimiser=kind, signal=gradient)


def free_steps(ball: Ball, steps: int, step: Step) -> Callable[[Tensor], Recipe]:
    """For `pursue`: steps that an attack finds by itself, of the photos in these rows."""
    return lambda rows: Recipe(
        steps=steps, rate=1.0, canvas=ball.of(rows), optimiser="whole", signal=partial(step, rows)
    )


def pursue(
    model: Model,
    goal: Goal,
    start: Float[Tensor, "n 3 h w"],
    objective: Callable[[Goal], Objective],
    recipe: Callable[[Tensor], Recipe],
    ticks: Iterator[int],
    *,
    stop: bool,
) -> Float[Tensor, "n 3 h w"]:
    """`ascend` from the start; with `stop`, an image that is fooled stays as it is and leaves the batch.

    `recipe(rows)` is that of some images, of as many steps as each climb takes; `ticks` reports the steps.
    """
    found, rows, at = start.clone(), torch.arange(len(start)), start
    total, stream = recipe(rows).steps, None
    outputs: list[Tensor] = []
    for made in range(total):
        next(ticks, None)
        if not len(rows):
            continue
        if stream is None:
            watched = _watched(objective(goal.of(rows)), outputs)
            stream = ascend(model, watched, at, replace(recipe(rows), steps=total - made))
            next(stream)
        outputs.clear()
        step = next(stream)
        if stop and (done := goal.of(rows).fooled(outputs[0])).any():  # the images before this step
            found[rows[done]] = at[done]
            rows, at, stream = rows[~done], step.images()[~done], None
        elif stop or made == total - 1:
            at = step.images()
    found[rows] = at
    return found


def _watched(objective: Objective, outputs: list[Tensor]) -> Objective:
    """The objective, which keeps the outputs that it is asked of."""

    def score(activations: Activations) -> Tensor:
        outputs.append(activations["output"].detach())
        return objective.score(activations)

    return replace(objective, score=score, single=None, chain=())


def better(
    model: Model, goal: Goal, objective: Objective, tries: list[Float[Tensor, "n 3 h w"]]
) -> Float[Tensor, "n 3 h w"]:
    """Of several tries, for each image the first that fools; if none does, the one of the highest score."""
    if len(tries) == 1:
        return tries[0]
    best = torch.stack([rank(goal, objective, model.run(images)) for images in tries]).argmax(0)
    return torch.stack(tries)[best, torch.arange(len(best))]


def rank(goal: Goal, objective: Objective, run: Activations) -> Float[Tensor, " n"]:
    """How good a try is: infinity where it fools, else its score."""
    return torch.where(goal.fooled(run["output"]), torch.inf, objective.score(run).cpu())


def evidence(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    attacked: Float[Tensor, "n 3 h w"],
    goal: Goal,
    ball: Ball | None = None,
    **numbers: Tensor,
) -> Attack:
    """The result of an attack, with what the network sees before and after, and after rounding to 8 bits.

    Raises `AssertionError` on an image outside the ball or [0, 1], which would be a fault of the attack.
    """
    if ball is not None:
        change = (attacked - ball.centre).flatten(1)
        lengths = change.abs().amax(1) if ball.norm == "linf" else change.norm(dim=1)
        assert bool((lengths <= ball.radius * (1 + ROUNDING) + ROUNDING / LEVELS).all()), "outside the ball"
    assert torch.equal(attacked.clamp(0, 1), attacked), "outside [0, 1]"
    after = class_scores(model.run(attacked)).cpu()
    rounded = class_scores(model.run((attacked * LEVELS).round() / LEVELS)).cpu()
    success = goal.fooled(after) & goal.right
    survives = goal.fooled(rounded) & goal.right
    shares = model.probabilities(goal.before)
    before, now = _tops(model, shares), _tops(model, model.probabilities(after))
    outcomes = tuple(
        Outcome(
            _seen(model, shares[row], int(label)),
            None if goal.towards is None else _seen(model, shares[row], int(goal.towards[row])),
            tuple(before[row]),
            tuple(now[row]),
            bool(goal.right[row]),
            bool(success[row]),
            bool(survives[row]),
        )
        for row, label in enumerate(goal.labels)
    )
    result = Attack(images, attacked, outcomes, numbers)
    note(result.summary())
    return result


def _tops(model: Model, shares: Float[Tensor, "n c"]) -> list[list[Seen]]:
    best = shares.topk(min(TOP, shares.shape[1]))
    return [
        [Seen(index, model.label(index), share) for index, share in zip(*row, strict=True)]
        for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _seen(model: Model, shares: Float[Tensor, " c"], index: int) -> Seen:
    return Seen(index, model.label(index), float(shares[index]))
