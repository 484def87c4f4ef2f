from contextlib import nullcontext
from typing import Annotated, Literal

from jaxtyping import Float
from torch import Tensor

from opsin.base.choices import MOST_PIXELS, Optimiser
from opsin.base.errors import InputError
from opsin.network.model import Model
from opsin.network.shortcuts.pooling import AveragePooling
from opsin.optimise.climb import climb
from opsin.optimise.recipe import Recipe
from opsin.optimise.samples import sample_of
from opsin.optimise.textures import (
    DEFAULT_RATES,
    first_activations,
    mirrored,
    noise,
    photo_label,
    spectrum_match,
    texture_objective,
)
from opsin.registry.kinds import Arg, Layers
from opsin.registry.technique import technique
from opsin.results.pictures import Picture, Pictures


@technique(
    title="Texture synthesis",
    paper="Gatys, Ecker, Bethge: Texture Synthesis Using Convolutional Neural Networks, 2015 "
    "(arXiv:1505.07376), eq. 1-4",
    reading="New texture like the photo's: as its network features go together, wherever they are.",
    cost=600,
    iterative=True,
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
    steps: Annotated[int, Arg("number of steps of the optimiser", least=1)] = 200,
    optimiser: Annotated[
        Optimiser, Arg("optimiser: lbfgs (as in the paper), adam, or plain gradient steps")
    ] = "lbfgs",
    rate: Annotated[
        float | None,
        Arg("step size; by default 1 for lbfgs, 0.02 for adam, 0.005 for gradient", least=0, most=100),
    ] = None,
    pooling: Annotated[
        Literal["average", "maximum"], Arg("pooling of the network; average as in the paper")
    ] = "average",
    tile: Annotated[
        int, Arg("side of a tile, pixels; larger textures are processed in tiles", least=64)
    ] = 768,
    spectrum: Annotated[
        float,
        Arg("weight of the photo's spectrum: 0 as in the paper, 10 keeps bricks and tiles regular", least=0),
    ] = 0.0,
    seed: Annotated[int, Arg("random seed of the noise", least=0)] = 0,
) -> Pictures:
    """An image whose Gram matrices are the photo's: arg min_x Σ_l E_l, from noise.

    E_l = 1/(4 N²) Σ_ij (G_ij - Ĝ_ij)² with G = F Fᵀ / M, F the layer's N maps at M positions, in units in
    which F's mean is one on the photo (the paper's network is normalised so). `numbers["share"]` is the loss
    as a share of the noise image's.

    With a weight, `spectrum` times ½ mean (x - x̃)² / variance is added, x̃ the nearest picture with the
    photo's spectrum (Liu, Gousseau, Xia 2016, arXiv:1605.01141): the layers see no rhythm that is longer than
    their fields. It needs the texture in one tile.

    By default the layers are the first activation at every resolution (VGG: relu1_1 to relu5_1). Departs
    from the paper: G is a mean over positions, so that the new texture may have any size; a sample less than
    half as long or wide as the texture is continued by its mirror images, so that deep layers see more of it
    than of their padding.
    """
    if spectrum and size > tile:
        raise InputError(f"texture: a spectrum is that of the whole picture: tile must be at least {size}")
    panels: list[Picture] = []
    numbers: dict[str, Tensor] = {}
    for index, image in enumerate(images.split(1)):
        photo = sample_of(image, source, 1)
        with AveragePooling() if pooling == "average" else nullcontext():
            sample = mirrored(photo, size)
            target = texture_objective(model, sample, layers or first_activations(model))
            if spectrum:
                target += spectrum * spectrum_match(photo, (size, size))
            found = climb(
                photo_label(index, len(images)) + "texture",
                model,
                target,
                noise(photo, (size, size), seed),
                Recipe(
                    steps=steps,
                    rate=DEFAULT_RATES[optimiser] if rate is None else rate,
                    optimiser=optimiser,
                    tile=tile,
                ),
            )
        share = found.scores / found.scores[:1]
        numbers |= {f"{index} loss": -found.scores, f"{index} share": share}
        caption = f"loss {100 * float(share[-1]):.3g} % of the noise's" if found.begun else "not begun"
        panels += [Picture("photo", "", photo[0], made=False), Picture("texture", caption, found.images[0])]
    return Pictures(tuple(panels), numbers=numbers)
