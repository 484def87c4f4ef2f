from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.choices import MOST_PIXELS
from opsin.base.errors import InputError
from opsin.network.model import Model
from opsin.objectives.features import diversity
from opsin.optimise.canvas import Fourier
from opsin.optimise.climb import climb, climbed
from opsin.optimise.cppn import Cppn
from opsin.optimise.natural import Natural
from opsin.optimise.recipe import Recipe
from opsin.optimise.transforms import affine, jitter
from opsin.registry.kinds import Arg, Target
from opsin.registry.technique import technique
from opsin.results.pictures import Pictures


class Defaults(NamedTuple):
    """What suits a canvas, found by looking."""

    rate: float
    turn: float
    zoom: float


DEFAULTS = {
    "fourier": Defaults(rate=0.05, turn=10.0, zoom=0.1),
    "maco": Defaults(rate=0.1, turn=0.0, zoom=1.5),
    "cppn": Defaults(rate=0.03, turn=10.0, zoom=0.1),
}


@technique(
    paper="Olah, Mordvintsev, Schubert: Feature Visualization, Distill 2017 (doi:10.23915/distill.00007)",
    reading="What excites the target most, as a picture that survives small shifts and turns.",
    cost=768,
    iterative=True,
)
def feature_visualization(
    model: Model,
    target: Target,
    steps: Annotated[int, Arg("number of gradient steps", least=1)] = 256,
    canvas: Annotated[
        Literal["fourier", "maco", "cppn"],
        Arg(
            "what is changed: a whole spectrum (fourier), the phases of one with the magnitudes of photos "
            "(maco), which suits transformers, or a small network of coordinates (cppn)"
        ),
    ] = "fourier",
    rate: Annotated[
        float | None,
        Arg(
            "Adam's rate; by default 0.05 in the spectrum's unit, 0.1 rad, or 0.03 for cppn", least=0, most=10
        ),
    ] = None,
    pictures: Annotated[int, Arg("number of different pictures of a single target", least=1)] = 1,
    variety: Annotated[
        float,
        Arg("weight of the differences between several pictures, at the target's layer", least=0, most=1e6),
    ] = 1.0,
    shift: Annotated[int, Arg("largest random shift (jitter), pixels", least=0, most=MOST_PIXELS)] = 16,
    turn: Annotated[
        float | None,
        Arg("largest random rotation, degrees; by default 10, or 0 with maco", least=0, most=180),
    ] = None,
    zoom: Annotated[
        float | None,
        Arg(
            "largest random enlargement (and, without maco, reduction), as a share; by default 0.1, or 1.5 "
            "with maco",
            least=0,
            most=9,
        ),
    ] = None,
    size: Annotated[
        int | None, Arg("side of the picture, pixels; by default the model's", least=16, most=MOST_PIXELS)
    ] = None,
    seed: Annotated[int, Arg("random seed of the start and the transforms", least=0)] = 0,
) -> Pictures:
    """The image that maximises an objective, sought in a decorrelated spectrum under random small changes.

    arg max_ŷ E_T[S(T(x(ŷ)))] with x = σ(C F⁻¹(s ŷ) / 4) (see `canvas.Fourier`) and T a random shift, turn and
    change of scale, drawn anew in every step; Adam from faint noise. With `maco` only phases φ are sought,
    x = σ(C F⁻¹(r e^{iφ}) / 4) with the magnitudes r of photos (see `natural.Natural`), from random ones, and
    T only enlarges: the picture stays near to what networks are trained on, and grows from the middle. With
    `cppn` the weights of a small network of coordinates are sought, which makes regular patterns.

    Several targets (separated by semicolons) make a picture each; several `pictures` of one target are
    kept apart by `diversity` at its first layer. MACO: Fel et al. 2023 (arXiv:2306.06805), here with one draw
    of T a step in place of 32 crops, and without noise.
    """
    if target.count > 1 and pictures > 1:
        raise InputError(
            f"feature_visualization: {pictures} pictures of one target, or one each of {target.count} targets"
        )
    height, width = (size, size) if size else model.size
    n = max(target.count, pictures)
    use = DEFAULTS[canvas]
    turn, zoom = use.turn if turn is None else turn, use.zoom if zoom is None else zoom
    surface, start = begun(canvas, n, (height, width), seed)
    spread = pictures > 1 and variety and target.count == 1
    changes = [jitter(shift)] if shift else []
    changes += [affine(turn, 1 if canvas == "maco" else 1 / (1 + zoom), 1 + zoom)] if turn or zoom else []
    found = climb(
        "feature visualization",
        model,
        target + variety * diversity(spatial(model, target.layers[0])) if spread else target,
        start.to(model.device),
        Recipe(
            steps=steps,
            rate=use.rate if rate is None else rate,
            canvas=surface,
            transforms=changes,
            seed=seed,
        ),
    )
    return climbed(found, target, model)


def begun(
    canvas: str, n: int, size: tuple[int, int], seed: int
) -> tuple[Fourier | Natural | Cppn, Float[Tensor, "n 3 h w"]]:
    """A canvas and what the climb starts from; a network of coordinates draws its own weights."""
    if canvas == "cppn":
        return Cppn(*size, seed), torch.zeros(n, 3, *size)
    surface = Natural(*size) if canvas == "maco" else Fourier(*size)
    return surface, surface.noise(n, torch.Generator().manual_seed(seed))


def spatial(model: Model, layer: str) -> str:
    """The layer itself, or for an output without positions the model's last layer with a spatial extent."""
    call = model.call(layer)
    return layer if call is not None and call.extent not in (None, (1, 1)) else model.default_layer
