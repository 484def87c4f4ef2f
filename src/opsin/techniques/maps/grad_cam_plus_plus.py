import torch
from jaxtyping import Float
from torch import Tensor

from opsin.gradients.derivatives import layer_gradient
from opsin.network.model import Model
from opsin.objectives.units import PREDICTED
from opsin.registry.kinds import Layer, Target
from opsin.registry.technique import technique
from opsin.results.heatmap import Heatmap


@technique(
    title="Grad-CAM++",
    paper="Chattopadhay et al.: Grad-CAM++, 2018 (arXiv:1710.11063), eq. 10 and 19",
    reading="Like Grad-CAM, but several objects of the class are all marked.",
    cost=2,
)
def grad_cam_plus_plus(
    model: Model, images: Float[Tensor, "n 3 h w"], target: Target = PREDICTED, layer: Layer = None
) -> Heatmap:
    """A layer's maps weighted by the positive gradients, each position with its own share.

    L = ReLU(Σ_k w_k A_k), w_k = Σ_ij α_k(i, j) ReLU(g_k(i, j)) with g = ∂S/∂A and
    α_k(i, j) = g_k² / (2 g_k² + g_k³ Σ_ab A_k(a, b)), zero where the denominator is zero.

    Departs from the paper, which differentiates exp(S), by the positive factor exp(S) of the whole
    map, as it overflows. Raises what `grad_cam` raises.
    """
    maps, gradient, _ = layer_gradient(model, images, target, layer)
    below = 2 + gradient * maps.sum((2, 3), keepdim=True)  # over g², which would underflow
    share = torch.where((gradient != 0) & (below != 0), 1 / torch.where(below != 0, below, 1), 0)
    weights = (share * gradient.relu()).sum((2, 3), keepdim=True)
    heat = (weights * maps).sum(1, keepdim=True).relu()
    return Heatmap(heat, images, signed=False, overlay=True)
