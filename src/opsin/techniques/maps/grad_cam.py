from typing import Annotated

from jaxtyping import Float
from torch import Tensor

from opsin.gradients.derivatives import layer_gradient
from opsin.gradients.maps import weighted_maps
from opsin.network.model import Model
from opsin.objectives.units import PREDICTED
from opsin.registry.kinds import Arg, Layer, Target
from opsin.registry.technique import technique
from opsin.results.heatmap import Heatmap


@technique(
    title="Grad-CAM",
    paper="Selvaraju et al.: Grad-CAM, 2017 (arXiv:1610.02391), eq. 1-2",
    reading="Where the network looked for the target, at the coarse resolution of its last maps.",
    cost=2,
)
def grad_cam(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    target: Target = PREDICTED,
    layer: Layer = None,
    relu: Annotated[bool, Arg("keep only evidence for the target (ReLU), as in the paper")] = True,
) -> Heatmap:
    """A layer's maps weighted by the mean gradient of the score with respect to each.

    L = ReLU(Σ_k α_k A_k), α_k = 1/(h·w) Σ_ij ∂S/∂A_k(i, j), at the layer's resolution h × w.

    The default layer is the last one with a spatial extent that the output depends on; of a channel or unit
    it is its own layer. Raises
    `NetworkError` on a layer without spatial extent, `InputError` on a target that does not depend
    on the layer.
    """
    maps, gradient, _ = layer_gradient(model, images, target, layer)
    weighted = weighted_maps(maps, gradient)
    return Heatmap(weighted.relu() if relu else weighted, images, signed=not relu, overlay=True)
