from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.choices import MOST_EXPONENT
from opsin.network.model import Model
from opsin.objectives.features import match
from opsin.objectives.priors import norm, total_variation
from opsin.optimise.canvas import Fourier
from opsin.optimise.climb import climb, named
from opsin.optimise.recipe import Recipe
from opsin.registry.kinds import Arg, Layers
from opsin.registry.technique import technique
from opsin.results.pictures import Picture, Pictures

# Mahendran & Vedaldi: σ, the mean norm of a natural image of 227 x 227 pixels in 0..255 less the mean
NORM, SIDE, LEVELS = 2.7e4, 227, 255
SHALLOW, MIDDLE, DEEP = 0.5, 5.0, 50.0  # their weight of the total variation by depth, on VGG-16
SHOWN = 6  # layers that are inverted by default


@technique(
    title="Feature inversion",
    paper="Mahendran, Vedaldi: Understanding Deep Image Representations by Inverting Them, 2015 "
    "(arXiv:1412.0035), eq. 1-5",
    reading="What each layer keeps of the photo: an image with the same features, found from noise.",
    cost=2700,
    iterative=True,
)
def inversion(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    layers: Layers = None,
    steps: Annotated[int, Arg("number of steps of Adam for each layer", least=1)] = 300,
    rate: Annotated[
        float, Arg("Adam's rate, in the spectrum's unit; it falls to a tenth", least=0, most=10)
    ] = 0.05,
    alpha: Annotated[float, Arg("exponent α of the norm", least=1, most=MOST_EXPONENT)] = 6.0,
    norm_weight: Annotated[float, Arg("weight λ_α of the norm", least=0, most=1e12)] = 2.16e8,
    beta: Annotated[float, Arg("exponent β of the total variation", least=1, most=MOST_EXPONENT)] = 2.0,
    variation_weight: Annotated[
        float | None,
        Arg(
            "weight λ_β of the total variation; by default the paper's: 0.5, 5 or 50 by depth",
            least=0,
            most=1e6,
        ),
    ] = None,
    seed: Annotated[int, Arg("random seed of the noise", least=0)] = 0,
) -> Pictures:
    """Images whose features at a layer equal the photo's.

    arg min_x ‖Φ(σx) - Φ₀‖²/‖Φ₀‖² + λ_α ‖x‖_α^α + λ_β V_β(x), Φ₀ the photo's features. σx is the image
    less the mean colour, in 0..255; σ the mean norm of natural images, so that x is of norm about one.
    V_β is the total variation. `numbers` hold for every layer the normalised feature error and the error
    in image space ‖x - x₀‖/‖x₀‖.

    By default six layers from the first to the last. Departs from the paper: the same objective is
    minimised by Adam over the spectrum (`canvas.Fourier`), which keeps the image in [0, 1], in place of
    gradient descent with momentum over pixels.
    """
    chosen = dict.fromkeys(layers or spread(model))  # a layer that is named twice is inverted once
    mean, _ = model.statistics()
    sigma = NORM / LEVELS * (images[0, 0].numel() / SIDE**2) ** 0.5
    canvas = Fourier(*images.shape[-2:])
    start = canvas.noise(1, torch.Generator().manual_seed(seed)).to(images).expand_as(images)
    panels = [
        Picture("photo", seen, x, made=False) for seen, x in zip(named(model, images), images, strict=True)
    ]
    recipe = Recipe(steps=steps, rate=rate, canvas=canvas, decline=0.1, seed=seed)
    numbers: dict[str, Tensor] = {}
    order = list(model.calls)
    for layer in chosen:
        wanted = model.run(images, (layer,))[layer].detach()
        depth = order.index(layer) / max(1, len(order) - 1) if layer in order else 1.0
        theirs = SHALLOW if depth < 1 / 3 else MIDDLE if depth < 2 / 3 else DEEP
        weight = theirs if variation_weight is None else variation_weight
        objective = match(layer, wanted) + weight / sigma**beta * total_variation(beta)
        objective += norm_weight * norm(alpha, mean, sigma)
        found = climb(layer, model, objective, start, recipe)
        if not found.begun:
            break  # stopped early at an earlier layer
        with torch.no_grad():
            error = -match(layer, wanted).score(model.run(found.images, (layer,)))
        centred = (images - mean).flatten(1).norm(dim=1)
        apart = (found.images - images).flatten(1).norm(dim=1) / centred
        numbers |= {f"{layer} feature error": error, f"{layer} image error": apart}
        panels += [
            Picture(layer, f"feature error {e:.3f}; image error {a:.2f}; {seen}".removesuffix("; "), x)
            for e, a, seen, x in zip(
                error.tolist(), apart.tolist(), named(model, found.images), found.images, strict=True
            )
        ]
    return Pictures(tuple(panels), numbers=numbers)


def spread(model: Model) -> list[str]:
    """Layers from the first to the last, evenly spaced among those that compute."""
    names = [c.name for c in model.calls.values() if not c.passive and c.layout != "other"]
    places = torch.linspace(0, len(names) - 1, min(SHOWN, len(names))).round().int().tolist()
    return [names[i] for i in dict.fromkeys(places)]
