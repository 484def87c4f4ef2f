"""The weights of a module, after any reparametrisation."""

import re
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from opsin.base.errors import NetworkError

QUANTISED = re.compile(r"torch\.ao\.nn\.(intrinsic\.)?quantized\b")  # Python modules of such layers
REWEIGHING = (SpectralNorm, WeightNorm, BasePruningMethod)  # hooks that set a weight before each forward


def weight_of(module: nn.Module, name: str) -> Tensor | None:
    """The weight (or bias) of this name as a forward would use it; `None` if there is none."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, REWEIGHING):
            hook(module, ())
    weight = getattr(module, name, None)
    if is_quantised(module) and callable(weight):
        weight = weight().dequantize()
    return weight.detach() if isinstance(weight, Tensor) else None


def is_quantised(module: nn.Module) -> bool:
    """Whether a layer computes with quantised numbers."""
    return bool(QUANTISED.match(type(module).__module__))


def refuse_gradient(module: nn.Module, given: tuple[Any, ...]) -> None:
    """A hook that raises `NetworkError` if a gradient would pass through a quantised layer."""
    if any(isinstance(value, Tensor) and value.requires_grad for value in given):
        raise NetworkError(
            f"no gradient passes through a quantised layer ({type(module).__name__}): load the network from "
            "before it was quantised, or use a technique without gradients (occlusion)"
        )
