from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.errors import InputError
from opsin.base.job import CAUTION, note, tell, within
from opsin.gradients import rules
from opsin.gradients.custom import CustomFunctions
from opsin.gradients.derivatives import derivative
from opsin.network import graph
from opsin.network.backward import differentiating
from opsin.network.cut import check_graph
from opsin.network.model import Model
from opsin.network.regions import fields_of
from opsin.objectives.objective import Objective
from opsin.objectives.units import STRONGEST
from opsin.registry.kinds import Arg
from opsin.registry.technique import technique
from opsin.results.heatmap import Heatmap


@technique(
    title="Deconvnet",
    paper="Zeiler, Fergus: Visualizing and Understanding Convolutional Networks, 2013 (arXiv:1311.2901)",
    reading="What in the photo made the unit fire: its activation, carried back to the pixels.",
    cost=20,
)
def deconvnet(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    target: Annotated[
        Objective,
        Arg(
            "layer:channel or layer:channel@row,column; by default the strongest unit of the last layer that "
            "has positions; strongest(LAYER) of another",
            "target",
        ),
    ] = STRONGEST,
) -> Heatmap:
    """One unit's activation projected back to the pixels: unpool, rectify, transposed filters.

    All activations of the target's layer but one are set to zero. Going down, each max-pooling puts
    the signal where its maximum was (the switches), R_in = max(R_out, 0) at each rectifier, and each
    convolution applies its transposed filters. Signed, in units of the activation.

    The unit kept is the target's: by default the most active one of the model's default layer, another in
    each image; of a channel, the one where it is strongest in each image; of a class, its score before the
    softmax, whose projection shows little. `extras["unit"]` is its channel, row and column, (n, 3), and
    `extras["box"]` the patch of the photo that it sees, as top, left, bottom and right, (n, 4), ends
    excluded: row and column are 0 and the patch is the whole photo for a layer without positions. The record
    names the units. A unit that does not fire projects to zero, which is noted.

    Batch normalisation, which the paper's network lacks, and its contrast normalisation pass back
    their derivative.
    Raises `InputError` on a target that is scaled or weighs several, `NetworkError` without rectifiers.
    """
    if len(target.layers) != 1:
        raise InputError(
            f"deconvnet projects one unit of one layer, not {target.name!r}: see guided_backprop"
        )
    (layer,) = target.layers
    tell("deconvnet", 0, 2)
    with CustomFunctions() as custom:
        run = model.run(images, (layer,), start="image")
    check_graph(model, run, (layer,))
    weights = derivative(target.score(run), run[layer], target, again=True)
    if not _is_one_unit_or_channel(run.as_channels(weights, layer)):
        raise InputError(f"deconvnet projects a unit or a channel, not {target.name!r}: see guided_backprop")
    kept, weights = run[layer].detach().flatten(1), weights.flatten(1)
    chosen = (kept * weights).masked_fill(weights == 0, -torch.inf).argmax(1, keepdim=True)
    signal = torch.zeros_like(kept).scatter(1, chosen, kept.gather(1, chosen).clamp(min=0))
    for index in (signal == 0).all(1).nonzero().flatten().tolist():
        note(f"{CAUTION}image {index}: the unit's value is not positive, so nothing is projected")
    if not any(node.name().startswith("MaxPool") for node in graph.nodes([run[layer].grad_fn])):
        note(
            f"{CAUTION}no max-pooling below the unit, so no switches: the picture hardly depends on the photo"
        )
    with rules.applied(rules.deconvnet, [run[layer]], custom), differentiating():
        (projection,) = torch.autograd.grad(run[layer], run["image"], signal.view_as(run[layer]))
    tell("deconvnet", 1, 2)
    marked = torch.zeros_like(kept).scatter(1, chosen, 1).view_as(run[layer])
    units, boxes = _units(model, layer, run.as_channels(marked, layer), images)
    tell("deconvnet", 2, 2)
    extras = {"unit": torch.tensor(units), "box": torch.tensor(boxes)}
    return Heatmap(projection, images, signed=True, overlay=False, extras=extras)


def _units(
    model: Model, layer: str, marked: Tensor, images: Float[Tensor, "n 3 h w"]
) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int, int]]]:
    """Channel, row and column of the unit that is marked in each image, and the box of pixels it sees."""
    units = []
    for image in marked:  # (c, h, w), or (c,) of a layer without positions
        channel, *position = (int(i) for i in torch.unravel_index(image.argmax(), image.shape))
        units.append((channel, *(position or (0, 0))))
    named = [f"{layer}:{c}@{y},{x}" if marked.ndim == 4 else f"{layer}:{c}" for c, y, x in units]
    for index, name in enumerate(named):
        note(f"image {index}: the unit is {name}")
    height, width = images.shape[-2:]
    call = model.call(layer)
    if call is None or call.extent in (None, (1, 1)):
        return units, [(0, 0, height, width)] * len(units)
    with within(listener=None):  # whose steps these are not
        regions = fields_of(model, layer, [(y, x) for _, y, x in units], (height, width))
    fields = [regions[y, x] for _, y, x in units]
    return units, [(field.top, field.left, field.bottom, field.right) for field in fields]


def _is_one_unit_or_channel(weights: Tensor) -> bool:
    """Whether the derivative (n, c, ...) is that of one unit, or of the mean of one whole channel."""
    by_channel = weights.flatten(2) if weights.ndim > 2 else weights[..., None]  # (n, c, positions)
    counts = (by_channel != 0).sum(2)  # (n, c)
    whole = (counts.sum(1) == 1) | ((counts == by_channel.shape[2]).sum(1) == 1) & ((counts != 0).sum(1) == 1)
    return bool(whole.all()) and torch.allclose(by_channel.sum((1, 2)), weights.new_ones(1), rtol=1e-2)
