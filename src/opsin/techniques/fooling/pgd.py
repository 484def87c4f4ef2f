from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.job import note
from opsin.base.job import steps as reported
from opsin.network.model import Model
from opsin.optimise.ball import Ball
from opsin.optimise.fooling import STEP, better, evidence, goal_of, gradient_steps, pursue
from opsin.registry.kinds import Arg, Classes, Epsilon, Radius
from opsin.registry.technique import technique
from opsin.results.attack import Attack


@technique(
    title="Projected gradient descent",
    paper="Madry, Makelov, Schmidt, Tsipras, Vladu: Towards Deep Learning Models Resistant to Adversarial "
    "Attacks, 2017 (arXiv:1706.06083), eq. 2",
    reading="What small steps find in the ball around the photo: more than one step does. Where they find "
    "nothing, another attack still may.",
    cost=64,
    expensive=True,
)
def pgd(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    epsilon: Epsilon = "8/255",
    l2: Radius = None,
    steps: Annotated[int, Arg("number of gradient steps", least=1, most=100_000)] = 20,
    rate: Annotated[
        float | None,
        Arg(
            "size of a step, in units of [0, 1]; by default 2.5 radii in all steps",
            least=0,
            most=1e4,
        ),
    ] = None,
    loss: Annotated[
        Literal["cross_entropy", "margin", "logits_ratio"], Arg("what the steps make rise")
    ] = "cross_entropy",
    random_start: Annotated[bool, Arg("start at a random place in the ball")] = True,
    restarts: Annotated[
        int, Arg("number of starts, of which each photo keeps the best", least=1, most=1000)
    ] = 1,
    stop: Annotated[bool, Arg("leave a photo alone as soon as it is fooled: faster, less certain")] = False,
    label: Classes = None,
    towards: Classes = None,
    seed: Annotated[int, Arg("random seed of the starts", least=0)] = 0,
) -> Attack:
    """Steps up the loss inside a ball: x ← Π(x + α · sign(∂L(x, y)/∂x)), Π the projection on ‖x - x₀‖∞ ≤ ε.

    In the L2 ball a step is α · g/‖g‖₂. L is the loss of the `label` y, by default of the class that the
    network sees, or minus that of the wanted class `towards`: cross-entropy -log p_y, margin
    max_{j≠y} z_j - z_y, or that margin divided by the difference of the first and third score. All photos
    get the same random start; of several each keeps the first that fools, else the one of the highest loss.

    Raises `InputError` on a network without classes, and on a wanted class that is already seen.
    """
    goal = goal_of(model, images, label, towards)
    ball = Ball.around(images, float(epsilon), l2)
    step = STEP * ball.radius / steps if rate is None else rate
    note(f"radius {ball.radius:.4g} ({ball.norm}), steps of {step:.4g}")
    draw = torch.Generator().manual_seed(seed)
    recipe = gradient_steps(ball, steps, step)
    ticks = reported(range(restarts * steps), restarts * steps, "pgd")
    tries = []
    for _ in range(restarts):
        start = ball.random(draw) if random_start else images
        tries.append(pursue(model, goal, start, lambda g: g.objective(loss), recipe, ticks, stop=stop))
    for _ in ticks:
        pass
    return evidence(model, images, better(model, goal, goal.objective(loss), tries), goal, ball)
