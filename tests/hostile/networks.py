"""Networks that change themselves, hold no usable weights, or give what is no usable number."""

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import nets

MID = "mid"  # the layer that is put between the pool and the second convolution


class Giving(nn.Module):
    """A layer that is a function."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


class Beside(nn.Module):
    """Calls a layer whose result nothing reads."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        self.layer(x)
        return x


def around(*, mid: nn.Module | None = None, end: nn.Module | None = None) -> nn.Module:
    """The plain net with a module before its second convolution, or behind its scores."""
    modules: dict[str, nn.Module] = {}
    for name, module in nets.Plain().named_children():
        if name == "conv2" and mid is not None:
            modules[MID] = mid
        modules[name] = module
    if end is not None:
        modules["end"] = end
    return nets.seeded(nets.Chain(**modules))


# --- finite weights, and results that are not


def spoiled(number: float, x: Tensor) -> Tensor:
    """With the number added at one position of one channel."""
    x = x.clone()
    x[:, 0, 0, 0] += number
    return x


NOT_FINITE: dict[str, Callable[[], nn.Module]] = {
    "NaN": lambda: around(mid=Giving(lambda x: x + torch.nan)),
    "infinity": lambda: around(mid=Giving(lambda x: x + torch.inf)),
    "NaN in one unit": lambda: around(mid=Giving(partial(spoiled, torch.nan))),
}


# --- forwards that change their network


class Edits(nn.Module):
    """A convolution that is changed before it is applied."""

    def __init__(self, *edits: Callable[[nn.Conv2d], object]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.conv.register_buffer("seen", torch.zeros(1))
        self.conv.table = torch.zeros(3)  # no buffer
        self.conv.calls = 0
        self.edits = edits

    def forward(self, x: Tensor) -> Tensor:
        for edit in self.edits:
            edit(self.conv)
        return self.conv(x) * (1 + self.conv.seen)


def add_in_place(conv: nn.Conv2d) -> None:
    with torch.no_grad():
        conv.weight.add_(1)


def swap_data(conv: nn.Conv2d) -> None:
    conv.weight.data = conv.weight.data * 0.9


def new_parameter(conv: nn.Conv2d) -> None:
    conv.weight = nn.Parameter(conv.weight.detach() * 0.9)


def delete(conv: nn.Conv2d) -> None:
    del conv.bias
    conv.bias = None


def count(conv: nn.Conv2d) -> None:
    conv.calls += 1


EDITS: dict[str, Callable[[nn.Conv2d], object]] = {
    "in place": add_in_place,
    "through data": lambda conv: conv.weight.data.mul_(0.9),
    "other data": swap_data,
    "a new parameter": new_parameter,
    "a parameter deleted": delete,
    "a buffer in place": lambda conv: conv.seen.add_(1),
    "a new buffer": lambda conv: conv.register_buffer("more", torch.ones(1), persistent=False),
    "a new module": lambda conv: conv.add_module("inner", nn.ReLU()),
    "a new hook": lambda conv: conv.register_forward_hook(lambda *_: None),
    "a counter": count,
    "a tensor that is no buffer": lambda conv: conv.table.add_(1),
    "training mode": lambda conv: conv.train(),
    "trainable or frozen": lambda conv: conv.requires_grad_(not conv.weight.requires_grad),
    "no gradients": lambda conv: conv.zero_grad(),
}


def editing(*kinds: str) -> nn.Module:
    """A network in training mode, with gradients, whose forward makes these edits; by default all of them."""
    edits = [EDITS[kind] for kind in kinds or EDITS]
    net = around(mid=Edits(*edits)).train()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    return net


# --- weights that are computed from others before every forward


def old_weight_norm(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings(action="ignore"):  # deprecated, and in use
        return weight_norm(module)


NORMS: dict[str, Callable[[nn.Module], object]] = {
    "spectral norm": parametrizations.spectral_norm,
    "weight norm": parametrizations.weight_norm,
    "old spectral norm": spectral_norm,
    "old weight norm": old_weight_norm,
    "pruning": lambda module: prune.l1_unstructured(module, "weight", 0.3),
}


def normed(kind: str) -> nn.Module:
    """The plain net in training mode, all of whose weights are computed in this way."""
    net = nets.plain()
    for module in (net.conv1, net.conv2, net.fc):
        NORMS[kind](module)
    return net.double().train()


# --- no numbers to work with, or numbers of another kind


class Bare(nn.Module):
    """No layers, and no weights."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x.relu(), 2).flatten(1)[:, :5]  # (n, 3, h, w) -> (n, 5)


def weightless() -> nn.Module:
    return nets.chain(relu=nn.ReLU(), pool=nn.MaxPool2d(2), mean=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)).eval()


class Stubbed(nn.Module):
    """The plain net between the borders of what is quantised."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = quantization.QuantStub(), quantization.DeQuantStub()
        self.plain = nets.plain(dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.plain(self.enter(x)))


def quantised(bias: float = 0.0) -> nn.Module:
    """Weights and activations of eight bits; with something added to the last layer's bias."""
    with warnings.catch_warnings(action="ignore"):  # deprecated, and in use
        net = Stubbed().eval()
        net.plain.fc.bias.data += bias
        net.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
        quantization.prepare(net, inplace=True)
        net(nets.images(2, dtype=torch.float32))
        return quantization.convert(net)


def quantised_weights() -> nn.Module:
    """Linear layers of eight bits, activations of single precision."""
    with warnings.catch_warnings(action="ignore"):
        return quantization.quantize_dynamic(nets.plain(dtype=torch.float32), {nn.Linear}, torch.qint8)


def eight_bits(x: Tensor) -> Tensor:
    with warnings.catch_warnings(action="ignore"):
        return torch.quantize_per_tensor(x.detach().float(), 0.1, 0, torch.qint8)


ODD: dict[str, Callable[[Tensor], object]] = {
    "complex numbers": lambda x: torch.complex(x, x),
    "a sparse tensor": lambda x: x.to_sparse(),
    "a tensor without numbers": lambda x: x.to("meta"),
    "quantised numbers": eight_bits,
    "whole numbers": lambda x: x.round().long(),
    "true and false": lambda x: x > 0,
    "a text": lambda x: "text",
    "nothing": lambda x: None,
    "an empty tensor": lambda x: x[..., :0],
    "one number": lambda x: x.sum(),
    "one axis more": lambda x: x[:, None],
    "one axis": lambda x: x.flatten(),
}

STRANGE: dict[str, Callable[[], nn.Module]] = {
    "lazy": lazy,
    "on the meta device": lambda: nets.plain().to("meta"),
    "quantised": quantised,
    "quantised weights": quantised_weights,
    "no parameters": weightless,
    "no layers": Bare,
    "no operation": nn.Sequential,
    "data parallel": lambda: nn.DataParallel(nets.plain()),
    "complex numbers inside": lambda: around(
        mid=nn.Sequential(Giving(torch.fft.rfft2), Giving(torch.fft.irfft2))
    ),
    "a sparse tensor inside": lambda: around(
        mid=nn.Sequential(Giving(lambda x: x.to_sparse()), Giving(lambda x: x.to_dense()))
    ),
    "a tensor without numbers inside": lambda: around(mid=Giving(lambda x: x.to("meta"))),
    **{f"{what} at the end": partial(around, end=Giving(give)) for what, give in ODD.items()},
    **{f"{what} beside": partial(around, mid=Beside(Giving(give))) for what, give in ODD.items()},
}
