from math import ceil
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.job import steps as reported
from opsin.network.model import Model
from opsin.objectives.objective import Objective
from opsin.optimise.ball import Ball
from opsin.optimise.fooling import better, evidence, free_steps, goal_of, gradient, pursue
from opsin.registry.kinds import Arg, Classes, Epsilon, Radius
from opsin.registry.technique import technique
from opsin.results.attack import Attack

# Croce & Hein 2020, section 3.1
MOMENTUM, RISING = 0.75, 0.75  # α, and the share ρ of steps that must raise the loss
FIRST, LESS, LEAST = 0.22, 0.03, 0.06  # of all steps: the first stage, what each next is shorter by, the last
SMALL = 1e-9


@technique(
    title="Auto-PGD",
    paper="Croce, Hein: Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse "
    "Parameter-free Attacks, 2020 (arXiv:2003.01690), algorithm 1",
    reading="What a gradient finds when nobody has to choose the size of its steps.",
    cost=155,
    expensive=True,
)
def apgd(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    epsilon: Epsilon = "8/255",
    l2: Radius = None,
    steps: Annotated[int, Arg("number of gradient steps", least=1, most=100_000)] = 50,
    loss: Annotated[
        Literal["cross_entropy", "margin", "logits_ratio"], Arg("what the steps make rise")
    ] = "logits_ratio",
    label: Classes = None,
    towards: Classes = None,
    seed: Annotated[int, Arg("random seed of the start", least=0)] = 0,
) -> Attack:
    """Projected gradient ascent with momentum, whose steps are halved where they bring nothing more.

    z = Π(x_k + η d), x_{k+1} = Π(x_k + α (z - x_k) + (1 - α) (x_k - x_{k-1})), with α = 0.75, Π the
    projection on the ball, and d the sign of the gradient (in the L2 ball g/‖g‖₂). η is 2 radii at first. At
    the ends of stages of 22 %, 19 %, 16 % ... 6 % of all steps it is halved, and x goes back to the best
    place so far, if fewer than 75 % of the stage's steps raised the loss, or if neither η nor the best loss
    changed in it.

    A photo that is fooled stays as it is; of the others the place of the highest loss is kept. Departs from
    the paper in that a stage is judged when the loss at its end is known, as in its authors' code.
    """
    goal = goal_of(model, images, label, towards)
    ball = Ball.around(images, float(epsilon), l2)
    start = ball.random(torch.Generator().manual_seed(seed))
    state = _Stages(start, ball, stages(steps))

    recipe = free_steps(ball, steps, state.step)
    ticks = reported(range(steps), steps, "apgd")
    last = pursue(model, goal, start, lambda g: g.objective(loss), recipe, ticks, stop=True)
    for _ in ticks:
        pass
    attacked = better(model, goal, goal.objective(loss), [last, state.best])
    return evidence(model, images, attacked, goal, ball)


def stages(steps: int) -> list[int]:
    """The steps at which a stage ends: w_j = ⌈p_j N⌉ with p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)."""
    shares = [0.0, FIRST]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - LESS, LEAST))
    return list(dict.fromkeys(ceil(share * steps - SMALL) for share in shares if share <= 1))


class _Stages:
    """For every photo: the place before, the best so far, the step size, and how the stage has gone."""

    def __init__(self, start: Tensor, ball: Ball, ends: list[int]) -> None:
        self.ball, self.ends, self.number = ball, ends, 0
        self.before, self.best, self.slope = start.clone(), start.clone(), torch.zeros_like(start)
        unit = start.new_ones(len(start), dtype=torch.float64)
        self.size = 2 * ball.radius * unit
        self.highest, self.previous = -torch.inf * unit, torch.inf * unit
        self.rises, self.halved = 0 * unit, torch.ones(len(start), dtype=torch.bool, device=start.device)
        self.at_begin = self.highest.clone()  # the best loss when the stage began

    def step(self, rows: Tensor, model: Model, objective: Objective, images: Tensor) -> tuple[Tensor, Tensor]:
        """The scores, and the way to the next images, of some photos."""
        scores, slope = gradient(model, objective, images)
        now, known = scores.to(self.size), self.highest[rows]
        self.rises[rows] += now > self.previous[rows]
        self.previous[rows] = now
        up = rows[(now > known).cpu()]
        self.best[up], self.slope[up] = images[(now > known)], slope[(now > known)]
        self.highest[rows] = now.maximum(known)
        x, slope = images.clone(), slope.clone()
        if self.number in self.ends[1:]:
            back = self._judged(rows, self.number - self.ends[self.ends.index(self.number) - 1])
            x[back], slope[back] = self.best[rows[back.cpu()]], self.slope[rows[back.cpu()]]
        ball, size = self.ball.of(rows), self.size[rows].view(-1, 1, 1, 1).to(images)
        z = x + size * self._direction(slope)
        ball.project(z)
        following = (
            z if self.number == 0 else x + MOMENTUM * (z - x) + (1 - MOMENTUM) * (x - self.before[rows])
        )
        ball.project(following)
        self.before[rows] = x
        self.number += 1
        return scores, following - images

    def _judged(self, rows: Tensor, length: int) -> Tensor:
        """Which of the rows go back to their best place with half the step; begins the next stage."""
        stuck = ~self.halved[rows] & (self.highest[rows] == self.at_begin[rows])
        back = (self.rises[rows] < RISING * length) | stuck
        self.size[rows] = torch.where(back, self.size[rows] / 2, self.size[rows])
        self.halved[rows], self.at_begin[rows], self.rises[rows] = back, self.highest[rows], 0
        return back

    def _direction(self, slope: Tensor) -> Tensor:
        length = slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + SMALL
        way: Tensor = slope.sign() if self.ball.norm == "linf" else slope / length
        return way
