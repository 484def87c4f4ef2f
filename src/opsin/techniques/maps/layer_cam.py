from jaxtyping import Float
from torch import Tensor

from opsin.gradients.derivatives import layer_gradient
from opsin.network.model import Model
from opsin.objectives.units import PREDICTED
from opsin.registry.kinds import Layer, Target
from opsin.registry.technique import technique
from opsin.results.heatmap import Heatmap


@technique(
    title="LayerCAM",
    paper="Jiang et al.: LayerCAM, 2021 (IEEE TIP 30, doi:10.1109/TIP.2021.3089943), eq. 4-6",
    reading="Like Grad-CAM, weighted position by position: on an early layer it shows fine detail.",
    cost=2,
)
def layer_cam(
    model: Model, images: Float[Tensor, "n 3 h w"], target: Target = PREDICTED, layer: Layer = None
) -> Heatmap:
    """A layer's maps weighted at each position by the positive part of the gradient there.

    L = ReLU(Σ_k ReLU(∂S/∂A_k(i, j)) A_k(i, j)). Raises what `grad_cam` raises.
    """
    maps, gradient, _ = layer_gradient(model, images, target, layer)
    heat = (gradient.relu() * maps).sum(1, keepdim=True).relu()
    return Heatmap(heat, images, signed=False, overlay=True)
