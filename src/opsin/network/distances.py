"""How far the features of two pictures are apart, layer by layer."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.network.model import Model

SMALL = 1e-12


def feature_distances(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    others: Float[Tensor, "n 3 h w"],
    layers: Sequence[str] | None = None,
) -> dict[str, Float[Tensor, " n"]]:
    """‖Φ_l(x') - Φ_l(x)‖ / ‖Φ_l(x)‖ of every layer l, with x the images and x' the others, in their order.

    By default of `"image"`, of all layers that compute, and of `"output"`. A layer that gives nothing but
    zeros is at the distance zero from itself, else infinitely far. Raises `InputError` on unknown layers.
    """
    inner = [call.name for call in model.calls.values() if not call.passive and call.readable]
    wanted = ("image", *inner, "output") if layers is None else tuple(layers)
    first, second = (model.run(pictures, wanted) for pictures in (images, others))
    distances = {}
    for layer in dict.fromkeys(wanted):
        a, b = (run[layer].detach().cpu().double().flatten(1) for run in (first, second))
        apart, size = (b - a).norm(dim=1), a.norm(dim=1)
        share = apart / size.clamp(min=SMALL)
        distances[layer] = torch.where(size > 0, share, torch.where(apart > 0, torch.inf, 0.0))
    return distances
