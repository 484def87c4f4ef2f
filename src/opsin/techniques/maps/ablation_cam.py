import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.job import steps
from opsin.network.batches import chunks, forward_batch
from opsin.network.model import Model
from opsin.objectives.units import PREDICTED
from opsin.registry.kinds import Layer, Target
from opsin.registry.technique import technique
from opsin.results.heatmap import Heatmap


@technique(
    title="Ablation-CAM",
    paper="Desai, Ramaswamy: Ablation-CAM, 2020 (WACV, doi:10.1109/WACV45572.2020.9093360), eq. 6-8",
    reading="Where the network looked for the target: regions whose channels the score falls without.",
    cost=1300,
    expensive=True,
    per_channel=True,
)
def ablation_cam(
    model: Model, images: Float[Tensor, "n 3 h w"], target: Target = PREDICTED, layer: Layer = None
) -> Heatmap:
    """A layer's maps, each weighted by the share of the score that is lost without it.

    L = ReLU(Σ_k w_k A_k), w_k = (S - S_k) / |S|, S_k the score with map A_k set to zero: one forward pass
    per channel. `extras["weights"]` (n, c) are the w_k.

    Departs from the paper, which divides by S: where S is negative, that would turn every weight around.
    """
    run = model.run(images, (*target.layers, layer))
    maps, scores = run.maps(layer), target.score(run)
    ablated = maps.new_empty(maps.shape[:2])  # (n, c)
    size = forward_batch(model, images)
    batches = [(i, part) for i in range(len(images)) for part in chunks(maps.shape[1], size)]
    for index, part in steps(batches, len(batches), "ablation_cam"):
        channels = torch.arange(maps.shape[1])[part]
        kept = 1 - torch.nn.functional.one_hot(channels, maps.shape[1]).to(maps)[:, :, None, None]
        same = images[index].expand(len(channels), -1, -1, -1)
        without = model.run(same, target.layers, replace={layer: kept.mul})
        ablated[index, part] = target.for_image(run, index).score(without).to(maps)
    lost = scores.to(maps)[:, None] - ablated
    weights = lost / scores.to(maps).abs().clamp(min=torch.finfo(maps.dtype).tiny)[:, None]
    heat = torch.einsum("nc,nchw->nhw", weights, maps)[:, None].relu()
    return Heatmap(heat, images, signed=False, overlay=True, extras={"weights": weights})
