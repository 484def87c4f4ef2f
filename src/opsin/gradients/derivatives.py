"""The two derivatives that techniques use: with respect to the image, and to a layer."""

from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.errors import InputError, NetworkError
from opsin.base.job import CAUTION, note
from opsin.gradients.custom import CustomFunctions
from opsin.gradients.rules import Rule, applied
from opsin.network.activations import Activations
from opsin.network.backward import differentiating
from opsin.network.cut import check_graph
from opsin.network.model import Model
from opsin.objectives.objective import Objective


def image_gradient(
    model: Model, images: Float[Tensor, "n 3 h w"], target: Objective, rule: Rule | None = None
) -> Float[Tensor, "n 3 h w"]:
    """∂S/∂x of every image's score S, with `rule` at the network's rectifiers: one forward, one backward."""
    return scores_and_gradient(model, images, target, rule)[1]


def scores_and_gradient(
    model: Model, images: Float[Tensor, "n 3 h w"], target: Objective, rule: Rule | None = None
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3 h w"]]:
    """Every image's score, and `image_gradient`.

    Raises `NetworkError` if the network's own code cuts the graph.
    """
    with CustomFunctions() if rule else nullcontext() as custom:
        run = model.run(images, target.layers, start="image")
    check_graph(model, run, target.layers)
    with applied(rule, [run[layer] for layer in target.layers], custom) if rule else nullcontext():
        scores = target.score(run)
        return scores.detach(), derivative(scores, run["image"], target)


def layer_gradient(
    model: Model, images: Float[Tensor, "n 3 h w"], target: Objective, layer: str
) -> tuple[Float[Tensor, "n c rows columns"], Float[Tensor, "n c rows columns"], Activations]:
    """A layer's maps A, ∂S/∂A, and the run. Nothing is recorded below the layer.

    Raises `NetworkError` if the layer has no spatial extent, or the network's own code cuts the graph.
    """
    run = model.run(images, (*target.layers, layer), start=layer)
    check_graph(model, run, target.layers, layer)
    gradient = derivative(target.score(run), run[layer], target)
    return (*maps_and_gradient(run, layer, gradient), run)


def maps_and_gradient(
    run: Activations, layer: str, gradient: Tensor
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
    """A layer's activations and their gradient as maps. Notes images whose target does not depend on them."""
    maps, gradient = run.maps(layer).detach(), run.as_maps(gradient, layer)
    if maps.shape[-2:] == (1, 1):
        raise NetworkError(f"layer {layer!r} is 1x1 here: no spatial extent to make a map of")
    for index in (gradient == 0).flatten(1).all(1).nonzero().flatten().tolist():
        note(f"{CAUTION}image {index}: the target does not depend on {layer}, its map is zero")
    return maps, gradient


def derivative(scores: Float[Tensor, " n"], at: Tensor, target: Objective, *, again: bool = False) -> Tensor:
    """∂(sum of scores)/∂`at`. Raises `InputError` if the target does not depend on it.

    With `again` the graph is kept. Raises `NetworkError` if torch cannot differentiate.
    """
    gradient = None
    if scores.requires_grad:
        with differentiating():
            (gradient,) = torch.autograd.grad(scores.sum(), at, retain_graph=again, allow_unused=True)
    if gradient is None:
        raise InputError(
            f"target {target.name!r} does not depend on the image or layer that it is differentiated by"
        )
    return gradient
