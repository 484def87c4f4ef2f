"""Which units of a layer see beyond the edge of the image, where padding stands in for pixels."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from opsin.network.model import Model
from opsin.network.regions import DEFAULTS, NAMES, OneChannel

SPATIAL = 4  # numbers in the padding of rows and columns: left, right, top, bottom
POOL = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")  # of avg_pool2d


class SpoiledPadding(OneChannel):
    """Padding that is not a number: it makes every unit that sees it not a number."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.pad:
            return _pad(*args, **(kwargs or {}))
        if func is F.avg_pool2d:
            given = {**dict(zip(POOL, args, strict=False)), **(kwargs or {})}
            if given.get("count_include_pad", True):
                padding = _pair(given.pop("padding", 0))
                given["input"] = _spoiled(given["input"], [(side, side) for side in padding])
            return func(given.pop("input"), **given)
        if func is not torch.conv2d:
            return super().__torch_function__(func, types, args, kwargs)
        given = {**DEFAULTS, **dict(zip(NAMES, args, strict=False)), **(kwargs or {})}
        sides = _sides(given["padding"], given["weight"].shape[2:], _pair(given["dilation"]))
        given |= {"input": _spoiled(given["input"], sides), "padding": 0}
        return super().__torch_function__(func, types, (), given)


def padded(model: Model, layer: str) -> Bool[Tensor, "h w"]:
    """The positions of a layer whose units see padding: at its edges, or everywhere behind a global gate.

    Found by experiment, as receptive fields are. Padding by zeros or by another constant counts; padding that
    repeats pixels of the image, and that of max-pooling, which is never the maximum, do not.
    """
    image = torch.full((1, 3, *model.size), 0.5, device=model.device)
    with SpoiledPadding():
        run = model.run(image, (layer,))
    return run.maps(layer)[0].isnan().any(0).cpu()


def _pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """`torch.nn.functional.pad`; rows and columns that it adds are not a number."""
    if mode != "constant":
        return F.pad(input, list(pad), mode=mode)
    channels = F.pad(input, [0] * SPATIAL + list(pad[SPATIAL:]), value=value)
    return F.pad(channels, list(pad[:SPATIAL]), value=torch.nan)


def _spoiled(values: Tensor, sides: Sequence[tuple[int, int]]) -> Tensor:
    """Maps with rows and columns around them that are not a number."""
    (top, bottom), (left, right) = sides
    return F.pad(values, [left, right, top, bottom], value=torch.nan)


def _sides(padding: Any, kernel: Sequence[int], dilation: tuple[int, int]) -> list[tuple[int, int]]:
    """How many rows and columns a convolution adds before and after: its padding may be a word."""
    if padding == "valid":
        return [(0, 0), (0, 0)]
    if padding == "same":
        totals = [step * (side - 1) for step, side in zip(dilation, kernel, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(side, side) for side in _pair(padding)]


def _pair(value: Any) -> tuple[int, int]:
    first, *rest = (value,) if isinstance(value, int) else tuple(value)
    return first, rest[0] if rest else first
