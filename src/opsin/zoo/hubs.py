"""Networks of torchvision and Transformers by name."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import nn

from opsin.base.errors import InputError, NetworkError, unknown
from opsin.base.extras import extra
from opsin.base.files import missing
from opsin.network.model import Model
from opsin.zoo.building import available, built
from opsin.zoo.checkpoints import fault
from opsin.zoo.offline import hub
from opsin.zoo.own_settings import PUBLISHED, OwnSettings, built_with, check_square


def open_torchvision(name: str, weights: str | Path | None, own: OwnSettings = PUBLISHED) -> Model:
    """A classifier of torchvision by name, with a head for `own.classes`, built for images of `own.size`."""
    with extra("networks"):
        import torchvision

    known = available("torchvision")
    if name not in known:
        raise unknown("torchvision model", name, known)
    published = torchvision.models.get_model_weights(name).DEFAULT
    labels = published.meta["categories"] if own.classes is None else None
    settings: dict[str, Any] = {} if own.classes is None else {"num_classes": own.classes}
    if own.size is not None and name.startswith("vit_"):
        settings["image_size"] = check_square(own.size, f"torchvision:{name}")
    elif own.size is not None and name.startswith("maxvit_"):
        settings["input_size"] = own.size

    def build(pretrained: bool) -> nn.Module:
        extra = {"init_weights": True} if not pretrained and name in ("googlenet", "inception_v3") else {}
        chosen = published if pretrained else None
        return torchvision.models.get_model(  # type: ignore[no-any-return]
            name, weights=chosen, **settings, **extra
        )

    classes = own.classes or len(published.meta["categories"])
    network = built_with(f"torchvision:{name}", build, weights, classes)
    preset = published.transforms()
    return Model(
        network,
        mean=preset.mean,
        std=preset.std,
        size=preset.crop_size[0],
        crop=preset.crop_size[0] / preset.resize_size[0],
        interpolation=preset.interpolation.value,
        labels=labels,
        name=f"torchvision:{name}",
    )


def open_hugging_face(name: str, weights: str | Path | None, _own: OwnSettings = PUBLISHED) -> Model:
    """An image classifier of Transformers, from its hub or a folder, which say how it is built."""
    try:
        from huggingface_hub.utils import HFValidationError, validate_repo_id  # type: ignore[attr-defined]
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
    except ImportError as error:
        raise InputError("hf: networks need the extra: pip install 'opsin[hf]'") from error
    is_folder = os.path.isdir(name)  # noqa: PTH112 (does not raise on a name that no file can have)
    try:
        if is_folder and not (Path(name) / "config.json").is_file():
            raise InputError(
                f"hf:{name} is a folder without config.json, so not a network saved by Transformers"
            )
        if not is_folder:
            validate_repo_id(name)
    except HFValidationError as error:
        raise missing("folder or name on the hub", Path(name)) from error
    plain: dict[str, Any] = {
        "trust_remote_code": False
    }  # otherwise Transformers asks on a terminal, and may run code
    try:
        with nullcontext() if is_folder else hub():
            config = AutoConfig.from_pretrained(name, **plain)
            config._attn_implementation = None  # use Transformers' own: the file may name code on the hub
            processor = AutoImageProcessor.from_pretrained(name, **plain)
    except Exception as error:
        hint = "" if is_folder else " (and there is no folder of this name)"
        raise NetworkError(f"hf:{name} cannot be loaded{hint}: {fault(error)}") from error

    def build(pretrained: bool) -> nn.Module:
        if pretrained:
            with nullcontext() if is_folder else hub():
                return AutoModelForImageClassification.from_pretrained(  # type: ignore[no-any-return]
                    name, config=config, weights_only=True, **plain
                )
        return AutoModelForImageClassification.from_config(config, **plain)  # type: ignore[no-any-return]

    network = built(f"hf:{name}", build, weights, fetched=not is_folder)
    shortest = processor.size.get("shortest_edge")
    cut = processor.crop_size if getattr(processor, "do_center_crop", False) and processor.crop_size else None
    size = (
        (cut["height"], cut["width"])
        if cut
        else (shortest or (processor.size["height"], processor.size["width"]))
    )
    mean, std = _normalisation(processor, size, name)
    names: dict[int, str] = cast("Any", network).config.id2label
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
    """The effective mean and standard deviation of the processor, including all its scalings and shifts."""
    shades = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0]], dtype=torch.uint8)
    images = [shade.expand(*size, 3).numpy() for shade in shades]  # (h, w, 3)
    normalised = processor(images=images, return_tensors="pt")["pixel_values"][
        ..., size[0] // 2, size[1] // 2
    ]
    black, white, red = normalised.double()
    std = 1 / (white - black)
    mean = -black * std
    if not torch.allclose((shades[2] / 255 - mean) / std, red, atol=1e-4):
        raise NetworkError(
            f"hf:{name} has preprocessing that mixes colours: build the model in a FILE.py:FACTORY"
        )
    return tuple(mean.float().tolist()), tuple(std.float().tolist())
