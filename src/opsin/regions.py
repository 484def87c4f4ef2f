"""Which part of the image a layer's unit sees."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from opsin.model import Model
from opsin.progress import steps

DEFAULTS = (None, None, None, 1, 0, 1)  # of torch.conv2d: input, weight, bias, stride, padding, dilation


@dataclass(frozen=True)
class Region:
    """Rows top to bottom and columns left to right, ends excluded, in pixels of the model's size."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left


class _OneChannel(TorchFunctionMode):
    """Convolutions on one channel of nought and not-a-number: which units are reached, not their values."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch.conv2d:
            return func(*args, **(kwargs or {}))
        image, weight, _, stride, padding, dilation = (*args, *DEFAULTS[len(args) :])[:6]
        reached = image.isnan().any(1, keepdim=True)
        one = torch.where(reached, torch.nan, 0).to(weight)
        wide = torch.conv2d(one, torch.ones_like(weight[:1, :1]), None, stride, padding, dilation)
        return wide.repeat(1, len(weight), 1, 1)


def receptive_fields(model: Model) -> dict[str, Region]:
    """The receptive field of the unit in the middle of every layer with a spatial extent.

    Found by experiment, so on any architecture: pixels that are not a number make every unit that
    sees them not a number. For each edge of each field the largest band of such pixels that leaves
    the middle unit a number is found by halving, for all layers at once.
    """
    names = [call.name for call in model.calls.values() if call.extent]
    height, width = model.size
    edges: dict[str, dict[str, int]] = {name: {} for name in names}
    sides = {"top": height, "left": width, "bottom": height, "right": width}
    for side, length in steps(sides.items(), len(sides), "receptive fields"):
        todo = [(0, length, names)]  # the clean band's size lies in [low, high] for these layers
        while todo:
            low, high, group = todo.pop()
            if low == high:
                edges.update({name: {**edges[name], side: low} for name in group})
                continue
            middle = (low + high + 1) // 2
            spoiled = _spoiled(model, group, side, middle)
            todo += [(low, middle - 1, part) for part in [[n for n in group if n in spoiled]] if part]
            todo += [(middle, high, part) for part in [[n for n in group if n not in spoiled]] if part]
    return {
        name: Region(e["top"], e["left"], height - e["bottom"], width - e["right"])
        for name, e in edges.items()
    }


def _spoiled(model: Model, names: list[str], side: str, band: int) -> set[str]:
    """The layers whose middle unit sees a band of so many pixels along one side."""
    image = torch.full((1, 3, *model.size), 0.5, device=model.device)
    along = 2 if side in ("top", "bottom") else 3
    start = 0 if side in ("top", "left") else image.shape[along] - band
    image.narrow(along, start, band).fill_(torch.nan)
    with _OneChannel():
        run = model.run(image, names)
    return {name for name in names if _middle(run.maps(name)).isnan().any()}


def _middle(maps: Tensor) -> Tensor:
    return maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2]
