"""Networks of timm by name."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from opsin.base.errors import unknown
from opsin.base.extras import extra
from opsin.network.model import Model
from opsin.zoo.imagenet import CLASSES, imagenet_classes
from opsin.zoo.offline import hub
from opsin.zoo.own_settings import PUBLISHED, OwnSettings, built_with


def open_timm(name: str, weights: str | Path | None, own: OwnSettings = PUBLISHED) -> Model:
    """A network of timm by name, with a head for `own.classes` and, if fixed, the input for `own.size`."""
    with extra("networks"):
        import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise unknown("timm model", name, timm.list_models())
    try:
        published = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise unknown("timm model", name, timm.list_pretrained(f"{architecture}.*")) from error
    settings: dict[str, Any] = {} if own.classes is None else {"num_classes": own.classes}
    if own.size is not None and published is not None and published.fixed_input_size:
        settings["img_size"] = own.size

    def build(pretrained: bool) -> nn.Module:
        with hub() if pretrained else nullcontext():
            return timm.create_model(name, pretrained=pretrained, **settings)

    network = built_with(f"timm:{name}", build, weights, own.classes)
    return from_timm(network, f"timm:{name}", own_head=own.classes is not None)


def from_timm(network: nn.Module, name: str, *, own_head: bool = False) -> Model:
    """A `Model` of a network that timm made: its own preprocessing and, with ImageNet's head, class names."""
    from timm.data.config import resolve_model_data_config

    is_imagenet = getattr(network, "num_classes", None) == CLASSES and not own_head
    config = resolve_model_data_config(network)
    return Model(
        network,
        mean=config["mean"],
        std=config["std"],
        size=tuple(config["input_size"][1:]),
        crop=config["crop_pct"],
        interpolation=config["interpolation"],
        squash=config["crop_mode"] == "squash",
        labels=imagenet_classes() if is_imagenet else None,
        name=name,
    )
