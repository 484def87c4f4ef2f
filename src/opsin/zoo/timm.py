"""Networks of timm by name."""

from pathlib import Path

from torch import nn

from opsin.base.errors import unknown
from opsin.base.extras import extra
from opsin.network.model import Model
from opsin.zoo.building import built
from opsin.zoo.imagenet import CLASSES, imagenet_classes


def open_timm(name: str, weights: str | Path | None) -> Model:
    """A network of timm by name."""
    with extra("networks"):
        import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise unknown("timm model", name, timm.list_models())
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise unknown("timm model", name, timm.list_pretrained(f"{architecture}.*")) from error
    network = built(
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
        labels=imagenet_classes() if getattr(network, "num_classes", None) == CLASSES else None,
        name=name,
    )
