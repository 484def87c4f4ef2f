from jaxtyping import Float
from torch import Tensor

from opsin.gradients.derivatives import image_gradient
from opsin.network.model import Model
from opsin.objectives.units import PREDICTED
from opsin.registry.kinds import Target
from opsin.registry.technique import technique
from opsin.results.heatmap import Heatmap


@technique(
    title="Saliency map",
    paper="Simonyan, Vedaldi, Zisserman: Deep Inside Convolutional Networks, 2013 (arXiv:1312.6034), eq. 3-5",
    reading="Bright pixels are those whose change would change the score most, in whichever direction.",
    cost=3,
)
def saliency(model: Model, images: Float[Tensor, "n 3 h w"], target: Target = PREDICTED) -> Heatmap:
    """Gradient of the score with respect to the image, its largest size over the colour channels.

    M(i, j) = max_c |∂S/∂x(c, i, j)|, with S the target's score before the softmax and x the image in
    [0, 1]: the unit is score per full range of a pixel. The signed gradient is `extras["gradient"]`.

    Departs from the paper in nothing but the unit: the paper's pixels are 0 to 255.
    """
    gradient = image_gradient(model, images, target)
    magnitude = gradient.abs().amax(1, keepdim=True)
    return Heatmap(magnitude, images, signed=False, overlay=False, extras={"gradient": gradient})
