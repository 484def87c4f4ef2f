"""The outputs of a network's custom autograd functions, which its graph does not show."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

OPERATORS = (OpOverload, OpOverloadPacket)  # custom operators of `torch.library`, which do go through a mode


class CustomFunctions(TorchFunctionMode):
    """While a network runs, compares the outputs of its custom functions with relu of their inputs.

    Unlike torch's functions, a custom function does not go through a mode. Its input is observed inside it,
    where a tensor has a graph although none is recorded; its output, where the next function reads it.
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
        """Observe a tensor that a function passes on, before anything else is done with it."""
        node = value.grad_fn
        if node is not None and is_custom(node) and node not in self._rectify:
            self._rectify[node] = self._rectifies(node, value)

    def rectifies(self, node: Node) -> bool | None:
        """Whether a custom function returned relu of its input; `None` if that is unknown.

        It is also unknown if the function returned its input unchanged and that was never negative.
        """
        return self._rectify.get(node)

    def _rectifies(self, node: Node, output: Tensor) -> bool | None:
        inputs = [edge for edge in node.next_functions if edge[0] is not None]
        observed = [self._given.pop(edge) if edge in self._given else None for edge in inputs]
        answers = {None if given is None else _is_relu(given, output) for given in observed} or {None}
        return next(answer for answer in (True, None, False) if answer in answers)


def is_custom(node: Node) -> bool:
    """Whether a node belongs to a `torch.autograd.Function`, which may have any name."""
    return issubclass(type(node), BackwardCFunction)


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    """Arguments, and the items of lists among them; torch's own `tree_leaves` takes six times as long."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from value
        else:
            yield value


def _is_relu(given: Tensor, output: Tensor) -> bool | None:
    """Whether the output is relu(given); `None` if no input is negative, or they have no values."""
    try:
        if given.shape != output.shape or not torch.equal(given.relu().to(output.dtype), output):
            return False
        return True if bool((given < 0).any()) else None
    except RuntimeError:  # sparse, complex, or on the meta device
        return None
