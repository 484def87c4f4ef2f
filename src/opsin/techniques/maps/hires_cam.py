from jaxtyping import Float
from torch import Tensor

from opsin.gradients.derivatives import layer_gradient
from opsin.network.model import Model
from opsin.objectives.units import PREDICTED
from opsin.registry.kinds import Layer, Target
from opsin.registry.technique import technique
from opsin.results.heatmap import Heatmap


@technique(
    title="HiResCAM",
    paper="Draelos, Carin: HiResCAM, 2020 (arXiv:2011.08891)",
    reading="What each position adds to the score (red) or takes from it (blue).",
    cost=2,
)
def hires_cam(
    model: Model, images: Float[Tensor, "n 3 h w"], target: Target = PREDICTED, layer: Layer = None
) -> Heatmap:
    """The product of a layer's maps and their gradient, summed over channels.

    L(i, j) = Σ_k ∂S/∂A_k(i, j) · A_k(i, j), signed. On a network whose score is linear in the layer
    the map sums to the score without its bias. Raises what `grad_cam` raises.
    """
    maps, gradient, _ = layer_gradient(model, images, target, layer)
    return Heatmap((gradient * maps).sum(1, keepdim=True), images, signed=True, overlay=True)
