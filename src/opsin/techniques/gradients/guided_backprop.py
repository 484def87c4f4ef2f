from jaxtyping import Float
from torch import Tensor

from opsin.gradients.derivatives import image_gradient
from opsin.gradients.rules import guided
from opsin.network.model import Model
from opsin.objectives.units import PREDICTED
from opsin.registry.kinds import Target
from opsin.registry.technique import technique
from opsin.results.heatmap import Heatmap


@technique(
    title="Guided backprop",
    paper="Springenberg et al.: Striving for Simplicity: The All Convolutional Net, 2015 (arXiv:1412.6806)",
    reading="The details that excite the target: sharp, but hardly specific to it. Compare two targets.",
    cost=3,
)
def guided_backprop(model: Model, images: Float[Tensor, "n 3 h w"], target: Target = PREDICTED) -> Heatmap:
    """Gradient of the score with negative signals cut at every rectifier on the way back.

    R_in = 1[a > 0] · 1[R_out > 0] · R_out at each rectifier with input a and incoming signal R_out;
    everything else passes back its own derivative. Signed, score per full range of a pixel.

    Rectifiers of every spelling are found (see `opsin.gradients.rules`); smooth activations keep their
    derivative and are named in the record. Raises `NetworkError` where there is no rectifier.
    """
    return Heatmap(image_gradient(model, images, target, guided), images, signed=True, overlay=False)
