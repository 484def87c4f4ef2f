"""Rectifiers that the graph of a network does not show, or not as what they are."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import Function

import nets

Bend = Callable[[Tensor], Tensor]


class SavesInput(Function):
    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(context, signal: Tensor) -> Tensor:
        (x,) = context.saved_tensors
        return signal * (x > 0)


class SavesOutput(Function):
    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        y = x.clamp(min=0)
        context.save_for_backward(y)
        return y

    @staticmethod
    def backward(context, signal: Tensor) -> Tensor:
        (y,) = context.saved_tensors
        return signal * (y > 0)


class KeepsGate(Function):
    """Saves no tensor in autograd's own way, and has a setting beside its input."""

    @staticmethod
    def forward(context, x: Tensor, top: float) -> Tensor:
        context.gate = x > 0
        return (x * context.gate).clamp(max=top)

    @staticmethod
    def backward(context, signal: Tensor) -> tuple[Tensor, None]:
        return signal * context.gate, None


class InPlace(Function):
    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        context.mark_dirty(x)
        context.gate = x > 0
        return x.clamp_(min=0)

    @staticmethod
    def backward(context, signal: Tensor) -> Tensor:
        return signal * context.gate


class NewStyle(Function):
    """With a context that is set up behind the forward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def setup_context(context, inputs: tuple[Tensor], output: Tensor) -> None:
        context.save_for_backward(output)

    @staticmethod
    def backward(context, signal: Tensor) -> Tensor:
        (y,) = context.saved_tensors
        return signal * (y > 0)


class Clamp(SavesInput):
    """Goes by the name of one of torch's own operations."""


@torch.library.custom_op("opsin_tests::rectify", mutates_args=())
def operator(x: Tensor) -> Tensor:
    """A custom function that is registered with torch, as kernels of one's own are."""
    return x.clamp(min=0)


def _remember(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(output)


operator.register_autograd(SavesOutput.backward, setup_context=_remember)


class Swish(Function):
    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(context, signal: Tensor) -> Tensor:
        (x,) = context.saved_tensors
        gate = x.sigmoid()
        return signal * gate * (1 + x * (1 - gate))


class Leaky(Function):
    """Has two inputs with a derivative, as a rectifier whose slope is learnt."""

    @staticmethod
    def forward(context, x: Tensor, slope: Tensor) -> Tensor:
        context.save_for_backward(x, slope)
        return torch.where(x > 0, x, slope * x)

    @staticmethod
    def backward(context, signal: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = context.saved_tensors
        return torch.where(x > 0, signal, slope * signal), torch.where(x > 0, 0, x * signal)


class Same(Function):
    """Gives what it is given, as functions do that only count or scale a gradient."""

    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context, signal: Tensor) -> Tensor:
        return signal


class Unseen(Function):
    """Works on its input without any function of torch, as compiled kernels do."""

    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            context.gate = x > 0
            return x * context.gate

    @staticmethod
    def backward(context, signal: Tensor) -> Tensor:
        return signal * context.gate


# Custom functions whose output is relu(input), by the name that records give them.
CUSTOM: dict[str, Bend] = {
    "SavesInput": SavesInput.apply,
    "SavesOutput": SavesOutput.apply,
    "KeepsGate": lambda x: KeepsGate.apply(x, torch.inf),
    "InPlace": InPlace.apply,
    "NewStyle": NewStyle.apply,
    "Clamp": Clamp.apply,
    "GeneratedBackwardFor_opsin_tests_rectify_default": operator,
}

# Custom functions that are something else.
OTHERS: dict[str, Bend] = {
    "Swish": Swish.apply,
    "Leaky": lambda x: Leaky.apply(x, x.detach().abs().mean().clamp(max=0.1)),
    "Same": Same.apply,
}

# Custom functions that cannot be compared with relu.
UNDECIDED: dict[str, Bend] = {
    "Unseen": Unseen.apply,
    "VmappedNewStyle": torch.vmap(NewStyle.apply),
    "Same": lambda x: Same.apply(torch.complex(x, x)).real,
}

# What equals relu(x), written in torch's operations; with the operations that records name.
WRITTEN: dict[str, tuple[Bend, str]] = {
    "(x + |x|) / 2": (lambda x: (x + x.abs()) / 2, "Abs ×1"),
    "amax of a stack": (lambda x: torch.stack([x, torch.zeros_like(x)]).amax(0), "Amax ×1"),
    "amax along the last axis": (lambda x: torch.stack([torch.zeros_like(x), x], -1).amax(-1), "Amax ×1"),
    "max of a stack": (lambda x: torch.stack([x, torch.zeros_like(x)]).max(0).values, "Max ×1"),
    "amax of three": (lambda x: torch.stack([x, x - 1, torch.zeros_like(x)]).amax(0), "Amax ×1"),
    "amin of a stack": (lambda x: -torch.stack([-x, torch.zeros_like(x)]).amin(0), "Amin ×1"),
    "minimum": (lambda x: x - torch.minimum(x, torch.zeros_like(x)), "Minimum ×1"),
    "maximum of x and -x": (lambda x: (x + torch.maximum(x, -x)) / 2, "Maximum ×1"),
    "sorted stack": (lambda x: torch.stack([x, torch.zeros_like(x)]).sort(0).values[1], "Sort ×1"),
    "greatest of a stack": (lambda x: torch.stack([x, torch.zeros_like(x)]).topk(1, 0).values[0], "Topk ×1"),
    "cumulative maximum": (lambda x: torch.stack([torch.zeros_like(x), x]).cummax(0).values[1], "Cummax ×1"),
    "x times a sign": (lambda x: x * (1 + x.sign()) / 2, "Sign ×1"),
}


def before_a_relu(bend: Bend, **settings: object) -> nn.Module:
    """The plain net, with `bend` in the place of its first rectifier."""
    return nets.seeded(nets.Plain(lambda: bend, nn.ReLU), **settings)


def behind_a_relu(bend: Bend, **settings: object) -> nn.Module:
    """The plain net, with `bend` in the place of its second rectifier, behind which nothing is saved."""
    return nets.seeded(nets.Plain(nn.ReLU, lambda: bend), **settings)


def alone(bend: Bend, **settings: object) -> nn.Module:
    """The plain net, with `bend` in the place of both rectifiers."""
    return nets.seeded(nets.Plain(lambda: bend), **settings)


class Residual(nn.Module):
    """What bends is read by a sum and by a convolution, and once more in the classifier, twice in a row."""

    def __init__(self, bend: Bend) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.hidden = nn.Linear(4, 6)
        self.fc = nn.Linear(6, 5)
        self.bend = bend

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = self.bend(x - 1 + self.inner(x))
        x = self.bend(self.inner(x)) + x
        return self.fc(self.bend(self.bend(self.hidden(x.mean((2, 3))))))


def residual(bend: Bend, **settings: object) -> nn.Module:
    return nets.seeded(Residual(bend), **settings)
