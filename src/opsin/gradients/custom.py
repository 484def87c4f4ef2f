"""What the custom autograd functions of a network give, which its graph does not tell."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

OPERATORS = (OpOverload, OpOverloadPacket)  # of `torch.library`: custom functions that do go through a mode


class CustomFunctions(TorchFunctionMode):
    """While a network runs, compares what its custom functions give with relu of what they are given.

    A custom function does not go through a mode as torch's functions do. Its input is seen within it, where a
    tensor has its graph although none is recorded, its output where it is handed on.
    """

    def __init__(self) -> None:
        super().__init__()
        self._given: dict[tuple[Node, int], Tensor] = {}
        self._rectify: dict[Node, bool | None] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        within = not torch.is_grad_enabled() or isinstance(func, OPERATORS)
        for value in _flat((*args, *(kwargs or {}).values())):
            if isinstance(value, Tensor) and value.grad_fn is not None:
                self.see(value)
                key = value.grad_fn, value.output_nr
                if within and key not in self._given:
                    self._given[key] = value.detach().clone()  # a function may overwrite its input
        return func(*args, **(kwargs or {}))

    def see(self, value: Tensor) -> None:
        """Look at a tensor that is handed on, as it is before anything else is done with it."""
        node = value.grad_fn
        if node is not None and is_custom(node) and node not in self._rectify:
            self._rectify[node] = self._rectifies(node, value)

    def rectifies(self, node: Node) -> bool | None:
        """Whether a custom function gave relu of what it was given; `None` where that was not seen.

        It was not seen either where the function gave what it was given and that was never negative.
        """
        return self._rectify.get(node)

    def _rectifies(self, node: Node, output: Tensor) -> bool | None:
        inputs = [edge for edge in node.next_functions if edge[0] is not None]
        seen = [self._given.pop(edge) if edge in self._given else None for edge in inputs]
        answers = {None if given is None else _is_relu(given, output) for given in seen} or {None}
        return next(answer for answer in (True, None, False) if answer in answers)


def is_custom(node: Node) -> bool:
    """Whether a node is that of a `torch.autograd.Function`, which may have any name."""
    return issubclass(type(node), BackwardCFunction)


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    """Arguments, and what is in lists of them; torch's own `tree_leaves` takes six times as long."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from value
        else:
            yield value


def _is_relu(given: Tensor, output: Tensor) -> bool | None:
    """Whether the output is relu(given); `None` where nothing given is negative, or they have no values."""
    try:
        if given.shape != output.shape or not torch.equal(given.relu().to(output.dtype), output):
            return False
        return True if bool((given < 0).any()) else None
    except RuntimeError:  # sparse, complex, or on the meta device
        return None
