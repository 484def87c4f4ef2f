from typing import Annotated, Literal

from jaxtyping import Float
from torch import Tensor

from opsin.base.choices import MOST_PIXELS
from opsin.base.errors import InputError
from opsin.base.job import note
from opsin.network.model import Model
from opsin.objectives.priors import norm
from opsin.optimise.climb import climb, climbed
from opsin.optimise.recipe import Constraint, Recipe
from opsin.optimise.transforms import blurred
from opsin.registry.kinds import Arg, Target
from opsin.registry.technique import technique
from opsin.results.pictures import Pictures

L2 = 1e-4  # λ; found by trial
EVERY = 4  # steps between blurs, as Yosinski et al.
# Yosinski et al. 2015, table 1: decay, blur radius, blur every, small norm %, small contribution %
PUBLISHED = {
    "yosinski_1": (0.0, 0.5, 4, 50.0, 0.0),
    "yosinski_2": (0.3, 0.0, 0, 20.0, 0.0),
    "yosinski_3": (0.0001, 1.0, 4, 0.0, 0.0),
    "yosinski_4": (0.0, 0.5, 4, 0.0, 90.0),
}


@technique(
    paper="Simonyan, Vedaldi, Zisserman: Deep Inside Convolutional Networks, 2013 (arXiv:1312.6034), eq. 2",
    reading="The picture that the network finds most typical of the target, without any photo.",
    cost=600,
    iterative=True,
)
def class_model(
    model: Model,
    target: Target,
    steps: Annotated[int, Arg("number of gradient steps", least=1)] = 200,
    rate: Annotated[
        float,
        Arg("step size: mean change of a colour value per step, in standard deviations", least=0, most=1000),
    ] = 0.02,
    l2: Annotated[
        float | None,
        Arg("weight λ of the squared norm; by default 1e-4, or 0 with published settings", least=0, most=1e6),
    ] = None,
    settings: Annotated[
        Literal["own", "yosinski_1", "yosinski_2", "yosinski_3", "yosinski_4"],
        Arg("published regularisation of Yosinski et al., in place of the five settings below"),
    ] = "own",
    decay: Annotated[float, Arg("share of the picture lost per step", least=0, most=1)] = 0.0,
    blur: Annotated[float, Arg("radius of the Gaussian blur, pixels", least=0, most=MOST_PIXELS)] = 0.0,
    blur_every: Annotated[int, Arg("number of steps between blurs", least=1)] = EVERY,
    small_norm: Annotated[
        float, Arg("percentage of pixels, those of smallest norm, set to zero", least=0, most=100)
    ] = 0.0,
    small_contribution: Annotated[
        float, Arg("percentage of pixels, those that contribute least, set to zero", least=0, most=100)
    ] = 0.0,
) -> Pictures:
    """The image that maximises a class score: arg max_I S(I) - λ‖I‖², by gradient ascent from zero.

    I = (x - mean) / std is the network's input, so that zero is the mean colour. Further regularisers,
    after every step (Yosinski et al. 2015, arXiv:1506.06579): decay I ← (1 - θ) I; a Gaussian blur
    every k steps; pixels p with a small norm ‖I_p‖ or a small contribution |Σ_c I_p ∂S/∂I_p| set to zero.

    Departs from the papers: every gradient is divided by its mean size, so that one rate suits every
    network; the image is kept within [0, 1]. Norms and contributions are measured on x - mean.
    """
    own = (decay, blur, blur_every if blur else 0, small_norm, small_contribution)
    if settings != "own" and any((l2, decay, blur, blur_every != EVERY, small_norm, small_contribution)):
        raise InputError(
            f"class_model: settings {settings!r} bring their own regularisation; leave the rest out"
        )
    l2 = L2 if settings == "own" and l2 is None else l2 or 0.0
    chosen = own if settings == "own" else PUBLISHED[settings]
    note(
        "λ {:g}, decay {:g}, blur {:g} every {} steps, small norm {:g} %, contribution {:g} %".format(
            l2, *chosen
        )
    )
    mean, std = model.statistics()
    found = climb(
        "class model",
        model,
        target + l2 * norm(2.0, mean, std) if l2 else target,
        mean.expand(target.count, 3, *model.size),
        Recipe(
            steps=steps,
            rate=rate * float(std.mean()),
            optimiser="gradient",
            constrain=regularised(mean, *chosen),
        ),
    )
    return climbed(found, target, model)


def regularised(
    zero: Float[Tensor, "3 1 1"], decay: float, blur: float, every: int, small_norm: float, small: float
) -> Constraint:
    """Yosinski's four regularisers, around the colour that is zero to the network."""

    def constrain(x: Tensor, gradient: Tensor, step: int) -> None:
        centred = (x - zero) * (1 - decay)
        if every and step % every == 0:
            centred = blurred(centred, blur)
        for size, share in (
            (centred.norm(dim=1, keepdim=True), small_norm),
            ((centred * gradient).sum(1, keepdim=True).abs(), small),
        ):
            if share:
                least = size.flatten(1).quantile(share / 100, dim=1).view(-1, 1, 1, 1)
                centred = centred * (size >= least)
        x.copy_(centred + zero)

    return constrain
