"""GoogLeNet with Caffe's weights, which come with the install: the network of DeepDream and many papers."""

from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from opsin.network.model import Model
from opsin.zoo.building import built
from opsin.zoo.imagenet import imagenet_classes

NAME = "bvlc_googlenet"
WEIGHTS = Path(__file__).parent / "data" / "bvlc_googlenet_fp16.safetensors"
BLUE_GREEN_RED = (104.0, 117.0, 123.0)  # mean of ImageNet in 0..255, subtracted before the network
# Channels of each module: 1x1, 3x3 reduced and full, 5x5 reduced and full, pooled and projected (table 1)
INCEPTION = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
STEM = {"conv1": "conv1/7x7_s2", "conv2_reduce": "conv2/3x3_reduce", "conv2": "conv2/3x3"}  # Caffe's names


class Inception(nn.Module):
    """Four branches side by side, concatenated: 1x1, 3x3, 5x5, and max pooling with a projection."""

    BRANCHES = (("1x1",), ("3x3_reduce", "3x3"), ("5x5_reduce", "5x5"), ("pool", "pool_proj"))

    def __init__(self, given: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        ones, reduced3, threes, reduced5, fives, projected = widths
        self.add_module("1x1", nn.Conv2d(given, ones, 1))
        self.add_module("3x3_reduce", nn.Conv2d(given, reduced3, 1))
        self.add_module("3x3", nn.Conv2d(reduced3, threes, 3, padding=1))
        self.add_module("5x5_reduce", nn.Conv2d(given, reduced5, 1))
        self.add_module("5x5", nn.Conv2d(reduced5, fives, 5, padding=2))
        self.add_module("pool", nn.MaxPool2d(3, 1, padding=1))
        self.add_module("pool_proj", nn.Conv2d(given, projected, 1))
        for name in [name for name, layer in self.named_children() if isinstance(layer, nn.Conv2d)]:
            self.add_module(f"relu_{name}", nn.ReLU())

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (n, given, h, w) -> (n, sum of the branches' widths, h, w)."""
        return torch.cat([self._branch(maps, names) for names in self.BRANCHES], 1)

    def _branch(self, maps: Tensor, names: tuple[str, ...]) -> Tensor:
        for name in names:
            maps = self.get_submodule(name)(maps)
            if name != "pool":
                maps = self.get_submodule(f"relu_{name}")(maps)
        return maps


class GoogLeNet(nn.Sequential):
    """GoogLeNet as Caffe has it, without the auxiliary classifiers; its layers are named as in the papers."""

    def __init__(self) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(3, 64, 7, 2, padding=3),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
            norm1=nn.LocalResponseNorm(5, 1e-4, 0.75),
            conv2_reduce=nn.Conv2d(64, 64, 1),
            relu2_reduce=nn.ReLU(),
            conv2=nn.Conv2d(64, 192, 3, padding=1),
            relu2=nn.ReLU(),
            norm2=nn.LocalResponseNorm(5, 1e-4, 0.75),
            pool2=nn.MaxPool2d(3, 2, ceil_mode=True),
        )
        channels = 192
        for number, widths in INCEPTION.items():
            layers[f"inception_{number}"] = Inception(channels, widths)
            ones, _, threes, _, fives, projected = widths
            channels = ones + threes + fives + projected
            if number in ("3b", "4e"):
                layers[f"pool{number[0]}"] = nn.MaxPool2d(3, 2, ceil_mode=True)
        layers["pool5"] = nn.AdaptiveAvgPool2d(1)
        layers["classifier"] = nn.Linear(channels, 1000)
        super().__init__(layers)

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, 3, h, w) in 0..255 minus the mean -> scores (n, 1000) before the softmax."""
        *layers, classifier = self
        for layer in layers:
            images = layer(images)
        return classifier(images.flatten(1))  # type: ignore[no-any-return]  # (n, 1024, 1, 1) -> (n, 1024)


def googlenet(weights: str | Path | None = None) -> Model:
    """BVLC GoogLeNet with its preprocessing and class names, with Caffe's weights or others.

    Photos are cut to the whole of their shorter side, where Caffe cut 7/8 of it: as accurate
    (docs/networks.md), and less of the photo is cut away.
    """
    network = built(NAME, _build, weights, fetched=False)
    mean = tuple(value / 255 for value in reversed(BLUE_GREEN_RED))
    return Model(
        network,
        mean=mean,
        std=(1 / 255,) * 3,
        size=224,
        labels=imagenet_classes(),
        name=NAME,
    )


def _build(pretrained: bool) -> GoogLeNet:
    if not pretrained:
        return GoogLeNet()
    with torch.device("meta"):  # random weights, which are not wanted, would take long to draw
        network = GoogLeNet()
    network.load_state_dict(stored(), assign=True)
    return network


def stored() -> dict[str, Tensor]:
    """The weights that come with the install, in single precision, for RGB, under this network's names."""
    caffe = load_file(WEIGHTS)
    names = {caffe_name: name for name, caffe_name in STEM.items()} | {"loss3/classifier": "classifier"}
    weights = {}
    for caffe_name, values in caffe.items():
        layer, _, kind = caffe_name.rpartition(".")
        weights[f"{names.get(layer, layer.replace('/', '.'))}.{kind}"] = values.float()
    weights["conv1.weight"] = weights["conv1.weight"].flip(1).contiguous()  # blue first -> red first
    return weights
