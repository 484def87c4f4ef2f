"""The second way to a rectifier's rule: not in the graph but in the forward, where rectifiers are called."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Rectified(torch.autograd.Function):
    """A rectifier min(max(x, slope·x), high) with a backward pass that follows the rule of the day."""

    @staticmethod
    def forward(context: Any, x: Tensor, slope: float, high: float, watch: "Rectifiers") -> Tensor:
        context.save_for_backward((x > 0) & (x < high))
        context.slope, context.watch = slope, watch
        return torch.where(x > 0, x.clamp(max=high), slope * x)

    @staticmethod
    def backward(context: Any, signal: Tensor) -> tuple[Tensor, None, None, None]:
        (passes,) = context.saved_tensors
        context.watch.passed += 1
        if context.watch.rule != "plain":
            signal = signal.clamp(min=0)
        if context.watch.rule != "deconvnet":
            signal = torch.where(passes, signal, context.slope * signal)
        return signal, None, None, None


Spelling = Callable[..., tuple[float, float, bool] | None]  # -> slope below zero, upper bound, in place


def _relu(_x: Tensor, inplace: bool = False) -> tuple[float, float, bool]:
    return 0.0, math.inf, inplace


def _relu6(_x: Tensor, inplace: bool = False) -> tuple[float, float, bool]:
    return 0.0, 6.0, inplace


def _hardtanh(
    _x: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> tuple[float, float, bool] | None:
    return (0.0, max_val, inplace) if min_val == 0 else None


def _clamp(_x: Tensor, min: Any = None, max: Any = None) -> tuple[float, float, bool] | None:
    if isinstance(min, Tensor) or isinstance(max, Tensor) or min != 0:
        return None
    return 0.0, math.inf if max is None else max, False


def _threshold(
    _x: Tensor, threshold: float, value: float, inplace: bool = False
) -> tuple[float, float, bool] | None:
    return (0.0, math.inf, inplace) if threshold == value == 0 else None


def _leaky_relu(_x: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> tuple[float, float, bool]:
    return negative_slope, math.inf, inplace


SPELLINGS: dict[Any, Spelling] = {
    **dict.fromkeys([F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_], _relu),
    F.relu6: _relu6,
    **dict.fromkeys([F.hardtanh, F.hardtanh_], _hardtanh),
    **dict.fromkeys([torch.clamp, torch.clamp_, torch.clip, torch.clip_], _clamp),
    **dict.fromkeys([Tensor.clamp, Tensor.clamp_, Tensor.clip, Tensor.clip_], _clamp),
    **dict.fromkeys([torch.clamp_min, torch.clamp_min_, Tensor.clamp_min, Tensor.clamp_min_], _clamp),
    **dict.fromkeys([F.threshold, F.threshold_, torch.threshold, torch.threshold_], _threshold),
    **dict.fromkeys([F.leaky_relu, F.leaky_relu_], _leaky_relu),
}


class Rectifiers(TorchFunctionMode):
    """Watches a forward and puts `Rectified` in the place of every rectifier that is called in it.

    `passed` counts those that a backward pass went through: the ones between the target and the image.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rule = "plain"
        self.passed = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = SPELLINGS[function](*args, **kwargs) if function in SPELLINGS else None
        x = args[0] if args else None
        if found is None or not x.requires_grad:
            return function(*args, **kwargs)
        slope, high, inplace = found
        y = Rectified.apply(x, slope, high, self)
        return x.copy_(y) if inplace or function.__name__.endswith("_") else y
