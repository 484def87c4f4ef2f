"""How far a forward stays from where its derivative jumps: kinks of rectifiers, ties of pools and of classes.

Two ways through one network (maps that lie otherwise, another instruction set, other batches) round
differently, and their gradients are equal to rounding only where both let the same units pass. A test that
compares them therefore takes images with a margin, which is measured on the machine that it runs on.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from oracle import SPELLINGS

# Shares of a layer's largest value, in float64. Rounding moves an activation by some 1e-15 of it; among a
# million of them the nearest to its kink is, by chance, about 1e-7 away.
MARGIN = 1e-10
ROUNDING = 1e-13  # what is put in for it; more than any machine's


def _from_the_kinks(function: Any) -> Callable[..., Iterator[Tensor]]:
    def distances(x: Tensor, *args: Any, **kwargs: Any) -> Iterator[Tensor]:
        rectifier = SPELLINGS[function](x, *args, **kwargs)
        if rectifier is not None:
            _, high, _ = rectifier
            yield x
            yield x - high

    return distances


def _from_zero(x: Tensor, *_args: Any, **_kwargs: Any) -> Iterator[Tensor]:
    yield x


def _from_three(x: Tensor, inplace: bool = False) -> Iterator[Tensor]:
    yield x + 3
    yield x - 3


def _between_two(x: Tensor, other: Any = None, **_kwargs: Any) -> Iterator[Tensor]:
    if isinstance(other, Tensor):
        yield x - other


def _between_the_best(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Iterator[Tensor]:
    """By how much the largest value of each window leads the second largest."""
    assert dilation in (1, (1, 1)), f"max pools with a dilation of {dilation} are not measured"
    pairs = [(v, v) if isinstance(v, int) else v for v in (kernel_size, stride or kernel_size, padding)]
    (rows, columns), (down, across), (top, left) = pairs
    bottom, right = (top + down - 1, left + across - 1) if ceil_mode else (top, left)
    padded = F.pad(x, (left, right, top, bottom), value=-math.inf)
    windows = padded.unfold(-2, rows, down).unfold(-2, columns, across)  # (..., h', w', rows, columns)
    best, second = windows.flatten(-2).topk(2).values.unbind(-1)
    yield best - second


DISTANCES: dict[Any, Callable[..., Iterator[Tensor]]] = {
    **{function: _from_the_kinks(function) for function in SPELLINGS},
    **dict.fromkeys([torch.prelu, F.rrelu], _from_zero),
    **dict.fromkeys([F.hardswish, F.hardsigmoid], _from_three),
    **dict.fromkeys([torch.maximum, torch.max, Tensor.max], _between_two),
    **dict.fromkeys([F.max_pool2d, F.max_pool2d_with_indices, torch.max_pool2d], _between_the_best),
}


# Functions that add up, in an order that is not the same everywhere.
SUMS = {
    *("conv2d", "linear", "matmul", "__matmul__", "bmm", "einsum", "scaled_dot_product_attention"),
    *("batch_norm", "layer_norm", "group_norm", "avg_pool2d", "adaptive_avg_pool2d", "mean", "sum"),
}


class Margin(NamedTuple):
    share: float  # of the layer's largest value
    where: str


class Margins(TorchFunctionMode):
    """Watches a forward, every sum in which is off by a rounding of its own, for the least margin above zero.

    So equal values that were computed (those of an even patch, say), which another machine might put in any
    order, are apart by next to nothing. What is then still exactly zero is so on every machine, and passed
    over: a dead unit is, and so are copies of one unit that a max pool handed on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.least = Margin(math.inf, "nowhere")
        self.calls: Counter[str] = Counter()
        self.generator = torch.Generator().manual_seed(0)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in DISTANCES:
            self.calls[function.__name__] += 1
            scale = max(float(value.abs().max()) for value in args if isinstance(value, Tensor))
            for distances in DISTANCES[function](*args, **kwargs):
                self._look(distances.abs() / scale, function.__name__)
        result = function(*args, **kwargs)
        if function.__name__ in SUMS and result.is_floating_point():
            noise = torch.randn(result.shape, generator=self.generator, dtype=torch.float64)
            result = (result * (1 + ROUNDING * noise)).to(result.dtype)
        return result

    def _look(self, shares: Tensor, name: str) -> None:
        assert shares.dtype is torch.float64, f"{name} was called on {shares.dtype}, not on torch.float64"
        apart = torch.where(shares > 0, shares, math.inf)
        unit = tuple(int(index) for index in torch.unravel_index(apart.argmin(), apart.shape))
        if float(apart[unit]) < self.least.share:
            self.least = Margin(float(apart[unit]), f"{name}, call {self.calls[name]}, unit {unit}")


def margin(forward: Callable[[Tensor], Tensor], images: Tensor) -> Margin:
    """The least margin between the images and their scores (n, classes), the two best classes included."""
    with torch.no_grad(), Margins() as watch:
        scores = forward(images.double())
    best, second = scores.topk(2).values.unbind(1)
    classes = float((best - second).min() / scores.abs().max())
    return min(watch.least, Margin(classes, "the two best classes"))


def clear_of_kinks(
    forward: Callable[[Tensor], Tensor],
    candidates: Iterable[Tensor],
    *,
    shown: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The first candidate that keeps the margin, in all the images that are `shown` of it to the network."""
    near = []
    for images in candidates:
        least = margin(forward, shown(images) if shown else images)
        if least.share > MARGIN:
            return images
        near.append(f"{least.share:.0e} at {least.where}")
    pytest.fail(f"gradients would hang on rounding: no candidate has a margin of {MARGIN}: {'; '.join(near)}")


def without_copies(network: nn.Module) -> nn.Module:
    """The network with means in place of its max pools of stride 1, as the blocks of GoogLeNet have.

    Their windows overlap, so that neighbours are copies of one unit; what the layers behind compute of these
    ties in the next such pool. The gradient is the same whichever wins, what a rule gives is not.
    """
    for module in list(network.modules()):
        for name, pool in module.named_children():
            if isinstance(pool, nn.MaxPool2d) and pool.stride == 1:
                setattr(module, name, nn.AvgPool2d(pool.kernel_size, 1, pool.padding, pool.ceil_mode))
    return network
