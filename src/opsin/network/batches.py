"""Batch sizes."""

from collections.abc import Iterator
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.network.model import Model

# Forward passes without a graph: on CPUs, larger batches fall out of the cache (benchmarks/attribution.py
# measures 4 to 64); on accelerators they only have to fit.
CPU_BATCH = 8
MAX_BATCH = 64
# With a graph, every activation stays alive; on CPUs 2 to 8 images at once take the same time (measured on
# two networks), so memory decides.
CPU_GRADIENT_BATCH = 4
BUSY_LAYERS = 4  # at most this many of the largest activations are alive at once in a forward
MEMORY_SHARE = 0.5


def forward_batch(model: Model, images: Float[Tensor, "n 3 h w"]) -> int:
    """The batch size for images of this size on the model's device."""
    if model.device.type != "cuda":
        return CPU_BATCH
    return _fitting(model, images, BUSY_LAYERS * max(prod(call.shape) for call in model.calls.values()))


def gradient_batch(model: Model, images: Float[Tensor, "n 3 h w"]) -> int:
    """The batch size for forward and backward passes on images of this size on the model's device."""
    if model.device.type != "cuda":
        return CPU_GRADIENT_BATCH
    return _fitting(model, images, sum(prod(call.shape) for call in model.calls.values()))


def _fitting(model: Model, images: Float[Tensor, "n 3 h w"], units: int) -> int:
    """How many images fit into the free memory, with so many units alive for one of the model's size."""
    scale = prod(images.shape[-2:]) / prod(model.size)
    free = torch.cuda.mem_get_info(model.device)[0] * MEMORY_SHARE
    return int(min(MAX_BATCH, max(1, free // (units * scale * model.dtype.itemsize))))


def chunks(total: int, size: int) -> Iterator[slice]:
    """Slices that cover `range(total)`, each at most `size` long."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def pooled(model: Model, images: Float[Tensor, "n 3 h w"], layer: str) -> Float[Tensor, "n c"]:
    """A layer's activations of many images, averaged over positions."""
    parts = chunks(len(images), forward_batch(model, images))
    return torch.cat([model.run(images[part], (layer,)).pooled(layer).float().cpu() for part in parts])
