from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from opsin.gradients.custom import CustomFunctions
from opsin.gradients.derivatives import derivative, maps_and_gradient
from opsin.gradients.maps import weighted_maps
from opsin.gradients.rules import applied, guided
from opsin.network.cut import check_graph
from opsin.network.model import Model
from opsin.objectives.units import PREDICTED
from opsin.registry.kinds import Layer, Target
from opsin.registry.technique import technique
from opsin.results.heatmap import Heatmap


@technique(
    title="Guided Grad-CAM",
    paper="Selvaraju et al.: Grad-CAM, 2017 (arXiv:1610.02391), section 3.2",
    reading="Guided backpropagation's detail where Grad-CAM says that the target is.",
    cost=3,
)
def guided_grad_cam(
    model: Model, images: Float[Tensor, "n 3 h w"], target: Target = PREDICTED, layer: Layer = None
) -> Heatmap:
    """Guided backpropagation times Grad-CAM, upsampled bilinearly to the image.

    G(c, i, j) = guided(c, i, j) · up(L)(i, j), from one forward: the plain gradient goes back to the
    layer, the guided one to the image. Signed.

    Raises what `grad_cam` and `guided_backprop` raise.
    """
    with CustomFunctions() as custom:
        run = model.run(images, (*target.layers, layer), start="image")
    check_graph(model, run, target.layers)
    scores = target.score(run)
    plain = derivative(scores, run[layer], target, again=True)
    heat = weighted_maps(*maps_and_gradient(run, layer, plain)).relu()
    with applied(guided, [run[name] for name in target.layers], custom):
        detail = derivative(scores, run["image"], target)
    wide = interpolate(heat.to(detail), images.shape[-2:], mode="bilinear", align_corners=False)
    return Heatmap(detail * wide, images, signed=True, overlay=False)
