from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.job import steps
from opsin.gradients.derivatives import image_gradient
from opsin.network.model import Model
from opsin.objectives.units import PREDICTED, pinned
from opsin.registry.kinds import Arg, Target
from opsin.registry.technique import technique
from opsin.results.heatmap import Heatmap


@technique(
    paper="Sundararajan, Taly, Yan: Axiomatic Attribution for Deep Networks, 2017 (arXiv:1703.01365), eq. 1",
    reading="Each pixel's share of the score's rise from a plain grey level to the photo.",
    cost=98,
)
def integrated_gradients(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    target: Target = PREDICTED,
    samples: Annotated[int, Arg("number of points on the path from the baseline", least=1, most=1000)] = 32,
    baseline: Annotated[float, Arg("grey level of the baseline", least=0, most=1)] = 0.0,
) -> Heatmap:
    """The gradient along the straight path from a baseline to the image, times their difference.

    IG = (x - x') · ∫₀¹ ∂S/∂x (x' + α (x - x')) dα, by Gauss-Legendre quadrature. Signed, in units of
    the score: the sum over pixels is S(x) - S(x') up to `extras["error"]`, (n,), which measures the
    quadrature. The predicted class is the one of the image itself.
    """
    start = torch.full_like(images, baseline)
    run = model.run(images, target.layers)
    target = pinned(target, run)
    nodes, weights = np.polynomial.legendre.leggauss(samples)  # on [-1, 1]
    total = torch.zeros_like(images)
    path = list(zip((nodes + 1) / 2, weights / 2, strict=True))
    for share, weight in steps(path, samples, "integrated_gradients"):
        total += weight * image_gradient(model, start + share * (images - start), target)
    values = (images - start) * total
    rise = target.score(run) - target.score(model.run(start, target.layers))
    error = values.sum((1, 2, 3)) - rise
    return Heatmap(values, images, signed=True, overlay=False, summed=True, extras={"error": error})
