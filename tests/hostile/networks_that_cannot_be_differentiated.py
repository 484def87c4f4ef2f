"""Networks that run, and that torch cannot differentiate."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import nets


class Changed(nn.Module):
    """The plain net, with `change` between its first rectifier and its pooling."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change
        self.parts = nets.Plain()

    def forward(self, x: Tensor) -> Tensor:
        first, rest = list(self.parts.children())[:2], list(self.parts.children())[2:]
        return nn.Sequential(*rest)(self.change(nn.Sequential(*first)(x)))


def _two_views(x: Tensor) -> Tensor:
    x = x - 1
    for half in (x[:, :2], x[:, 2:]):
        F.relu(half, inplace=True)
    return x


def _views_of_a_split(x: Tensor) -> Tensor:
    return torch.cat([F.relu(half, inplace=True) for half in (x - 1).chunk(2, 1)], 1)


class Reentrant(nn.Module):
    """Checkpoints in a way that only goes with `backward()`."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(lambda x: (x - 1).relu(), x, use_reentrant=True)


def _changed_afterwards(x: Tensor) -> Tensor:
    y = torch.sigmoid(x)
    y.mul_(2)
    return y


def _changed_behind_a_maximum(x: Tensor) -> Tensor:
    twice = 2 * x
    greater = torch.maximum(x, twice)
    twice.add_(1)
    return greater + twice


class Squared(Function):
    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(context, signal: Tensor) -> Tensor:
        (x,) = context.saved_tensors
        return 2 * x * signal


def _changed_behind_a_custom_function(x: Tensor) -> Tensor:
    x = 1 * x
    y = Squared.apply(x)
    x.add_(1)
    return y


class OneWay(Function):
    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        return x * x


class Misshapen(Function):
    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context, signal: Tensor) -> Tensor:
        return signal[..., :-1]


# Each with some of the words that torch says.
UNDIFFERENTIABLE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a rectifier in place on two views": (_two_views, "inplace operation"),
    "a rectifier in place on the views of a split": (_views_of_a_split, "modified inplace"),
    "reentrant checkpointing": (Reentrant(), "use_reentrant=False"),
    "a saved tensor changed in place": (_changed_afterwards, "inplace operation"),
    "a maximum's saved tensor changed in place": (_changed_behind_a_maximum, "inplace operation"),
    "a custom function's saved tensor changed in place": (
        _changed_behind_a_custom_function,
        "inplace operation",
    ),
    "a custom function without a backward": (OneWay.apply, "backward"),
    "a custom function with a gradient of another shape": (Misshapen.apply, "invalid gradient"),
}


def undifferentiable(name: str) -> nn.Module:
    return nets.seeded(Changed(UNDIFFERENTIABLE[name][0]))


class Failing(Function):
    """Raises in the backward what its network is told to."""

    @staticmethod
    def forward(context, x: Tensor, error: BaseException) -> Tensor:
        context.error = error
        return x.clone()

    @staticmethod
    def backward(context, _signal: Tensor) -> tuple[Tensor, None]:
        raise context.error


def failing(error: BaseException) -> nn.Module:
    """The plain net with a custom function that raises `error` in the backward."""
    return nets.seeded(Changed(lambda x: Failing.apply(x, error)))


def without_memory() -> nn.Module:
    """The plain net, whose backward needs more memory than an address can name."""
    return nets.seeded(Changed(lambda x: x + 0 * x.flatten()[:1].expand(2**46)[0]))
