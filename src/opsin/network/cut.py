"""Where a network's own code ends the autograd graph, and how."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

from opsin.base.errors import NetworkError
from opsin.network.activations import Activations
from opsin.network.graph import nodes
from opsin.network.model import Model
from opsin.network.tracing import spatial_layers

LEAVING = ("numpy", "__array__", "tolist", "__dlpack__")  # methods whose result is no tensor


def check_graph(model: Model, run: Activations, layers: Sequence[str], start: str = "image") -> None:
    """Raise `NetworkError` if the network's own code cuts the graph between `start` and one of the layers.

    `run` began at `start`. A layer that does not depend on `start` is no cut.
    """
    leaf = run[start]
    detached = [layer for layer in layers if not _reaches(run[layer], leaf)]
    if detached and (how := cut(model, run["image"].detach()[:1], detached, start)):
        raise _not_differentiable(model, start, detached[0], how)


def cut(model: Model, image: Tensor, layers: Sequence[str], start: str = "image") -> str:
    """How the network's code ends the graph from `start` to the first of `layers` that is cut off.

    Found by one more forward that follows what is computed from `start`. Empty if none is cut off.
    """
    shown = [call.name for call in model.calls.values() if call.readable]
    following = _Following()
    with following:
        run = model.run(image, tuple(dict.fromkeys((*layers, *shown))), start=start)
    for layer in layers:
        if (reason := following.reason(run[layer])) is not None:
            first = next((name for name in shown if following.reason(run[name]) is reason), None)
            return f"{reason.text}; the first layer without a gradient is {first!r}" if first else reason.text
        if not run[layer].requires_grad and following.left is not None:
            return following.left.text
    return ""


def no_default_layer(model: Model) -> NetworkError:
    """The error for a network without a layer that has a spatial extent and reaches the output."""
    if not spatial_layers(model.calls):
        hidden = next((call.name for call in model.calls.values() if not call.readable), None)
        return NetworkError(
            f"{model.name} has no layer with a spatial extent before its output"
            + (f" that gives real numbers in a dense tensor, which {hidden!r} does not" if hidden else "")
        )
    image = torch.rand(1, 3, *model.size, generator=torch.Generator().manual_seed(0)).to(model.device)
    if how := cut(model, image, ("output",)):
        return _not_differentiable(model, "image", "output", how)
    return NetworkError(
        f"the output of {model.name} depends on none of its layers: every gradient is zero "
        "(an untrained classifier of zeros, or a function of steps such as sign?)"
    )


@dataclass(frozen=True, eq=False)
class _Reason:
    """How a tensor lost its graph."""

    text: str


class _Following(TorchFunctionMode):
    """Follows the tensors that are computed from one with a graph, and keeps how some of them lose it."""

    def __init__(self) -> None:
        super().__init__()
        # by id: the tensor, which is thereby kept alive, its node at that time, and how it was cut off
        self._cut_off: dict[int, tuple[Tensor, Node | None, _Reason]] = {}
        self.left: _Reason | None = None  # how values were handed out of torch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = _tensors((args, kwargs or {}))
        followed = any(value.requires_grad and self.reason(value) is None for value in given)
        inherited = next((reason for value in given if (reason := self.reason(value)) is not None), None)
        result = func(*args, **(kwargs or {}))
        name = _name(func)
        if name == "requires_grad_" or (not followed and inherited is None):
            return result
        if name in LEAVING:
            self.left = _Reason(f"its code takes values out of torch with .{name}()")
        written = given[:1] if result is None else _tensors(result)  # an assignment returns nothing
        for value in written:
            if not followed and inherited is not None:
                self._cut_off[id(value)] = value, value.grad_fn, inherited
            elif not value.requires_grad:
                # `to(other)` and the like may read no more of an argument with a graph than its dtype
                reason = _reason(name, value) or inherited
                reason = reason or _Reason(f"its code calls {name}, which passes on no gradient")
                self._cut_off[id(value)] = value, value.grad_fn, reason
        return result

    def reason(self, value: Tensor) -> _Reason | None:
        """How this tensor was cut off; `None` if it was not, or has got a graph since."""
        kept, node, reason = self._cut_off.get(id(value), (None, None, None))
        return reason if kept is value and value.grad_fn is node else None


def _reason(name: str, result: Tensor) -> _Reason | None:
    """How a function whose arguments have a graph gives a result that has none; `None` if it is not known."""
    if torch.is_inference_mode_enabled():
        return _Reason(f"its code calls {name} under torch.inference_mode()")
    if not torch.is_grad_enabled():
        return _Reason(f"its code calls {name} under torch.no_grad()")
    if name in ("detach", "detach_"):
        return _Reason(f"its code calls .{name}()")
    if name == "data":
        return _Reason("its code reads .data")
    if not result.is_floating_point():
        return _Reason(f"its code calls {name}, whose result ({result.dtype}) has no derivative")
    return None


def _name(func: Any) -> str:
    """A function's name as it is written in code: `conv2d`, `detach`, `data`."""
    full: str = resolve_name(func) or getattr(func, "__name__", repr(func))
    return full.removesuffix(".__get__").rpartition(".")[2]


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _reaches(value: Tensor, leaf: Tensor) -> bool:
    """Whether the graph below a tensor reaches the leaf."""
    return value is leaf or any(getattr(node, "variable", None) is leaf for node in nodes([value.grad_fn]))


def _not_differentiable(model: Model, start: str, end: str, how: str) -> NetworkError:
    first, last = [
        f"the {name}" if name in ("image", "output") else f"layer {name!r}" for name in (start, end)
    ]
    return NetworkError(
        f"{model.name} cannot be differentiated between {first} and {last}: {how}. "
        "Take that out of its code, or use a technique without gradients (occlusion)"
    )
