"""Networks small enough to work out by hand, and every way to write a rectifier."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import opsin

torch.set_num_threads(1)  # handing a few channels to several threads takes longer than the sum itself

SIZE = 16
# With these weights every channel of the plain net fires at some places and not at others, some activations
# are above 6, and the first two photos are seen as different classes.
SEED = 128
LABELS = (
    "tabby, tabby cat",
    "tiger cat",
    "beagle",
    "goldfish, Carassius auratus",
    "tiger shark, Galeocerdo cuvieri",
)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)

# What makes a rectifier: a module class, or a function that gives a module or a function.
Make = Callable[[], Callable[[Tensor], Tensor]]


def model(net: nn.Module, **settings: Any) -> opsin.Model:
    """The network as a `Model` for photos of 16 x 16, where `settings` say nothing else.

    Its labels are `LABELS` if its last layer has as many outputs.
    """
    widths = [getattr(m, "out_features", getattr(m, "out_channels", None)) for m in net.modules()]
    last = next((width for width in reversed(widths) if width is not None), None)
    labels = LABELS if last == len(LABELS) else None
    return opsin.Model(net, **{"mean": MEAN, "std": STD, "size": SIZE, "labels": labels, **settings})


def images(
    n: int = 2, h: int = SIZE, w: int | None = None, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Noise photos (n, 3, h, w) in [0, 1]; the first k of n are what `images(k)` gives."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.rand(3, h, w or h, generator=generator, dtype=dtype) for _ in range(n)])


def _hooks(module: nn.Module) -> dict[str, list[int]]:
    return {
        key: sorted(map(id, value.values())) for key, value in vars(module).items() if key.endswith("_hooks")
    }


def state(net: nn.Module) -> dict[str, object]:
    """All that a technique might leave changed in a network; comparable."""
    parameters = dict(net.named_parameters())
    world = nn.modules.module
    return {
        "modules": [(name, id(module), type(module)) for name, module in net.named_modules()],
        "attributes": [{key: id(value) for key, value in vars(module).items()} for module in net.modules()],
        "tensors that are no buffers": [
            {key: value.tolist() for key, value in vars(module).items() if isinstance(value, Tensor)}
            for module in net.modules()
        ],
        "training": [module.training for module in net.modules()],
        "hooks": [_hooks(module) for module in net.modules()],
        "global hooks": [len(getattr(world, name)) for name in dir(world) if name.endswith("_hooks")],
        "parameters": [
            (name, id(p), p.requires_grad, p._version, p.data_ptr()) for name, p in parameters.items()
        ],
        "gradients": {name: p.grad if p.grad is None else p.grad.tolist() for name, p in parameters.items()},
        "buffers": [(name, id(b)) for name, b in net.named_buffers()],
        "values": {name: value.tolist() for name, value in net.state_dict().items()},
    }


def seeded(net: nn.Module, seed: int = SEED, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The network in evaluation mode, its weights drawn in their order: twins get the same ones."""
    generator = torch.Generator().manual_seed(seed)
    net.to(dtype).eval()
    with torch.no_grad():
        for module in net.modules():
            norm = isinstance(module, nn.BatchNorm2d | nn.LayerNorm)
            for name, weight in module.named_parameters(recurse=False):
                if isinstance(module, nn.PReLU):
                    continue
                drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
                weight.copy_(0.5 + drawn.abs() if norm and name == "weight" else 0.4 * drawn)
            if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
    return net


class Plain(nn.Module):
    """conv1, relu1, pool, conv2, relu2, mean, flat, fc: what `reference` works out by hand."""

    def __init__(self, rectifier: Make = nn.ReLU, second: Make | None = None, *, inputs: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, 4, 3, padding=1)
        self.relu1 = rectifier()
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.relu2 = (second or rectifier)()
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu1(self.conv1(x)))
        x = self.relu2(self.conv2(x))
        return self.fc(self.flat(self.mean(x)))


def plain(**settings: Any) -> nn.Module:
    """nn.ReLU modules, out of place."""
    return seeded(Plain(), **settings)


def in_place(**settings: Any) -> nn.Module:
    """The twin whose rectifiers overwrite what the convolutions gave."""
    return seeded(Plain(lambda: nn.ReLU(inplace=True)), **settings)


def functional(**settings: Any) -> nn.Module:
    """The twin whose rectifiers are no modules."""
    return seeded(Plain(lambda: F.relu), **settings)


def reused(**settings: Any) -> nn.Module:
    """The twin with one nn.ReLU called twice, as `relu1#1` and `relu1#2`."""
    one = nn.ReLU()
    return seeded(Plain(lambda: one), **settings)


TWINS = {"in place": in_place, "functional": functional, "reused": reused}


@dataclass(frozen=True)
class Spelling:
    """One way to write a rectifier, and its value and its slope at `a`, computed without PyTorch's own."""

    make: Make
    value: Callable[[Any], Any]
    slope: Callable[[Any], Any]


def _spelling(make: Make, below: float = 0.0, top: float = float("inf")) -> Spelling:
    """A rectifier with this slope below zero that saturates at `top`."""

    def value(a: Any) -> Any:
        return (a > 0) * a.clip(max=top) + below * (a <= 0) * a

    def slope(a: Any) -> Any:
        return 1.0 * ((a > 0) & (a < top)) + below * (a <= 0)

    return Spelling(make, value, slope)


def _zeros(x: Tensor) -> Tensor:
    return torch.zeros((), dtype=x.dtype)


SPELLINGS: dict[str, Spelling] = {
    "nn.ReLU": _spelling(nn.ReLU),
    "nn.ReLU in place": _spelling(lambda: nn.ReLU(inplace=True)),
    "F.relu": _spelling(lambda: F.relu),
    "F.relu in place": _spelling(lambda: lambda x: F.relu(x, inplace=True)),
    "torch.relu": _spelling(lambda: torch.relu),
    "torch.relu_": _spelling(lambda: torch.relu_),
    "Tensor.relu": _spelling(lambda: lambda x: x.relu()),
    "Tensor.relu_": _spelling(lambda: lambda x: x.relu_()),
    "nn.ReLU6": _spelling(nn.ReLU6, top=6),
    "nn.ReLU6 in place": _spelling(lambda: nn.ReLU6(inplace=True), top=6),
    "F.relu6": _spelling(lambda: F.relu6, top=6),
    "nn.Hardtanh(0, 6)": _spelling(lambda: nn.Hardtanh(0.0, 6.0), top=6),
    "F.hardtanh(0, 6)": _spelling(lambda: lambda x: F.hardtanh(x, 0.0, 6.0), top=6),
    "F.hardtanh_(0, 6)": _spelling(lambda: lambda x: F.hardtanh_(x, 0.0, 6.0), top=6),
    "clamp(min=0)": _spelling(lambda: lambda x: x.clamp(min=0)),
    "clamp_(min=0)": _spelling(lambda: lambda x: x.clamp_(min=0)),
    "torch.clamp(min=0)": _spelling(lambda: lambda x: torch.clamp(x, min=0)),
    "clamp(0, 6)": _spelling(lambda: lambda x: x.clamp(0, 6), top=6),
    "clamp(min=tensor)": _spelling(lambda: lambda x: x.clamp(min=_zeros(x))),
    "clip(min=0)": _spelling(lambda: lambda x: x.clip(min=0)),
    "clip_(min=0)": _spelling(lambda: lambda x: x.clip_(min=0)),
    "clamp_min(0)": _spelling(lambda: lambda x: x.clamp_min(0)),
    "clamp_min_(0)": _spelling(lambda: lambda x: x.clamp_min_(0)),
    "nn.Threshold(0, 0)": _spelling(lambda: nn.Threshold(0.0, 0.0)),
    "F.threshold(0, 0)": _spelling(lambda: lambda x: F.threshold(x, 0.0, 0.0)),
    "F.threshold_(0, 0)": _spelling(lambda: lambda x: F.threshold_(x, 0.0, 0.0)),
    "maximum(x, 0)": _spelling(lambda: lambda x: torch.maximum(x, _zeros(x))),
    "maximum(0, x)": _spelling(lambda: lambda x: torch.maximum(_zeros(x), x)),
    "torch.max(x, 0)": _spelling(lambda: lambda x: torch.max(x, torch.zeros_like(x))),
    "nn.LeakyReLU": _spelling(lambda: nn.LeakyReLU(0.1), below=0.1),
    "nn.LeakyReLU in place": _spelling(lambda: nn.LeakyReLU(0.1, inplace=True), below=0.1),
    "F.leaky_relu": _spelling(lambda: lambda x: F.leaky_relu(x, 0.1), below=0.1),
    "F.leaky_relu_": _spelling(lambda: lambda x: F.leaky_relu_(x, 0.1), below=0.1),
    "nn.PReLU": _spelling(nn.PReLU, below=0.25),
    "nn.RReLU": _spelling(lambda: nn.RReLU(0.1, 0.3), below=0.2),
}

SMOOTH: dict[str, Make] = {
    "Silu": nn.SiLU,
    "Gelu": nn.GELU,
    "Elu": nn.ELU,
    "Celu": nn.CELU,
    "Softplus": nn.Softplus,
    "Hardswish": nn.Hardswish,
    "Mish": nn.Mish,
    "Tanh": nn.Tanh,
}


def rectified(**settings: Any) -> list[tuple[str, nn.Module]]:
    """The plain net in every spelling of a rectifier, all with the same weights."""
    return [(name, seeded(Plain(spelling.make), **settings)) for name, spelling in SPELLINGS.items()]


def smooth(**settings: Any) -> list[tuple[str, nn.Module]]:
    """The plain net with activations that are no rectifiers; the name is the one that records give it."""
    return [(name, seeded(Plain(make), **settings)) for name, make in SMOOTH.items()]


def grey(**settings: Any) -> nn.Module:
    """One input channel, as networks for MNIST have."""
    return seeded(Plain(inputs=1), **settings)


def grey_model(net: nn.Module | None = None, **settings: Any) -> opsin.Model:
    return model(net or grey(), **{"mean": [0.5], "std": [0.25], **settings})


class Normed(nn.Module):
    """A batch normalisation before each rectifier, which may overwrite it."""

    def __init__(self, rectifier: Make) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu1 = rectifier()
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.relu2 = rectifier()
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


def normed(*, inplace: bool, **settings: Any) -> nn.Module:
    """BatchNorm before ReLU; the two twins have the same weights."""
    return seeded(Normed(lambda: nn.ReLU(inplace=inplace)), **settings)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Patches of 4 x 4 pixels behind a class token, which alone is read."""

    def __init__(self, width: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x).flatten(2).transpose(1, 2)  # (n, c, h, w) -> (n, h*w, c)
        x = torch.cat([self.token.expand(len(x), -1, -1), patches], 1)
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit(**settings: Any) -> nn.Module:
    return seeded(Transformer(), **settings)


class ToLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)  # (n, c, h, w) -> (n, h, w, c)


def laid(maps: Tensor, layout: str) -> Tensor:
    """Maps in another layout; `tokens` stand behind one that is no position."""
    if layout == "maps":
        return maps
    last = maps.permute(0, 2, 3, 1)  # (n, c, h, w) -> (n, h, w, c)
    return last if layout == "maps_last" else F.pad(last.flatten(1, 2), (0, 0, 1, 0), value=0.5)


def unlaid(values: Tensor, layout: str, columns: int) -> Tensor:
    """What `laid` was given, but for the token that is no position."""
    if layout == "maps":
        return values
    last = values if layout == "maps_last" else values[:, 1:].unflatten(1, (-1, columns))
    return last.permute(0, 3, 1, 2)  # (n, h, w, c) -> (n, c, h, w)


class Step(nn.Module):
    """A convolution whose maps come and go in a layout."""

    def __init__(self, inputs: int, outputs: int, layout: str) -> None:
        super().__init__()
        self.layout = layout
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor, columns: int) -> Tensor:
        maps = F.conv2d(unlaid(x, self.layout, columns), self.weight, self.bias, padding=1)
        return laid(maps, self.layout)


class Permuted(nn.Module):
    """One network in any layout: twins with the same weights differ in how their layers' outputs lie."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout = layout
        self.stem = nn.Conv2d(3, 7, 4, stride=4)
        self.conv1 = Step(7, 9, layout)
        self.relu1 = nn.ReLU()
        self.conv2 = Step(9, 6, layout)
        self.relu2 = nn.ReLU()
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stem(x)
        columns = maps.shape[3]
        x = self.relu1(self.conv1(laid(maps, self.layout), columns))
        x = self.relu2(self.conv2(x, columns))
        return self.fc(unlaid(x, self.layout, columns).mean((2, 3)))


PERMUTED = ("maps", "maps_last", "tokens")


def permuted(layout: str, **settings: Any) -> nn.Module:
    return seeded(Permuted(layout), **settings)


class ChannelsLast(nn.Module):
    """Maps that lie as (n, h, w, c), as in Swin and ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 9, 4, stride=4)
        self.last = ToLast()
        self.norm = nn.LayerNorm(9)
        self.wide = nn.Linear(9, 9)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.wide(self.norm(self.last(self.stem(x)))))
        return self.fc(x.mean((1, 2)))


def channels_last(**settings: Any) -> nn.Module:
    return seeded(ChannelsLast(), **settings)


class TwoHeads(Plain):
    """Returns its scores and an auxiliary head's, as GoogLeNet does in training."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = super().forward(x)
        return scores, 2 * scores


def two_heads(**settings: Any) -> nn.Module:
    return seeded(TwoHeads(), **settings)


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


class WithLogits(Plain):
    """Returns an object, as the classifiers of Transformers do."""

    def forward(self, x: Tensor) -> Output:
        return Output(None, super().forward(x))


def with_logits(**settings: Any) -> nn.Module:
    return seeded(WithLogits(), **settings)


class Detached(Plain):
    """Gives no gradient to the photo."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


def detached(**settings: Any) -> nn.Module:
    return seeded(Detached(), **settings)


class Viewing(nn.Module):
    """Calls .view() on maps, which works on contiguous ones only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        return self.fc(x.view(len(x), -1))


def viewing(**settings: Any) -> nn.Module:
    return seeded(Viewing(), **settings)


class Chain(nn.Module):
    """The modules one after another by the names given; `forward` may be told to fail behind one of them."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.children():
            x = module(x)
        return x


def chain(**modules: nn.Module) -> nn.Module:
    """A float64 network of the modules in their order, with the weights that they come with."""
    return Chain(**modules).double().eval()


def conv(weight: Sequence[Any], bias: Sequence[float] | None = None, **settings: Any) -> nn.Conv2d:
    """A convolution with the weights written out, (out, in, h, w)."""
    kernel = torch.tensor(weight, dtype=torch.float64)
    layer = nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2:], bias=bias is not None, **settings)
    layer.weight.data = kernel
    if bias is not None:
        layer.bias.data = torch.tensor(bias, dtype=torch.float64)
    return layer


def linear(weight: Sequence[Any], bias: Sequence[float] | None = None) -> nn.Linear:
    """A linear layer with the weights written out, (out, in)."""
    matrix = torch.tensor(weight, dtype=torch.float64)
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=bias is not None)
    layer.weight.data = matrix
    if bias is not None:
        layer.bias.data = torch.tensor(bias, dtype=torch.float64)
    return layer
