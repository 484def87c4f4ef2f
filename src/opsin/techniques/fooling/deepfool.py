from functools import partial
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.job import steps as reported
from opsin.network.backward import differentiating
from opsin.network.cut import check_graph
from opsin.network.model import Model
from opsin.objectives.losses import class_scores
from opsin.objectives.objective import Objective
from opsin.optimise.ball import Ball
from opsin.optimise.fooling import Goal, evidence, goal_of, pursue
from opsin.optimise.recipe import Recipe
from opsin.registry.kinds import Arg, Classes
from opsin.registry.technique import technique
from opsin.results.attack import Attack

BEYOND = 1e-4  # what the authors' code adds to every distance, so that a step ends behind the boundary
SMALL = 1e-8


@technique(
    title="DeepFool",
    paper="Moosavi-Dezfooli, Fawzi, Frossard: DeepFool: a Simple and Accurate Method to Fool Deep Neural "
    "Networks, 2015 (arXiv:1511.04599), algorithm 2",
    reading="How far the nearest other class is: the shorter the change, the less the network knows why.",
    cost=65,
    expensive=True,
)
def deepfool(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    candidates: Annotated[int, Arg("most probable classes that are tried", least=2, most=10_000)] = 10,
    steps: Annotated[int, Arg("largest number of steps", least=1, most=10_000)] = 50,
    overshoot: Annotated[float, Arg("share η of the way that is gone in addition", least=0, most=10)] = 0.02,
    label: Classes = None,
) -> Attack:
    """The least change, in the Euclidean norm, to the nearest boundary, as if the network were linear.

    r ← r + |f_l| w_l / ‖w_l‖², with f_k = z_k - z_y, w_k = ∂f_k/∂x and l the class of the least
    |f_k| / ‖w_k‖, repeated at x = x₀ + (1 + η) r, clipped to [0, 1], until another class than the `label` y
    leads.
    `numbers["rho"]` is ‖x - x₀‖ / ‖x₀‖, the paper's measure of robustness.

    Departs from the paper as its authors' code does: η also acts within the loop, 1e-4 is added to every
    distance |f| / ‖w‖, and only the most probable classes of the photo are tried.
    """
    goal = goal_of(model, images, label, None)
    state = _Boundary(images, goal, candidates, overshoot)
    ball = Ball(images, torch.inf)

    def recipe(rows: Tensor) -> Recipe:
        signal = partial(state.step, rows)
        return Recipe(steps=steps, rate=1.0, canvas=ball.of(rows), optimiser="whole", signal=signal)

    ticks = reported(range(steps), steps, "deepfool")
    attacked = pursue(model, goal, images, lambda g: g.objective("margin"), recipe, ticks, stop=True)
    for _ in ticks:
        pass
    rho = (attacked - images).flatten(1).norm(dim=1) / images.flatten(1).norm(dim=1).clamp(min=SMALL)
    return evidence(model, images, attacked, goal, rho=rho)


class _Boundary:
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
