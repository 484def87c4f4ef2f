"""The numbers in what a layer or a network returns."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from opsin.base.errors import NetworkError


def tensor_in(output: Any) -> Tensor | None:
    """The main tensor of a layer's or network's result: itself, its `.logits`, or its first tensor."""
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    return next((leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)), None)


def replaced(output: Any, old: Tensor, new: Tensor) -> Any:
    """The result with one of its tensors replaced."""
    leaves, spec = tree_flatten(output)
    return tree_unflatten([new if leaf is old else leaf for leaf in leaves], spec)


def numbers(output: Any, giver: str) -> Tensor:
    """`tensor_in(output)`, as floating-point numbers.

    Raises `NetworkError` if there is no tensor, or its numbers cannot be read.
    """
    value = tensor_in(output)
    if value is None:
        raise NetworkError(f"{giver} gives no tensor but {type(output).__name__}")
    if fault := unreadable(value):
        raise NetworkError(f"{giver} gives {fault}; only dense tensors of real numbers can be shown")
    return value if value.is_floating_point() else value.to(torch.get_default_dtype())


def unreadable(value: Tensor) -> str:
    """Why a tensor's numbers cannot be read; empty if they can."""
    if value.is_meta:
        return "a tensor on the meta device, which holds no numbers"
    if value.is_quantized:
        return f"quantised numbers ({value.dtype})"
    if value.layout is not torch.strided:
        return f"a sparse tensor ({value.layout})"
    if value.is_complex():
        return f"complex numbers ({value.dtype})"
    return "" if value.numel() else f"an empty tensor, {tuple(value.shape)}"


def version(value: Tensor) -> int:
    """How often a tensor has been changed in place; 0 for one of inference mode, where nobody counts."""
    return 0 if value.is_inference() else value._version
