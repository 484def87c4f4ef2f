from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.job import steps as reported
from opsin.network.model import Model
from opsin.objectives.objective import Objective
from opsin.optimise.ball import Ball
from opsin.optimise.fooling import better, evidence, free_steps, goal_of, pursue
from opsin.registry.kinds import Arg, Classes, Epsilon
from opsin.registry.technique import technique
from opsin.results.attack import Attack

# Andriushchenko et al. 2020, appendix B: of 10,000 queries, after so many the share is halved once more
HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
QUERIES = 10_000


@technique(
    title="Square attack",
    paper="Andriushchenko, Croce, Flammarion, Hein: Square Attack: a Query-efficient Black-box Adversarial "
    "Attack via Random Search, 2020 (arXiv:1912.00049), algorithms 1 and 2",
    reading="What random squares find without any gradient: if they find more than attacks with one, the "
    "network hides its gradient.",
    cost=503,
    expensive=True,
)
def square(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    epsilon: Epsilon = "8/255",
    steps: Annotated[int, Arg("number of queries of the network", least=1, most=1_000_000)] = 500,
    share: Annotated[
        float, Arg("share of the picture that the first squares cover", least=1e-6, most=1)
    ] = 0.8,
    label: Classes = None,
    towards: Classes = None,
    seed: Annotated[int, Arg("random seed of the squares", least=0)] = 0,
) -> Attack:
    """Random search: a square whose colours are at ±ε is kept where the margin rises.

    The first picture is x₀ + ε s, with a random sign s for every column and channel. Each query puts a
    square at a random place, its channels moved by ±2ε and brought back into the ball. Its area begins as the
    `share` of the picture, and is halved after 10, 50, 200 ... 8,000 of 10,000 queries, in proportion to
    `steps`.

    No gradient is asked for. A photo that is fooled stays as it is. All photos get the same squares.
    `numbers["queries"]` are the forward passes until then.
    """
    goal = goal_of(model, images, label, towards)
    ball = Ball(images, float(epsilon))
    draw = torch.Generator().manual_seed(seed)
    stripes = torch.randint(0, 2, (3, 1, images.shape[3]), generator=draw) * 2.0 - 1
    start = images + ball.radius * stripes.to(images)
    ball.project(start)
    state = _Search(start, ball, steps, share, draw)

    recipe = free_steps(ball, steps, state.step)
    ticks = reported(range(steps), steps, "square")
    last = pursue(model, goal, start, lambda g: g.objective("margin"), recipe, ticks, stop=True)
    for _ in ticks:
        pass
    attacked = better(model, goal, goal.objective("margin"), [last, state.best])
    return evidence(model, images, attacked, goal, ball, queries=state.queries)


class _Search:
    """The best picture of every photo so far, and its margin."""

    def __init__(self, start: Tensor, ball: Ball, steps: int, share: float, draw: torch.Generator) -> None:
        self.ball, self.steps, self.share, self.draw = ball, steps, share, draw
        self.best, self.number = start.clone(), 0
        self.highest = start.new_full((len(start),), -torch.inf, dtype=torch.float64)
        self.queries = torch.zeros(len(start))

    def step(self, rows: Tensor, model: Model, objective: Objective, images: Tensor) -> tuple[Tensor, Tensor]:
        """The scores of the last squares, and the way to the next ones, of some photos."""
        scores = objective.score(model.run(images, objective.layers))
        now = scores.to(self.highest)
        taken = now > self.highest[rows]
        self.best[rows[taken.cpu()]] = images[taken]
        self.highest[rows] = now.maximum(self.highest[rows])
        self.queries[rows] += 1
        following = self.best[rows]
        height, width = images.shape[-2:]
        side = max(1, min(round((self._share() * height * width) ** 0.5), height, width))
        top, left = (
            int(torch.randint(0, room - side + 1, (), generator=self.draw)) for room in (height, width)
        )
        signs = torch.randint(0, 2, (3, 1, 1), generator=self.draw) * 2.0 - 1
        following[:, :, top : top + side, left : left + side] += 2 * self.ball.radius * signs.to(images)
        self.ball.of(rows).project(following)
        self.number += 1
        return scores, following - images

    def _share(self) -> float:
        """The share of the picture that the next square covers."""
        done = int(self.number / self.steps * QUERIES)
        return float(self.share / 2 ** sum(done > after for after in HALVED))
