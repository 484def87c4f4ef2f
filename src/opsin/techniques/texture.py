import re
from contextlib import nullcontext
from functools import reduce
from operator import add
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.ascent import Optimiser, climb
from opsin.errors import InputError
from opsin.images import longest, resized
from opsin.model import Model
from opsin.objectives import Objective, gram, gram_match
from opsin.pooling import AveragePooling
from opsin.registry import MOST_PIXELS, Arg, Layers, technique
from opsin.results import Picture, Pictures

DEFAULT_RATES = {"lbfgs": 1.0, "adam": 0.02, "gradient": 0.005}  # the last two found by trial
SMALL = 1e-12  # a layer of zeros has no unit
NOISE = 0.1  # deviation of the noise to start from; more of it stays visible
ACTIVATION = re.compile(r"relu|silu|gelu|swish|mish|elu|act", re.IGNORECASE)


@technique(
    paper="Gatys, Ecker, Bethge: Texture Synthesis Using Convolutional Neural Networks, 2015 "
    "(arXiv:1505.07376), eq. 1-4",
    reading="New texture like the photo's: as its network features go together, wherever they are.",
    cost=600,
    climbs=True,
    photos="whole",
    network="vgg16_features",
)
def texture(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    layers: Layers = None,
    size: Annotated[int, Arg("side of the new texture, pixels", least=16, most=MOST_PIXELS)] = 256,
    source: Annotated[
        int, Arg("longer side that the photo is reduced to, pixels", least=16, most=MOST_PIXELS)
    ] = 256,
    steps: Annotated[int, Arg("steps of the optimiser", least=1)] = 200,
    optimiser: Annotated[Optimiser, Arg("lbfgs as the paper, adam or plain gradients")] = "lbfgs",
    rate: Annotated[
        float | None,
        Arg("rate; by default 1 for lbfgs, 0.02 for adam, 0.005 for gradient", least=0, most=100),
    ] = None,
    pooling: Annotated[
        Literal["average", "maximum"], Arg("how the network pools; average as the paper")
    ] = "average",
    tile: Annotated[int, Arg("pixels: larger textures are worked in tiles of this side", least=64)] = 768,
    seed: Annotated[int, Arg("random seed of the noise", least=0)] = 0,
) -> Pictures:
    """An image whose Gram matrices are the photo's: arg min_x Σ_l E_l, from noise.

    E_l = 1/(4 N²) Σ_ij (G_ij - Ĝ_ij)² with G = F Fᵀ / M, F the layer's N maps at M positions, in units in
    which F's mean is one on the photo (the paper's network is normalised so). `numbers["share"]` is the loss
    as a share of the noise image's.

    By default the layers are the first activation at every resolution (VGG: relu1_1 to relu5_1). Departs
    from the paper: G is a mean over positions, so that the new texture may have any size.
    """
    panels: list[Picture] = []
    numbers: dict[str, Tensor] = {}
    for index, image in enumerate(images):
        photo = resized(image[None], longest(image[None], min(source, max(image.shape[-2:]))))
        with AveragePooling() if pooling == "average" else nullcontext():
            target = likeness(model, photo, layers or first_activations(model))
            found = climb(
                "texture",
                model,
                target,
                noise(photo, (size, size), seed),
                steps=steps,
                rate=DEFAULT_RATES[optimiser] if rate is None else rate,
                optimiser=optimiser,
                tile=tile,
            )
        share = found.scores / found.scores[:1]
        numbers |= {f"{index} loss": -found.scores, f"{index} share": share}
        caption = f"loss {100 * float(share[-1]):.3g} % of the noise's" if len(share) else "not climbed"
        panels += [Picture("photo", "", photo[0], made=False), Picture("texture", caption, found.images[0])]
    return Pictures(tuple(panels), numbers=numbers)


def noise(photo: Float[Tensor, "1 3 h w"], size: tuple[int, int], seed: int) -> Float[Tensor, "1 3 H W"]:
    """Faint Gaussian noise around the photo's mean colour."""
    drawn = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed)).to(photo)
    return (photo.mean((2, 3), keepdim=True) + NOISE * drawn).clamp(0, 1)


def likeness(
    model: Model, photo: Float[Tensor, "1 3 h w"], layers: list[str], mask: Tensor | None = None
) -> Objective:
    """Minus the mean loss E_l over the layers, Gram matrices of `photo` wanted; within the mask, if given."""
    with torch.no_grad():
        run = model.run(photo, layers)
        terms = []
        for layer in layers:
            maps = run.maps(layer)
            if maps.shape[-2:] == (1, 1):
                raise InputError(f"layer {layer!r} is 1x1 here: a texture needs more positions")
            terms.append(gram_match(layer, gram(maps) * unit(maps) ** 2, mask, unit(maps)))
    return reduce(add, terms) * (1 / len(terms))


def unit(maps: Float[Tensor, "n c h w"]) -> float:
    """What maps are to be multiplied with, so that their mean size is one."""
    return 1 / float(maps.abs().mean().clamp(min=SMALL))


def first_activations(model: Model) -> list[str]:
    """The first activation at every resolution; where there is none, the first layer.

    Raises `NetworkError` where no layer has a spatial extent.
    """
    by_extent: dict[tuple[int, int], list[str]] = {}
    for call in model.calls.values():
        spatial = call.extent is not None and min(call.extent) > 1
        if spatial and (not call.passive or ACTIVATION.search(call.kind)):
            by_extent.setdefault(call.extent or (1, 1), []).append(call.name)
    kinds = {call.name: call.kind for call in model.calls.values()}
    if not by_extent:
        return [model.default_layer]
    return [next((n for n in names if ACTIVATION.search(kinds[n])), names[0]) for names in by_extent.values()]
