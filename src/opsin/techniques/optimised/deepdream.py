from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.choices import MOST_PIXELS
from opsin.base.errors import InputError
from opsin.images.tensors import enlarged, longest, resized
from opsin.network.model import Model
from opsin.objectives.features import dream_match
from opsin.objectives.objective import Objective
from opsin.objectives.units import channel as one_channel
from opsin.objectives.units import energy
from opsin.optimise.canvas import Toned
from opsin.optimise.climb import climb
from opsin.optimise.recipe import Recipe
from opsin.optimise.textures import noise
from opsin.optimise.transforms import affine, jitter
from opsin.registry.kinds import Arg, Layers
from opsin.registry.technique import technique
from opsin.results.pictures import Picture, Pictures

LEAST = 16  # pixels: the side of the smallest octave


@technique(
    title="DeepDream",
    paper="Mordvintsev, Olah, Tyka: Inceptionism, Google Research Blog 2015, with the notebook deepdream",
    reading="The photo, changed so that the network sees more of what it already sees there.",
    cost=120,
    iterative=True,
    photos="whole",
)
def deepdream(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    layers: Layers = None,
    channel: Annotated[int | None, Arg("channel of the layer; by default all channels", least=0)] = None,
    guide: Annotated[Sequence[Tensor], Arg("image whose features the dream should show", "images")] = (),
    start: Annotated[Literal["photo", "noise"], Arg("where the dream begins")] = "photo",
    steps: Annotated[int, Arg("number of steps in each octave", least=1)] = 15,
    rate: Annotated[float, Arg("step size: mean change of a colour value per step", least=0, most=1)] = 0.008,
    octaves: Annotated[int, Arg("number of octaves (sizes, from small to full)", least=1, most=100)] = 4,
    ratio: Annotated[float, Arg("size ratio between octaves", least=1.05, most=10)] = 1.4,
    shift: Annotated[
        int,
        Arg(
            "largest random shift (jitter), pixels; at least half a tile where tiles are used",
            least=0,
            most=MOST_PIXELS,
        ),
    ] = 32,
    size: Annotated[
        int | None, Arg("longer side of the dream; by default the photo's", least=16, most=MOST_PIXELS)
    ] = None,
    tile: Annotated[
        int, Arg("side of a tile, pixels; larger pictures are processed in tiles", least=64)
    ] = 512,
    frames: Annotated[int, Arg("number of film frames; each starts from the one before", least=1)] = 1,
    zoom: Annotated[float, Arg("zoom factor between frames", least=1, most=10)] = 1.05,
    seed: Annotated[int, Arg("random seed of the shifts and the noise", least=0)] = 0,
) -> Pictures:
    """Gradient ascent on the energy ½ mean(A²) of layers, in octaves: y ← y + rate · g / mean|g|, x = sin² y.

    From the smallest octave to the full size, under random shifts; what one octave added (its detail) is
    enlarged and carried into the next. A `channel` or a `guide` takes the place of the energy: of a guide
    the mean product of each position's features with the guide's that fit best.

    The default layer is the last one at the last resolution but one. Pictures larger than a tile are
    shifted at random and dreamt tile by tile, so that memory does not grow and, unless `shift` is 0, no
    seam stays. With `frames` the dream is enlarged by `zoom` and dreamt again, for a film.

    Departs from the notebook: it changes the angles y in place of the pixels x, so that shadows and
    highlights keep their tone; the gradient, of y, is normalised per image.
    """
    if len(guide) > 1:
        raise InputError(f"deepdream: one guide, not {len(guide)}")
    if frames > 1 and len(images) > 1:
        raise InputError(f"deepdream: a film is of one photo, not of {len(images)}")
    target = dream_objective(model, layers or [default_dream_layer(model)], channel, *guide)
    picture = resized(images, longest(images, size or max(images.shape[-2:])))
    panels = [Picture("photo", "", image, made=False) for image in picture]
    if start == "noise":
        picture = torch.cat([noise(one, (one.shape[2], one.shape[3]), seed) for one in picture.split(1)])
    numbers = {}
    for frame in range(frames):
        height, width = picture.shape[-2:]
        shares = [ratio**-k for k in reversed(range(octaves))]
        sizes = [(max(LEAST, round(height * s)), max(LEAST, round(width * s))) for s in shares]
        detail = torch.zeros_like(resized(picture, sizes[0]))
        for number, (h, w) in enumerate(sizes):
            base = resized(picture, (h, w))
            begin = (base + enlarged(detail, (h, w))).clamp(0, 1)
            reach = max(shift, tile // 2) if shift and max(h, w) > tile else shift
            found = climb(
                f"frame {frame + 1}, octave {number + 1} of {octaves}"
                if frames > 1
                else f"octave {number + 1}",
                model,
                target,
                begin,
                Recipe(
                    steps=steps,
                    rate=rate,
                    canvas=Toned(),
                    transforms=[jitter(reach)],
                    optimiser="gradient",
                    seed=seed + number,
                    tile=tile,
                ),
            )
            detail = found.images - base
            numbers[f"frame {frame + 1}, octave {number + 1}"] = found.scores
        if frame and not found.begun:
            break  # stopped early before this frame was finished
        panels += [
            Picture("dream", f"frame {frame + 1}" if frames > 1 else target.name, x) for x in found.images
        ]
        picture = affine(0.0, zoom, zoom)(found.images, torch.Generator()) if frames > 1 else picture
    return Pictures(tuple(panels), film=frames > 1, numbers=numbers)


def dream_objective(
    model: Model, layers: list[str], channel: int | None, guide: Tensor | None = None
) -> Objective:
    """What the dream climbs: the sum over the layers."""
    if guide is not None and channel is not None:
        raise InputError("deepdream: a guide or a channel, not both")
    if channel is not None:
        return reduce(add, [one_channel(layer, channel) for layer in layers])
    if guide is None:
        return reduce(add, [energy(layer) for layer in layers])
    run = model.run(guide, layers)
    return reduce(add, [dream_match(layer, run.maps(layer)) for layer in layers])


def default_dream_layer(model: Model) -> str:
    """The last layer at the last resolution but one: whole things, and small enough for many in a picture."""
    extents = {c.extent for c in model.calls.values() if c.extent and min(c.extent) > 1}
    order = sorted(extents, key=lambda extent: extent[0] * extent[1])
    wanted = order[min(1, len(order) - 1)] if order else None
    found = [c.name for c in model.calls.values() if wanted and c.extent == wanted and not c.passive]
    return found[-1] if found else model.default_layer
