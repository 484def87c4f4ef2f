from typing import Annotated, Any, Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from opsin.base.choices import MOST_PIXELS
from opsin.base.job import note
from opsin.network.model import Model
from opsin.objectives.priors import norm
from opsin.optimise.climb import climb, climbed
from opsin.optimise.recipe import Constraint, Recipe
from opsin.optimise.transforms import blurred, jitter
from opsin.registry.kinds import Arg, Target
from opsin.registry.technique import technique
from opsin.results.pictures import Pictures

LEVELS = 255  # both papers climb images in 0..255


class Regularisers(NamedTuple):
    """What keeps the picture like a photo; the percentages are of pixels that are set to zero."""

    l2: float = 0.0
    decay: float = 0.0
    blur: float = 0.0
    blur_every: int = 4
    small_norm: float = 0.0
    small_contribution: float = 0.0
    shift: int = 0


PRESETS = {
    "own": Regularisers(l2=1e-7, blur=1.0, shift=8),  # found by looking
    # Yosinski et al. 2015, table 1
    "yosinski_1": Regularisers(blur=0.5, small_norm=50.0),
    "yosinski_2": Regularisers(decay=0.3, small_norm=20.0),
    "yosinski_3": Regularisers(decay=0.0001, blur=1.0),
    "yosinski_4": Regularisers(blur=0.5, small_contribution=90.0),
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
    rate: Annotated[float, Arg("step size: mean change of a colour value per step", least=0, most=1)] = 0.016,
    settings: Annotated[
        Literal["own", "yosinski_1", "yosinski_2", "yosinski_3", "yosinski_4"],
        Arg(
            "what the regularisers below are by default: Opsin's own, or a row of table 1 of Yosinski et al."
        ),
    ] = "own",
    l2: Annotated[float | None, Arg("weight λ of the squared norm", least=0, most=1e6)] = None,
    decay: Annotated[float | None, Arg("share of the picture lost per step", least=0, most=1)] = None,
    blur: Annotated[
        float | None, Arg("radius of the Gaussian blur, pixels", least=0, most=MOST_PIXELS)
    ] = None,
    blur_every: Annotated[int | None, Arg("number of steps between blurs", least=1)] = None,
    small_norm: Annotated[
        float | None,
        Arg("percentage of pixels, those of smallest norm, set to zero", least=0, most=100),
    ] = None,
    small_contribution: Annotated[
        float | None,
        Arg("percentage of pixels, those that contribute least, set to zero", least=0, most=100),
    ] = None,
    shift: Annotated[
        int | None, Arg("largest random shift (jitter), pixels", least=0, most=MOST_PIXELS)
    ] = None,
    seed: Annotated[int, Arg("random seed of the shifts", least=0)] = 0,
) -> Pictures:
    """The image that maximises a class score: arg max_I S(I) - λ‖I‖², by gradient ascent from zero.

    I = 255 (x - mean) is the image less the mean colour in 0..255, as the papers' networks take it, so that
    λ means the same on every network. Further regularisers, after every step (Yosinski et al. 2015,
    arXiv:1506.06579): decay I ← (1 - θ) I; a Gaussian blur every k steps; pixels p with a small norm ‖I_p‖
    or a small contribution |Σ_c I_p ∂S/∂I_p| set to zero. A setting that is given takes the place of that in
    `settings`.

    Departs from the papers: every gradient is divided by its mean size, so that one rate suits every
    network; the image is kept within [0, 1]; small random shifts (`shift`) of Mordvintsev et al. 2015.
    """
    given = (l2, decay, blur, blur_every, small_norm, small_contribution, shift)
    named = zip(Regularisers._fields, given, strict=True)
    own: dict[str, Any] = {name: value for name, value in named if value is not None}
    use = PRESETS[settings]._replace(**own)
    note(", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in use._asdict().items()))
    mean, _ = model.statistics()
    found = climb(
        "class model",
        model,
        target + use.l2 * norm(2.0, mean, 1 / LEVELS) if use.l2 else target,
        mean.expand(target.count, 3, *model.size),
        Recipe(
            steps=steps,
            rate=rate,
            optimiser="gradient",
            transforms=[jitter(use.shift)] if use.shift else [],
            constrain=regularised(mean, use),
            seed=seed,
        ),
    )
    return climbed(found, target, model)


def regularised(zero: Float[Tensor, "3 1 1"], use: Regularisers) -> Constraint:
    """Yosinski's four regularisers, around the colour that is zero to the network."""

    def constrain(x: Tensor, gradient: Tensor, step: int) -> None:
        centred = (x - zero) * (1 - use.decay)
        if step % use.blur_every == 0:
            centred = blurred(centred, use.blur)
        for size, share in (
            (centred.norm(dim=1, keepdim=True), use.small_norm),
            ((centred * gradient).sum(1, keepdim=True).abs(), use.small_contribution),
        ):
            if share:
                least = size.flatten(1).quantile(share / 100, dim=1).view(-1, 1, 1, 1)
                centred = centred * (size >= least)
        x.copy_(centred + zero)

    return constrain
