from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.choices import MOST_EXPONENT
from opsin.base.job import CAUTION, note
from opsin.network.model import Model
from opsin.objectives.features import match
from opsin.objectives.priors import norm, total_variation
from opsin.optimise.canvas import Fourier
from opsin.optimise.climb import climb, named
from opsin.optimise.recipe import Recipe
from opsin.optimise.textures import photo_label
from opsin.registry.kinds import Arg, Layers
from opsin.registry.technique import technique
from opsin.results.pictures import Picture, Pictures

# Mahendran & Vedaldi: σ, the mean norm of a natural image of 227 x 227 pixels in 0..255 less the mean
NORM, SIDE, LEVELS = 2.7e4, 227, 255
# up to which depth, as a share of the layers: the weight of the total variation, and the decay of the
# spectrum that is climbed; found by the error of the picture, on two photos and EfficientNet-Lite0
BY_DEPTH = ((1 / 3, 0.05, 1.0), (2 / 3, 0.5, 1.0), (1.0, 0.5, 1.3))
FAR = 0.5  # feature error of a picture that did not come near
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
    steps: Annotated[int, Arg("number of steps of L-BFGS for each layer", least=1)] = 150,
    alpha: Annotated[float, Arg("exponent α of the norm", least=1, most=MOST_EXPONENT)] = 6.0,
    norm_weight: Annotated[float, Arg("weight λ_α of the norm", least=0, most=1e12)] = 2.16e8,
    beta: Annotated[float, Arg("exponent β of the total variation", least=1, most=MOST_EXPONENT)] = 2.0,
    variation_weight: Annotated[
        float | None,
        Arg(
            "weight λ_β of the total variation; by default 0.05 in the first third of the layers, then 0.5",
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
    minimised by L-BFGS over the spectrum (`canvas.Fourier`), which keeps the image in [0, 1] and brings
    colours back, in place of gradient descent with momentum over pixels; λ_β is smaller than the paper's 0.5
    to 50. A caution names a layer at which the feature error of a picture stays above 0.5.
    """
    chosen = dict.fromkeys(layers or spread(model))  # a layer that is named twice is inverted once
    mean, _ = model.statistics()
    sigma = NORM / LEVELS * (images[0, 0].numel() / SIDE**2) ** 0.5
    panels = [
        Picture("photo", seen, x, made=False) for seen, x in zip(named(model, images), images, strict=True)
    ]
    prior = norm_weight * norm(alpha, mean, sigma)
    numbers: dict[str, Tensor] = {}
    for layer in chosen:
        weight, decay = by_depth(model, layer)
        weight = weight if variation_weight is None else variation_weight
        smooth = weight / sigma**beta * total_variation(beta)
        canvas = Fourier(images.shape[2], images.shape[3], decay)
        start = canvas.noise(1, torch.Generator().manual_seed(seed)).to(images)
        made = images[:0]
        for index, photo in enumerate(images.split(1)):
            wanted = model.run(photo, (layer,))[layer].detach()
            found = climb(
                photo_label(index, len(images)) + layer,
                model,
                match(layer, wanted) + smooth + prior,
                start,
                Recipe(steps=steps, rate=1.0, canvas=canvas, optimiser="lbfgs"),
            )
            if not found.begun:
                break  # stopped early at an earlier layer or photo
            made = torch.cat([made, found.images])
        if not len(made):
            break
        errors, apart = _errors(model, layer, images[: len(made)], made, mean)
        numbers |= {f"{layer} feature error": errors, f"{layer} image error": apart}
        if (errors > FAR).any():
            note(
                f"{CAUTION}layer {layer!r}: features of a picture are far from the photo's, above {FAR}; "
                "more steps may help"
            )
        panels += [
            Picture(layer, f"feature error {e:.3f}; image error {a:.2f}; {seen}".removesuffix("; "), x)
            for e, a, seen, x in zip(errors.tolist(), apart.tolist(), named(model, made), made, strict=True)
        ]
    return Pictures(tuple(panels), numbers=numbers)


def _errors(
    model: Model,
    layer: str,
    images: Float[Tensor, "n 3 h w"],
    made: Float[Tensor, "n 3 h w"],
    mean: Float[Tensor, "3 1 1"],
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """The normalised error of the features, and that of the image."""
    with torch.no_grad():
        wanted = model.run(images, (layer,))[layer]
        errors = -match(layer, wanted).score(model.run(made, (layer,)))
    return errors, (made - images).flatten(1).norm(dim=1) / (images - mean).flatten(1).norm(dim=1)


def by_depth(model: Model, layer: str) -> tuple[float, float]:
    """The weight of the total variation and the decay of the spectrum at a layer's depth."""
    order = list(model.calls)
    depth = order.index(layer) / max(1, len(order) - 1) if layer in order else 1.0
    return next((weight, decay) for end, weight, decay in BY_DEPTH if depth < end or end == 1)


def spread(model: Model) -> list[str]:
    """Layers from the first to the last, evenly spaced among those that compute."""
    names = [c.name for c in model.calls.values() if not c.passive and c.layout != "other"]
    places = torch.linspace(0, len(names) - 1, min(SHOWN, len(names))).round().int().tolist()
    return [names[i] for i in dict.fromkeys(places)]
