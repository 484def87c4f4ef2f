"""Networks built with published, random or the user's own weights."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from opsin.base.errors import NetworkError
from opsin.base.extras import extra
from opsin.zoo.checkpoints import fault, fill


def available(family: str) -> list[str]:
    """Every classifier that `timm` or `torchvision` has by name."""
    with extra("networks"):
        import timm
        import torchvision
    if family == "timm":
        return list(timm.list_models())
    return torchvision.models.list_models(module=torchvision.models)  # type: ignore[no-any-return]


def built(
    name: str, build: Callable[[bool], nn.Module], weights: str | Path | None, *, fetched: bool = True
) -> nn.Module:
    """The network with published, random or own weights; `fetched` if the published ones are downloaded."""
    if weights is None:
        try:
            return build(True).eval()
        except Exception as error:
            offline = "; without a connection pass a weights file, or 'random' for random weights"
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
