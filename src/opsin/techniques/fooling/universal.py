from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.job import note
from opsin.base.job import steps as reported
from opsin.network.model import Model
from opsin.objectives.losses import class_scores
from opsin.optimise.ball import Ball
from opsin.optimise.boundary import to_boundary
from opsin.optimise.fooling import evidence, goal_of
from opsin.registry.kinds import Arg, Epsilon
from opsin.registry.technique import technique
from opsin.results.attack import Attack


@technique(
    title="Universal perturbation",
    paper="Moosavi-Dezfooli, Fawzi, Fawzi, Frossard: Universal Adversarial Perturbations, 2016 "
    "(arXiv:1610.08401), algorithm 1",
    reading="One change that fools on most photos, also on those that it was not made on.",
    cost=200,
    expensive=True,
    photos="together",
)
def universal(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    epsilon: Epsilon = "10/255",
    rate: Annotated[float, Arg("share of photos to be fooled, at which it ends", least=0, most=1)] = 0.8,
    passes: Annotated[int, Arg("largest number of passes over the photos", least=1, most=1000)] = 5,
    held: Annotated[
        float, Arg("share of the photos that it is not made on, but tried on", least=0, most=0.99)
    ] = 0.5,
    candidates: Annotated[int, Arg("most probable classes that DeepFool tries", least=2, most=10_000)] = 10,
    steps: Annotated[int, Arg("largest number of steps of DeepFool", least=1, most=10_000)] = 20,
    overshoot: Annotated[float, Arg("share η by which DeepFool goes further", least=0, most=1000)] = 0.02,
    seed: Annotated[int, Arg("random seed of the order of photos", least=0)] = 0,
) -> Attack:
    """One change v, ‖v‖∞ ≤ ε, such that k(x + v) ≠ k(x) for most photos x.

    Photo by photo, where k(x + v) = k(x): v ← Π(v + Δv), with Δv DeepFool's least change of x + v to the
    nearest boundary, and Π the projection on the ball; in a new order in every pass, until v fools on the
    wanted share of the photos that it is made on. `shared["change"]` is v, `numbers["made_on"]` says which
    photos it is made on (1) and which are held back (0); the record has the share that it fools of either.

    k(x) is the class that the network sees in x. DeepFool's changes are short: v fills the ball after
    hundreds of them only, so give many photos and passes, or a larger `overshoot`. Departs from the paper in
    that x + v is clipped to [0, 1].
    """
    goal = goal_of(model, images, None, None)
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=draw)
    made = order[: max(1, len(images) - round(held * len(images)))]
    v = torch.zeros_like(images[:1])
    ball = Ball(torch.zeros_like(v), float(epsilon))
    ticks = reported(range(passes * len(made)), passes * len(made), "universal")
    for _ in range(passes):
        for row in made[torch.randperm(len(made), generator=draw)]:
            next(ticks, None)
            own, moved = goal.of(row[None]), (images[row[None]] + v).clamp(0, 1)
            if bool(own.fooled(class_scores(model.run(moved)))):
                continue
            behind = to_boundary(model, moved, own, candidates, overshoot, steps, iter(()))
            v = (v + behind - moved).clamp(-ball.radius, ball.radius)
        moved = (images[made] + v).clamp(0, 1)
        if float(goal.of(made).fooled(class_scores(model.run(moved))).float().mean()) >= rate:
            break
    for _ in ticks:
        pass
    attacked = (images + v).clamp(0, 1)
    made_on = torch.zeros(len(images)).scatter(0, made, 1.0)
    result = evidence(model, images, attacked, goal, Ball(images, ball.radius), made_on=made_on)
    shares = []
    for which, rows in (("made on", made_on == 1), ("held back", made_on == 0)):
        fooled = [ok for ok, taken in zip(result.success, rows.tolist(), strict=True) if taken]
        if fooled:
            shares.append(f"{100 * sum(fooled) / len(fooled):.1f} % of {len(fooled)} photos {which}")
    note(f"fools on {', on '.join(shares)}")
    return result.sharing(change=v)
