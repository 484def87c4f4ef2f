from typing import Annotated

from jaxtyping import Float
from torch import Tensor

from opsin.base.job import steps as reported
from opsin.network.model import Model
from opsin.optimise.boundary import to_boundary
from opsin.optimise.fooling import evidence, goal_of
from opsin.registry.kinds import Arg, Classes
from opsin.registry.technique import technique
from opsin.results.attack import Attack

SMALL = 1e-8


@technique(
    title="DeepFool",
    paper="Moosavi-Dezfooli, Fawzi, Frossard: DeepFool: a Simple and Accurate Method to Fool Deep Neural "
    "Networks, 2015 (arXiv:1511.04599), algorithm 2",
    reading="How far the nearest other class is: the shorter the change, the less it takes to be wrong.",
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
    ticks = reported(range(steps), steps, "deepfool")
    attacked = to_boundary(model, images, goal, candidates, overshoot, steps, ticks)
    for _ in ticks:
        pass
    rho = (attacked - images).flatten(1).norm(dim=1) / images.flatten(1).norm(dim=1).clamp(min=SMALL)
    return evidence(model, images, attacked, goal, rho=rho)
