"""Steps to the nearest other class, as if the network were linear."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.network.backward import differentiating
from opsin.network.cut import check_graph
from opsin.network.model import Model
from opsin.objectives.losses import class_scores
from opsin.objectives.objective import Objective
from opsin.optimise.ball import Ball
from opsin.optimise.fooling import Goal, free_steps, pursue

BEYOND = 1e-4  # what DeepFool's code adds to every distance, so that a step ends behind the boundary
SMALL = 1e-8


def to_boundary(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    goal: Goal,
    candidates: int,
    overshoot: float,
    steps: int,
    ticks: Iterator[int],
) -> Float[Tensor, "n 3 h w"]:
    """The images behind the nearest boundary to a probable class, after so many steps at most."""
    state = Boundary(images, goal, candidates, overshoot)
    ball = Ball(images, torch.inf)
    recipe = free_steps(ball, steps, state.step)
    return pursue(model, goal, images, lambda g: g.objective("margin"), recipe, ticks, stop=True)


class Boundary:
    """The change r of every photo so far, and the classes that are tried for it."""

    def __init__(self, images: Tensor, goal: Goal, candidates: int, overshoot: float) -> None:
        self.images, self.labels, self.overshoot = images, goal.labels, overshoot
        self.total = torch.zeros_like(images)
        others = goal.before.scatter(1, goal.labels[:, None], -torch.inf)
        self.tried = others.topk(min(candidates, others.shape[1]) - 1, 1).indices  # (n, k)

    def step(self, rows: Tensor, model: Model, objective: Objective, images: Tensor) -> tuple[Tensor, Tensor]:
        """The scores, and the way to the next images, of some photos."""
        run = model.run(images, ("output",), start="image")
        check_graph(model, run, ("output",))
        scores, output = objective.score(run).detach(), class_scores(run)
        own = output.gather(1, self.labels[rows, None].to(output.device))
        rivals = output.gather(1, self.tried[rows].to(output.device)) - own  # (n, k)
        with differentiating():
            slopes = torch.stack(
                [torch.autograd.grad(f.sum(), run["image"], retain_graph=True)[0] for f in rivals.T], 1
            )  # (n, k, 3, h, w)
        lengths = slopes.flatten(2).norm(dim=2) + SMALL
        distances = rivals.detach().abs() / lengths
        nearest = distances.argmin(1)
        at = torch.arange(len(rows), device=nearest.device)
        ways = (distances[at, nearest] + BEYOND) / lengths[at, nearest]
        self.total[rows] += ways.view(-1, 1, 1, 1).to(images) * slopes[at, nearest]
        following = (self.images[rows] + (1 + self.overshoot) * self.total[rows]).clamp(0, 1)
        return scores, following - images
