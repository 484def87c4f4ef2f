"""Average pooling in place of maximum pooling, without modifying the network."""

from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

MAXIMUM = (F.max_pool2d, F._max_pool2d, torch.max_pool2d)  # type: ignore[attr-defined]


class AveragePooling(TorchFunctionMode):
    """Within the block, in this thread, `max_pool2d` takes means (Gatys et al. 2015, section 2)."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func not in MAXIMUM:
            return func(*args, **kwargs)
        names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if given.pop("dilation", 1) not in (1, (1, 1), [1, 1]) or given.pop("return_indices", False):
            return func(*args, **kwargs)  # has no average counterpart
        return F.avg_pool2d(**given, count_include_pad=False)
