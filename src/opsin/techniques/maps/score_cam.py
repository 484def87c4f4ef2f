import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from opsin.base.job import steps
from opsin.network.batches import chunks, forward_batch
from opsin.network.model import Model
from opsin.objectives.units import PREDICTED
from opsin.registry.kinds import Layer, Target
from opsin.registry.technique import technique
from opsin.results.heatmap import Heatmap


@technique(
    title="Score-CAM",
    paper="Wang et al.: Score-CAM, 2020 (arXiv:1910.01279)",
    reading="Where the network looked for the target, found without gradients, one region at a time.",
    cost=1300,
    expensive=True,
    per_channel=True,
)
def score_cam(
    model: Model, images: Float[Tensor, "n 3 h w"], target: Target = PREDICTED, layer: Layer = None
) -> Heatmap:
    """A layer's maps weighted by the score of the image seen through each map.

    L = ReLU(Σ_k α_k A_k), α = softmax over k of S(m + (x - m) ∘ H_k), H_k = A_k upsampled bilinearly
    and scaled to [0, 1] over its positions, m the model's mean colour (the paper masks the normalised
    image, to zero). A map that is constant shows nothing. One forward pass per channel.

    Subtracting the score of the baseline, as the paper does, drops out in the softmax.
    """
    run = model.run(images, (*target.layers, layer))
    maps = run.maps(layer)
    mean = images.new_tensor(model.mean).view(-1, 1, 1)
    size = forward_batch(model, images)
    batches = [(i, part) for i in range(len(images)) for part in chunks(maps.shape[1], size)]
    scores = maps.new_empty(maps.shape[:2])  # (n, c)
    for index, part in steps(batches, len(batches), "score_cam"):
        tiles = maps[index, part][:, None].to(images)  # (k, h, w) -> (k, 1, h, w)
        wide = interpolate(tiles, images.shape[-2:], mode="bilinear", align_corners=False)
        low, high = wide.amin((2, 3), keepdim=True), wide.amax((2, 3), keepdim=True)
        mask = torch.where(high > low, (wide - low) / (high - low).clamp(min=torch.finfo(wide.dtype).tiny), 0)
        seen = model.run(mean + (images[index] - mean) * mask, target.layers)
        scores[index, part] = target.for_image(run, index).score(seen)
    heat = torch.einsum("nc,nchw->nhw", scores.softmax(1), maps)[:, None].relu()
    return Heatmap(heat, images, signed=False, overlay=True)
