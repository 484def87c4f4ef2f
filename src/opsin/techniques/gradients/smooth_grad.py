from typing import Annotated

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
    title="SmoothGrad",
    paper="Smilkov et al.: SmoothGrad: removing noise by adding noise, 2017 (arXiv:1706.03825)",
    reading="The gradient with its flicker averaged out: structure that stays is what the score rests on.",
    cost=151,
    expensive=True,
)
def smooth_grad(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    target: Target = PREDICTED,
    samples: Annotated[int, Arg("number of noisy copies of each image", least=1)] = 50,
    noise: Annotated[
        float, Arg("standard deviation of the noise, as a share of the image's range", least=0, most=10)
    ] = 0.15,
    seed: Annotated[int, Arg("random seed of the noise", least=0, most=2**63 - 1)] = 0,
) -> Heatmap:
    """The gradient of the score averaged over copies of the image with Gaussian noise.

    M = 1/n Σ_k ∂S/∂x (x + N_k), N_k ~ N(0, σ²), σ = noise · (max x - min x) of each image. Signed,
    score per full range of a pixel. The k-th noise is the same for every image of a batch, so that a
    batch gives what single images give. The predicted class is the one of the image without noise.
    """
    target = pinned(target, model.run(images, target.layers))
    spread = images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True)
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros_like(images)
    for _ in steps(range(samples), samples, "smooth_grad"):
        normal = torch.randn(images.shape[1:], generator=generator, dtype=images.dtype).to(images)
        total += image_gradient(model, images + noise * spread * normal, target)
    return Heatmap(total / samples, images, signed=True, overlay=False, summed=True)
