"""Rules for rectifiers in the backward pass.

A rule acts on the autograd graph of one forward, not on modules, so that it finds every spelling of a
rectifier and does not modify the network. Rectifiers are the functions with one kink at
zero, whose slope below zero is smaller than above: ReLU, ReLU6, clamp and threshold at zero, maximum with
zero, LeakyReLU, PReLU and RReLU. Every other activation (SiLU, GELU, hardswish, ELU, softplus, sigmoid ...)
keeps its own derivative, and the result's record names it. So does a rectifier that is written with
other operations, as `torch.where(x > 0, x, 0)` or `x * (x > 0)`: a graph does not show their purpose.
Custom autograd functions, which hide what they do, and operations with a kink that ordinary networks do not
have (abs, minimum, the maximum of two ...) are named with a caution.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from opsin.base.errors import NetworkError
from opsin.base.job import CAUTION, note
from opsin.gradients.custom import CustomFunctions, is_custom
from opsin.gradients.operations import kind, role
from opsin.network.backward import differentiating
from opsin.network.graph import nodes


@dataclass(frozen=True)
class Rule:
    """A backward rule R_in = gate * signal(R_out), without the gate if `gated` is false.

    R_out is the gradient at the rectifier's output, gate the rectifier's own derivative.
    """

    name: str
    signal: Callable[[Tensor], Tensor]
    gated: bool


deconvnet = Rule("deconvnet", torch.relu, gated=False)
guided = Rule("guided", torch.relu, gated=True)
passing = Rule("passing", lambda signal: signal, gated=False)  # as if every rectifier were open

# nodes that hide operations, possibly rectifiers, from the graph
OPAQUE = ("CompiledFunction", "CheckpointFunction", "torch::jit")
# Descriptions of what a rule passes over; custom functions by whether they returned relu of their input.
CUSTOM = {
    True: "custom functions ({}) whose output equals relu(input) on this run; it would act on torch.relu",
    None: "custom functions ({}), which may be rectifiers",
    False: "custom functions ({}) whose output is not relu(input) on this run",
}
UNKNOWN = "operations ({}) that a rectifier may be written with"


@contextmanager
def applied(rule: Rule, roots: Sequence[Tensor], custom: CustomFunctions | None = None) -> Iterator[None]:
    """Within the block, backward passes through the graph below `roots` follow `rule`.

    `custom` observed the run that made the graph, and knows the outputs of the network's custom functions.
    They and unknown operations are passed over with a caution: they may be rectifiers.

    Raises `NetworkError` if the rule meets no rectifier (the answer would silently be the plain gradient),
    or if part of the graph is hidden (compiled, scripted or checkpointed networks).
    """
    custom = custom or CustomFunctions()
    for root in roots:
        custom.see(root)
    met: Counter[str] = Counter()
    others: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    functions: dict[bool | None, Counter[str]] = {answer: Counter() for answer in CUSTOM}
    with ExitStack() as stack:
        for node in nodes(root.grad_fn for root in roots):
            name = node.name()
            if name.startswith(OPAQUE):
                raise NetworkError(
                    f"the {rule.name} rule cannot see inside {name}: run the network uncompiled, "
                    "unscripted and without gradient checkpointing"
                )
            # one edge: relu_ and the like; add_, mul_ and assignment have two, and hide nothing
            if name == "torch::autograd::CopySlices" and len(node.next_functions) == 1:
                raise NetworkError(
                    f"the {rule.name} rule cannot see what an in-place operation on a view does: "
                    "make it out of place"
                )
            if is_custom(node):
                functions[custom.rectifies(node)][kind(node)] += 1
                continue
            with differentiating():  # a rectifier's bound may be a tensor that has changed since
                does = role(node)
            if does == "rectifier":
                met[kind(node)] += 1
                stack.callback(_hooked(node, rule).remove)
            elif does == "activation":
                others[kind(node)] += 1
            elif does == "unknown":
                unknown[kind(node)] += 1
        passed_over = [
            words.format(_listed(functions[answer])) for answer, words in CUSTOM.items() if functions[answer]
        ]
        if unknown:
            passed_over.append(UNKNOWN.format(_listed(unknown)))
        if not met:
            details = f"; it saw {_listed(others)}" if others else ""
            details += "".join(f"; it passed over {operations}" for operations in passed_over)
            raise NetworkError(
                f"the {rule.name} rule met no rectifier between the target and the image{details}: "
                "the answer would be the plain gradient (use saliency for that)"
            )
        note(f"the {rule.name} rule acted on {_listed(met)}")
        if others:
            note(f"not rectifiers, so left unchanged: {_listed(others)}")
        for operations in passed_over:
            note(f"{CAUTION}the {rule.name} rule passed over {operations}")
        yield


def _hooked(node: Node, rule: Rule) -> Any:
    if rule.gated:
        return node.register_prehook(lambda gradients: (rule.signal(gradients[0]), *gradients[1:]))

    def ungated(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> tuple[Any, ...]:
        index = next(
            i for i, gradient in enumerate(inputs) if gradient is not None
        )  # the second of maximum(0, x)
        return (*inputs[:index], rule.signal(outputs[0]), *inputs[index + 1 :])

    return node.register_hook(ungated)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ×{count}" for name, count in sorted(counts.items()))
