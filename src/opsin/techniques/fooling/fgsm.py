from jaxtyping import Float
from torch import Tensor

from opsin.network.model import Model
from opsin.optimise.ball import Ball
from opsin.optimise.fooling import evidence, goal_of, gradient_steps, pursue
from opsin.registry.kinds import Classes, Epsilon
from opsin.registry.technique import technique
from opsin.results.attack import Attack


@technique(
    title="Fast gradient sign method",
    paper="Goodfellow, Shlens, Szegedy: Explaining and Harnessing Adversarial Examples, 2014 "
    "(arXiv:1412.6572), 3",
    reading="How far one step in the worst direction goes: the photo looks the same, the class does not.",
    cost=6,
    expensive=True,
)
def fgsm(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    epsilon: Epsilon = "8/255",
    label: Classes = None,
    towards: Classes = None,
) -> Attack:
    """One step of the sign of the loss's gradient: x' = x + ε · sign(∂L(x, y)/∂x), clipped to [0, 1].

    L is the cross-entropy of the `label` y, by default the class that the network sees. With `towards` a
    class t it is a step down the loss of t: x' = x - ε · sign(∂L(x, t)/∂x). x is in [0, 1], and so is ε.

    Raises `InputError` on a network without classes, and on a wanted class that is already seen.
    """
    goal = goal_of(model, images, label, towards)
    ball = Ball(images, float(epsilon))
    recipe = gradient_steps(ball, 1, ball.radius)
    attacked = pursue(
        model, goal, images, lambda goal: goal.objective("cross_entropy"), recipe, iter(()), stop=False
    )
    return evidence(model, images, attacked, goal, ball)
