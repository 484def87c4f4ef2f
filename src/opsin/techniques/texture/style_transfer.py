import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import reduce
from operator import add
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.choices import MOST_PIXELS, Optimiser
from opsin.base.errors import InputError
from opsin.images.colour import LUMINANCE
from opsin.images.tensors import longest, resized
from opsin.images.upright import MIN_SIDE
from opsin.network.model import Model
from opsin.network.shortcuts.pooling import AveragePooling
from opsin.objectives.features import content_match
from opsin.objectives.objective import Objective
from opsin.optimise.climb import climb
from opsin.optimise.recipe import Recipe
from opsin.optimise.textures import (
    ACTIVATION,
    DEFAULT_RATES,
    first_activations,
    inverse_mean_activation,
    noise,
    photo_label,
    texture_objective,
)
from opsin.registry.kinds import Arg, Layers
from opsin.registry.technique import technique
from opsin.results.pictures import Picture, Pictures

FIRST_SCALE = 256  # pixels: coarse to fine begins here
FINER_STEPS = 0.5  # of the steps at every further scale, which begin near the end
CONTENT_SCALE = 3  # content is read at the fourth resolution (VGG: relu4_2)


@technique(
    title="Neural style transfer",
    paper="Gatys, Ecker, Bethge: A Neural Algorithm of Artistic Style, 2015 (arXiv:1508.06576), eq. 1-7",
    reading="The photo's content, painted with the other picture's textures.",
    cost=900,
    iterative=True,
    photos="whole",
    network="vgg16_features",
)
def style_transfer(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    style: Annotated[Sequence[Tensor], Arg("picture whose style is used; may be repeated", "images")],
    mix: Annotated[str | None, Arg("weights of the styles, separated by commas; by default equal")] = None,
    masks: Annotated[
        Sequence[Tensor], Arg("one picture per style, white where that style goes", "images")
    ] = (),
    content: Layers = None,
    layers: Layers = None,
    ratio: Annotated[float, Arg("ratio α/β of content to style", least=0, most=1e6)] = 1e-2,
    size: Annotated[int, Arg("longer side of the picture, pixels", least=16, most=MOST_PIXELS)] = 512,
    steps: Annotated[
        int, Arg("number of steps at the first scale; each further scale takes half as many", least=1)
    ] = 200,
    optimiser: Annotated[
        Optimiser, Arg("optimiser: lbfgs (as in the paper), adam, or plain gradient steps")
    ] = "lbfgs",
    rate: Annotated[
        float | None,
        Arg("step size; by default 1 for lbfgs, 0.02 for adam, 0.005 for gradient", least=0, most=100),
    ] = None,
    start: Annotated[Literal["content", "noise"], Arg("where the picture begins")] = "content",
    keep_colours: Annotated[
        bool, Arg("keep the photo's colours and use the style's brightness only")
    ] = False,
    pooling: Annotated[
        Literal["average", "maximum"], Arg("pooling of the network; average as in the paper")
    ] = "average",
    tile: Annotated[
        int, Arg("side of a tile, pixels; larger pictures are processed in tiles", least=64)
    ] = 768,
    seed: Annotated[int, Arg("random seed of the noise", least=0)] = 0,
) -> Pictures:
    """An image with the photo's features and the style's Gram matrices: arg min_x α L_content + β L_style.

    L_content = ½ Σ (F - P)², P the photo's features at relu4_2; L_style = Σ_l w_l E_l as in `texture`, with
    w_l = 1/5 over relu1_1 to relu5_1. Features are in units in which their mean is one (the
    paper's network is normalised so), which makes α/β mean the same on any network.

    Runs from coarse to fine, doubling from 256 pixels. Several styles are mixed by the shares in `mix`, or
    each kept to the white of its mask. `keep_colours` keeps the photo's chrominance. Pictures larger than a
    tile are worked in tiles, exactly: memory does not grow with them, a step takes about half as long again.

    Departs from the papers: L_content is a mean over channels and positions and not a sum, so that α/β
    does not depend on the size.
    """
    shares = _shares(mix, len(style))
    _check(style, masks)
    panels, numbers = [], {}
    for index, photo in enumerate(images.split(1)):
        height, width = longest(photo, size)
        scales = [(height, width)]
        while max(scales[0]) > 2 * FIRST_SCALE - 1:
            scales.insert(0, (scales[0][0] // 2, scales[0][1] // 2))
        picture = resized(photo, scales[0])
        if start == "noise":
            picture = noise(photo, scales[0], seed)
        for number, scale in enumerate(scales):
            base = resized(photo, scale)
            with AveragePooling() if pooling == "average" else nullcontext():
                target = style_objective(model, base, style, shares, masks, content, layers, ratio)
                found = climb(
                    photo_label(index, len(images)) + f"{scale[1]}×{scale[0]}",
                    model,
                    target,
                    resized(picture, scale),
                    Recipe(
                        steps=max(1, round(steps * FINER_STEPS ** min(number, 1))),
                        rate=DEFAULT_RATES[optimiser] if rate is None else rate,
                        optimiser=optimiser,
                        tile=tile,
                    ),
                )
            picture = found.images
            numbers[f"{index} loss {scale[1]}x{scale[0]}"] = -found.scores
        if keep_colours:
            picture = with_colours_of(resized(photo, (height, width)), resized(picture, (height, width)))
        panels.append(Picture("photo", "", photo[0], made=False))
        panels += [Picture("style", "", one[0], made=False) for one in style]
        panels.append(Picture("picture", f"{picture.shape[3]}×{picture.shape[2]}", picture[0]))
    return Pictures(tuple(panels), numbers=numbers)


def style_objective(
    model: Model,
    photo: Float[Tensor, "1 3 h w"],
    style: Sequence[Tensor],
    shares: list[float],
    masks: Sequence[Tensor],
    content: list[str] | None,
    layers: list[str] | None,
    ratio: float,
) -> Objective:
    """Minus the loss, divided by β, at the photo's size."""
    chosen = layers or first_activations(model)
    total = ratio * kept(model, photo, content or content_layers(model))
    for index, (one, share) in enumerate(zip(style, shares, strict=True)):
        reduced = resized(one, longest(one, max(photo.shape[-2:])))
        mask = (
            resized(masks[index], (photo.shape[2], photo.shape[3])).mean(1, keepdim=True) if masks else None
        )
        total += share * texture_objective(model, reduced, chosen, mask)
    return total


def kept(model: Model, photo: Float[Tensor, "1 3 h w"], layers: list[str]) -> Objective:
    """Minus L_content, summed over the layers."""
    run = model.run(photo, layers)
    return reduce(
        add,
        [content_match(layer, run.maps(layer), inverse_mean_activation(run.maps(layer))) for layer in layers],
    )


def content_layers(model: Model) -> list[str]:
    """The second activation at the fourth resolution (VGG: relu4_2), or the nearest that there is."""
    firsts = first_activations(model)
    calls = model.calls
    extent = calls[firsts[min(CONTENT_SCALE, len(firsts) - 1)]].extent
    there = [c.name for c in calls.values() if c.extent == extent and ACTIVATION.search(c.kind)]
    return [there[1] if len(there) > 1 else firsts[min(CONTENT_SCALE, len(firsts) - 1)]]


def with_colours_of(
    photo: Float[Tensor, "1 3 h w"], picture: Float[Tensor, "1 3 h w"]
) -> Float[Tensor, "1 3 h w"]:
    """The picture's brightness with the photo's chrominance (Gatys et al. 2016, arXiv:1606.05897)."""
    grey = photo.new_tensor([LUMINANCE] * 3)
    bright = torch.einsum("cd,ndhw->nchw", grey, picture - photo)
    return (photo + bright).clamp(0, 1)


def _check(style: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Raise `InputError` on styles too small to have one, and on masks that do not fit them."""
    for height, width in (one.shape[-2:] for one in style):
        if min(height, width) < MIN_SIDE:
            raise InputError(
                f"style_transfer: a style of {width}x{height} pixels: at least {MIN_SIDE} on each side"
            )
    if masks and len(masks) != len(style):
        raise InputError(f"style_transfer: {len(masks)} masks for {len(style)} styles: give one for each")
    for index, mask in enumerate(masks):
        if not mask.any():
            raise InputError(f"style_transfer: mask {index + 1} is black: its style goes nowhere")


def _shares(mix: str | None, n: int) -> list[float]:
    """The styles' shares, which sum to one."""
    if n == 0:
        raise InputError("style_transfer: no style picture given")
    try:
        given = [1.0] * n if mix is None else [float(one) for one in mix.split(",")]
    except ValueError as error:
        raise InputError(f"style_transfer: mix is numbers with commas between, not {mix!r}") from error
    if len(given) != n or not 0 < sum(given) < math.inf or min(given) < 0:
        raise InputError(f"style_transfer: {n} styles need {n} shares, none negative, not {mix!r}")
    return [one / sum(given) for one in given]
