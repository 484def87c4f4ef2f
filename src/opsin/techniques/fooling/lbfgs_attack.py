from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.job import steps as reported
from opsin.network.model import Model
from opsin.objectives.losses import class_scores, cross_entropy
from opsin.objectives.objective import Objective
from opsin.objectives.priors import norm
from opsin.optimise.ascent import ascend
from opsin.optimise.fooling import Goal, evidence, goal_of
from opsin.optimise.recipe import Recipe
from opsin.registry.kinds import Arg, Classes
from opsin.registry.technique import technique
from opsin.results.attack import Attack

FIRST, FACTOR = 0.1, 10.0  # the first weight c, and what it is multiplied by until it lies between two
STILL = 1e-7  # a rise of the score by a smaller share of it is none


@technique(
    title="Box-constrained L-BFGS",
    paper="Szegedy et al.: Intriguing Properties of Neural Networks, 2013 (arXiv:1312.6199), 4.1",
    reading="The least change that makes the network see another class: the first attack of all.",
    cost=400,
    expensive=True,
)
def lbfgs_attack(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    searches: Annotated[int, Arg("number of weights c that are tried", least=1, most=1000)] = 8,
    steps: Annotated[int, Arg("number of steps of L-BFGS for each weight", least=1, most=10_000)] = 12,
    label: Classes = None,
    towards: Classes = None,
) -> Attack:
    """The least change that makes the network see a wanted class t: min_r c ‖r‖² + L(x + r, t).

    x + r is in [0, 1], L the cross-entropy. The greatest c whose minimiser is seen as t is sought: by factors
    of ten until it lies between a success and a failure, then by bisection of its logarithm; the shortest r
    that succeeds is kept. `numbers["weight"]` is its c, zero where none succeeds. Without `towards` it is the
    second most probable class.

    Departs from the paper in that ‖r‖² stands for |r|, and that pixels are clipped inside the objective.
    """
    goal = goal_of(model, images, label, towards)
    if goal.towards is None:
        others = goal.before.scatter(1, goal.labels[:, None], -torch.inf)
        others.scatter_(1, goal.before.argmax(1, keepdim=True), -torch.inf)
        goal = replace(goal, towards=others.argmax(1))
    total = len(images) * searches * steps
    ticks = reported(range(total), total, "lbfgs_attack")
    found = [
        _shortest(model, images[i : i + 1], goal.of(torch.tensor([i])), searches, steps, ticks)
        for i in range(len(images))
    ]
    for _ in ticks:
        pass
    attacked, weights = torch.cat([image for image, _ in found]), torch.tensor([c for _, c in found])
    return evidence(model, images, attacked, goal, weight=weights)


def _shortest(
    model: Model, image: Float[Tensor, "1 3 h w"], goal: Goal, searches: int, steps: int, ticks: Iterator[int]
) -> tuple[Float[Tensor, "1 3 h w"], float]:
    """The shortest change that succeeds, and its weight; the last one, and 0, where none does."""
    assert goal.towards is not None
    weight, low, high = FIRST, 0.0, 0.0  # a success and a failure; 0 where none is known
    best, length, last = image, torch.inf, image
    for _ in range(searches):
        objective = -cross_entropy(goal.towards) + weight * norm(2.0, image)
        last = _minimum(model, objective, image, steps, ticks)
        if bool(goal.fooled(class_scores(model.run(last)))):
            low = weight
            if float((last - image).norm()) < length:
                best, length = last, float((last - image).norm())
        else:
            high = weight
        weight = (low * high) ** 0.5 if low and high else weight * FACTOR if low else weight / FACTOR
    return (best, low) if low else (last, 0.0)


def _minimum(
    model: Model, objective: Objective, image: Float[Tensor, "1 3 h w"], steps: int, ticks: Iterator[int]
) -> Float[Tensor, "1 3 h w"]:
    """Where L-BFGS ends: after all steps, or where the score rises no more."""
    before = -torch.inf
    for step in ascend(model, objective, image, Recipe(steps=steps, rate=1.0, optimiser="lbfgs")):
        if step.scores is not None:
            next(ticks, None)
            now = float(step.scores)
            if now - before <= STILL * abs(now):
                break
            before = now
    for _ in range(steps - step.number):
        next(ticks, None)
    return step.images()
