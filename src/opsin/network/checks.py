"""Checks of the arguments of a `Model`."""

from collections.abc import Sequence
from math import isfinite

from PIL import Image
from torch import nn
from torch.jit._script import RecursiveScriptModule
from torch.nn.parameter import is_lazy

from opsin.base.errors import InputError, unknown


def check_network(network: nn.Module) -> None:
    """Raise `InputError` if it is not a module, hides its layers or has no weights yet."""
    if not isinstance(network, nn.Module):
        raise InputError(f"a Model takes a torch.nn.Module, got {type(network).__name__}")
    if any(isinstance(module, RecursiveScriptModule) for module in network.modules()):
        raise InputError("a scripted network hides its layers: give the nn.Module that was scripted")
    weights = (*network.named_parameters(), *network.named_buffers())
    for weight, tensor in weights:
        if is_lazy(tensor):
            raise InputError(f"{weight!r} of the lazy network has no shape yet: run it on an example once")
        if tensor.is_meta:
            raise InputError(f"{weight!r} of the network is on the meta device: load its weights first")
    if any(tensor.is_inference() for _, tensor in weights):
        raise InputError("a network created under torch.inference_mode() has no gradients: create it outside")


def check_preprocessing(
    mean: Sequence[float],
    std: Sequence[float],
    size: int | tuple[int, int],
    crop: float,
    interpolation: str,
    labels: Sequence[str] | None,
) -> None:
    """Raise `InputError` on invalid preprocessing, and on labels that are not strings."""
    if not (len(mean) == len(std) and len(mean) in (1, 3)):
        raise InputError(f"mean and std take 1 or 3 numbers each, got {len(mean)} and {len(std)}")
    sides = (size, size) if isinstance(size, int) else size
    if not all(isinstance(side, int) and side > 0 for side in sides):
        raise InputError(f"size must be one or two positive whole numbers, not {size!r}")
    if not 0 < crop <= 1:
        raise InputError(f"crop must be above 0 and at most 1, not {crop!r}")
    if 0 in std or not all(map(isfinite, (*mean, *std))):
        raise InputError(f"mean and std must be finite, and std not zero: got {mean!r} and {std!r}")
    if interpolation.upper() not in Image.Resampling.__members__:
        raise unknown("interpolation", interpolation, [r.lower() for r in Image.Resampling.__members__])
    if labels is not None and (
        isinstance(labels, str) or not all(isinstance(label, str) for label in labels)
    ):
        raise InputError(
            f"labels must be class names in the output's order, got {type(labels).__name__} {labels!r}"
        )


def check_labels(labels: Sequence[str] | None, classes: int | None, name: str) -> None:
    """Raise `InputError` where both are known and there are not as many labels as classes."""
    if labels is not None and classes and len(labels) != classes:
        raise InputError(
            f"{name} has {classes:,} classes, and the number of labels is {len(labels):,}: give one per "
            "class, in the output's order"
        )
