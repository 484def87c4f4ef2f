"""Networks that change themselves, hold no usable weights, or give what is no usable number."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import nets


def around(mid: nn.Module | None = None, end: nn.Module | None = None, **settings: Any) -> nn.Module:
    """The plain net with a module before its second convolution, and one behind its scores."""
    plain = nets.Plain()
    parts = dict(plain.named_children())
    before = {name: parts.pop(name) for name in ("conv1", "relu1", "pool")}
    added = {} if mid is None else {"mid": mid}
    behind = {} if end is None else {"end": end}
    return nets.seeded(nets.Chain(**before, **added, **parts, **behind), **settings)


# --- networks of finite weights that give what is not finite


class Adding(nn.Module):
    """Adds a number that is not finite, at one position of one channel or everywhere."""

    def __init__(self, number: float, *, everywhere: bool = True) -> None:
        super().__init__()
        self.number, self.everywhere = number, everywhere

    def forward(self, x: Tensor) -> Tensor:
        if self.everywhere:
            return x + self.number
        spoiled = x.clone()
        spoiled[:, 0, 0, 0] += self.number
        return spoiled


NOT_FINITE: dict[str, Callable[[], nn.Module]] = {
    "NaN": lambda: around(Adding(torch.nan)),
    "infinity": lambda: around(Adding(torch.inf)),
    "NaN in one unit": lambda: around(Adding(torch.nan, everywhere=False)),
}


# --- networks that change themselves in a forward


class Edits(nn.Module):
    """A convolution that does something to itself before it is applied."""

    def __init__(self, edit: Callable[[nn.Conv2d], object]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.edit = edit

    def forward(self, x: Tensor) -> Tensor:
        self.edit(self.conv)
        return self.conv(x)


def _in_place(conv: nn.Conv2d) -> None:
    with torch.no_grad():
        conv.weight.add_(1)


def _counts(conv: nn.Conv2d) -> None:
    conv.calls = getattr(conv, "calls", 0) + 1


def _table(conv: nn.Conv2d) -> None:
    """In place, in a tensor that is neither a parameter nor a buffer."""
    conv.kept_table.add_(1)


def _edits(edit: Callable[[nn.Conv2d], object]) -> nn.Module:
    net = around(Edits(edit))
    net.mid.conv.kept_table = torch.zeros(3)
    return net


def _swaps_data(conv: nn.Conv2d) -> None:
    conv.weight.data = conv.weight.data * 0.9


EDITING: dict[str, Callable[[], nn.Module]] = {
    "in place": lambda: _edits(_in_place),
    "through data": lambda: _edits(lambda conv: conv.weight.data.mul_(0.9)),
    "a new tensor as data": lambda: _edits(_swaps_data),
    "a new parameter": lambda: _edits(
        lambda conv: setattr(conv, "weight", nn.Parameter(conv.weight.detach() * 0.9))
    ),
    "a parameter deleted": lambda: _edits(lambda conv: setattr(conv, "bias", None)),
    "a buffer added": lambda: _edits(lambda conv: conv.register_buffer("seen", torch.ones(1))),
    "a module added": lambda: _edits(lambda conv: conv.add_module("inner", nn.ReLU())),
    "a hook added": lambda: _edits(lambda conv: conv.register_forward_hook(lambda *_: None)),
    "a counter": lambda: _edits(_counts),
    "a tensor that is no buffer": lambda: _edits(_table),
    "training mode": lambda: _edits(lambda conv: conv.train()),
    "trainable weights": lambda: _edits(lambda conv: conv.requires_grad_(not conv.weight.requires_grad)),
    "gradients": lambda: _edits(lambda conv: conv.zero_grad()),
}


# --- networks whose weights are computed anew in every forward


def _renormed(norm: Callable[[nn.Module], object]) -> nn.Module:
    net = nets.plain()
    for module in (net.conv1, net.conv2, net.fc):
        norm(module)
    return net.double().train()


RENORMED: dict[str, Callable[[], nn.Module]] = {
    "spectral norm": lambda: _renormed(spectral_norm),
    "weight norm": lambda: _renormed(weight_norm),
    "spectral norm by a hook": lambda: _renormed(old_spectral_norm),
    "weight norm by a hook": lambda: _renormed(_old_weight_norm),
    "pruned": lambda: _renormed(lambda module: prune.l1_unstructured(module, "weight", 0.3)),
}


def _old_weight_norm(module: nn.Module) -> None:
    with warnings.catch_warnings(action="ignore"):
        old_weight_norm(module)


# --- networks without numbers to work with, or with numbers of another kind


class Twice(nn.Module):
    """Gives something beside the maps that it passes on, which no later layer reads."""

    def __init__(self, aside: nn.Module) -> None:
        super().__init__()
        self.aside = aside

    def forward(self, x: Tensor) -> Tensor:
        self.aside(x)
        return x


class Giving(nn.Module):
    """A layer that is a function."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


class Bare(nn.Module):
    """No weights at all: the scores are means of quadrants."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x.relu(), 2).flatten(1)[:, :5]


def _on_meta() -> nn.Module:
    return nets.plain().to("meta")


def _lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)).eval()


class Stubbed(nn.Module):
    """The plain net between the borders of what is quantised."""

    def __init__(self) -> None:
        super().__init__()
        from torch.ao.quantization import DeQuantStub, QuantStub

        self.quantise, self.plain, self.back = QuantStub(), nets.plain(dtype=torch.float32), DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.plain(self.quantise(x)))


def quantised() -> nn.Module:
    """Weights and activations of eight bits."""
    from torch.ao import quantization

    with warnings.catch_warnings(action="ignore"):  # deprecated, and in use
        net = Stubbed().eval()
        net.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
        quantization.prepare(net, inplace=True)
        net(nets.images(2, dtype=torch.float32))
        return quantization.convert(net)


def quantised_weights() -> nn.Module:
    """Linear layers of eight bits, activations of single precision."""
    from torch.ao import quantization

    with warnings.catch_warnings(action="ignore"):
        return quantization.quantize_dynamic(nets.plain(dtype=torch.float32), {nn.Linear}, torch.qint8)


def _eight_bits(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8)


ODD: dict[str, Callable[[Tensor], Any]] = {
    "complex": lambda x: torch.complex(x, x),
    "sparse": lambda x: x.to_sparse(),
    "meta": lambda x: x.to("meta"),
    "quantised": _eight_bits,
    "whole": lambda x: x.round().long(),
    "true or false": lambda x: x > 0,
    "text": lambda x: "text",
    "nothing": lambda x: None,
    "empty": lambda x: x[..., :0],
    "a number": lambda x: x.sum(),
    "one more axis": lambda x: x[:, None],
    "one axis": lambda x: x.flatten(),
}

STRANGE: dict[str, Callable[[], nn.Module]] = {
    "lazy": _lazy,
    "meta": _on_meta,
    "quantised": quantised,
    "quantised weights": quantised_weights,
    "no parameters": Bare,
    "no parameters in layers": lambda: nets.chain(
        relu=nn.ReLU(), pool=nn.MaxPool2d(2), mean=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()
    ),
    "nothing at all": nn.Sequential,
    "data parallel": lambda: nn.DataParallel(nets.plain()),
    "complex inside": lambda: around(nn.Sequential(Giving(torch.fft.rfft2), Giving(torch.fft.irfft2))),
    "sparse inside": lambda: around(nn.Sequential(Giving(lambda x: x.to_sparse()), Giving(lambda x: x.to_dense()))),
    "meta inside": lambda: around(Giving(lambda x: x.to("meta"))),
    **{f"{kind} output": lambda give=give: around(end=Giving(give)) for kind, give in ODD.items()},
    **{f"{kind} beside": lambda give=give: around(Twice(Giving(give))) for kind, give in ODD.items()},
}
