from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.job import steps
from opsin.network.model import Model
from opsin.optimise.ball import Ball
from opsin.optimise.fooling import evidence, goal_of, rank
from opsin.registry.kinds import Arg, Classes, Epsilon, Radius
from opsin.registry.technique import technique
from opsin.results.attack import Attack


@technique(
    title="Random noise, the control",
    paper="Szegedy et al.: Intriguing Properties of Neural Networks, 2013 (arXiv:1312.6199), 4.2",
    reading="How little a change of the same size does in a random direction.",
    cost=13,
    expensive=True,
)
def random_noise(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    epsilon: Epsilon = "8/255",
    l2: Radius = None,
    samples: Annotated[
        int, Arg("number of draws, of which each photo keeps the worst", least=1, most=10_000)
    ] = 10,
    label: Classes = None,
    towards: Classes = None,
    seed: Annotated[int, Arg("random seed of the noise", least=0)] = 0,
) -> Attack:
    """The control of every attack: x' = x + ε · s, with random signs s, clipped to [0, 1].

    With `l2`, x' = x + l2 · g/‖g‖₂, with Gaussian g. All photos get the same noise. The worst of the draws is
    kept: one that fools, else the one of the highest loss; `numbers["share"]` is the share that fools.
    """
    goal = goal_of(model, images, label, towards)
    ball = Ball.around(images, float(epsilon), l2)
    draw = torch.Generator().manual_seed(seed)
    worst, highest = images, torch.full((len(images),), -torch.inf)
    fooling = torch.zeros(len(images), dtype=torch.float64)
    objective = goal.objective("cross_entropy")
    for _ in steps(range(samples), samples, "random_noise"):
        drawn = torch.randn(images.shape[1:], generator=draw, dtype=torch.float64)
        noise = ball.radius * drawn.sign() if l2 is None else ball.radius * drawn / drawn.norm()
        moved = images + noise.to(images)
        ball.project(moved)
        ranks = rank(goal, objective, model.run(moved))
        fooling += ranks.isinf()
        worst = torch.where((ranks > highest).to(images.device).view(-1, 1, 1, 1), moved, worst)
        highest = ranks.maximum(highest)
    return evidence(model, images, worst, goal, ball, share=fooling / samples)
