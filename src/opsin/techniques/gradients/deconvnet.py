import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.errors import InputError
from opsin.base.job import CAUTION, note
from opsin.gradients import rules
from opsin.gradients.custom import CustomFunctions
from opsin.gradients.derivatives import derivative
from opsin.network import graph
from opsin.network.backward import differentiating
from opsin.network.model import Model
from opsin.objectives.units import PREDICTED
from opsin.registry.kinds import Target
from opsin.registry.technique import technique
from opsin.results.heatmap import Heatmap


@technique(
    title="Deconvnet",
    paper="Zeiler, Fergus: Visualizing and Understanding Convolutional Networks, 2013 (arXiv:1311.2901)",
    reading="What in the photo made the unit fire: its activation, carried back to the pixels.",
    cost=3,
)
def deconvnet(model: Model, images: Float[Tensor, "n 3 h w"], target: Target = PREDICTED) -> Heatmap:
    """One unit's activation projected back to the pixels: unpool, rectify, transposed filters.

    All activations of the target's layer but one are set to zero. Going down, each max-pooling puts
    the signal where its maximum was (the switches), R_in = max(R_out, 0) at each rectifier, and each
    convolution applies its transposed filters. Signed, in units of the activation.

    The unit kept is the target's; of a channel, the one where it is strongest in each image; of a
    class, its score before the softmax. A unit that does not fire projects to zero, which is noted.
    Batch normalisation, which the paper's network lacks, and its contrast normalisation pass back
    their derivative.
    Raises `InputError` on a target that is scaled or weighs several, `NetworkError` without rectifiers.
    """
    if len(target.layers) != 1:
        raise InputError(
            f"deconvnet projects one unit of one layer, not {target.name!r}: see guided_backprop"
        )
    (layer,) = target.layers
    with CustomFunctions() as custom:
        run = model.run(images, (layer,), start="image")
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
    return Heatmap(projection, images, signed=True, overlay=False)


def _is_one_unit_or_channel(weights: Tensor) -> bool:
    """Whether the derivative (n, c, ...) is that of one unit, or of the mean of one whole channel."""
    by_channel = weights.flatten(2) if weights.ndim > 2 else weights[..., None]  # (n, c, positions)
    counts = (by_channel != 0).sum(2)  # (n, c)
    whole = (counts.sum(1) == 1) | ((counts == by_channel.shape[2]).sum(1) == 1) & ((counts != 0).sum(1) == 1)
    return bool(whole.all()) and torch.allclose(by_channel.sum((1, 2)), weights.new_ones(1), rtol=1e-2)
