"""Restores a network after a forward, whatever the forward does to it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from opsin.base.errors import NetworkError

# Where a module keeps its parameters, buffers, modules and hooks
REGISTRIES = tuple(name for name, value in vars(nn.Module()).items() if isinstance(value, dict | set))

Slot = tuple[nn.Module, str, str]  # a module, one of its registries or "" for its attributes, a name there


class Untouched:
    """Keeps one network unchanged.

    Whatever a forward rebinds is restored: attributes, parameters, buffers, modules, hooks and flags.
    In-place changes cannot be undone, so the first forward runs on copies of all tensors, which shows which
    it changes; later forwards run on copies of these only. A buffer that only a later forward changes is
    restored; a changed parameter raises `NetworkError`, or goes unnoticed if it is changed through `.data`.
    Changes inside a Python object that a module holds (a list to which a forward appends) remain.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._edited: list[Slot] | None = None  # tensors that forwards change in place; at first unknown
        self._copies: dict[int, tuple[Tensor, int, Tensor]] = {}  # of buffers, with the copied version

    def edits(self, parameter: Tensor) -> bool:
        """Whether forwards are known to change this parameter in place."""
        return any(_registry(slot).get(slot[2]) is parameter for slot in self._edited or ())

    @contextmanager
    def forward(self) -> Iterator[list[nn.Module]]:
        """All modules, as in `reading`, with copies of the tensors that a forward changes in place."""
        with self.reading() as modules:
            slots = _slots(modules) if self._edited is None else self._edited
            originals = [(slot, t) for slot in slots if _is_plain(t := _registry(slot).get(slot[2]))]
            copies = {id(t): (t, _copy(t)) for _, t in originals}  # one copy of tied tensors
            pointers = {key: copy.data_ptr() for key, (_, copy) in copies.items()}
            for slot, tensor in originals:
                _registry(slot)[slot[2]] = copies[id(tensor)][1]
            yield modules
            if self._edited is None:
                changed = {
                    key
                    for key, (tensor, copy) in copies.items()
                    if copy._version or copy.data_ptr() != pointers[key] or not _equal(copy, tensor)
                }
                self._edited = [slot for slot, tensor in originals if id(tensor) in changed]

    @contextmanager
    def reading(self) -> Iterator[list[nn.Module]]:
        """All modules, in evaluation mode and with frozen parameters until the block ends.

        Raises `NetworkError` if a parameter was changed in place.
        """
        modules = all_modules(self._network)
        parameters = [p for m in modules for p in m._parameters.values() if p is not None]
        buffers = [b for m in modules for b in m._buffers.values() if b is not None]
        before = [p._version for p in parameters]
        devices = {t.device for t in (*parameters, *buffers) if t.is_cuda}
        with torch.random.fork_rng(devices), self._kept(buffers), _frozen(parameters), _bound(modules):
            yield modules
        if (after := [p._version for p in parameters]) != before:
            changed = [p for p, a, b in zip(parameters, before, after, strict=True) if a != b]
            raise self._lost(modules, changed)

    @contextmanager
    def _kept(self, buffers: Sequence[Tensor]) -> Iterator[None]:
        """A block after which buffers have the values that they had before."""
        self._copies = {id(buffer): self._copied(buffer) for buffer in buffers}
        try:
            yield
        finally:
            for key, (buffer, version, copy) in list(self._copies.items()):
                if buffer._version != version:
                    with torch.no_grad():
                        buffer.copy_(copy)
                    del self._copies[key]

    def _copied(self, buffer: Tensor) -> tuple[Tensor, int, Tensor]:
        known = self._copies.get(id(buffer))
        is_current = known is not None and known[0] is buffer and known[1] == buffer._version
        return (
            known if known is not None and is_current else (buffer, buffer._version, buffer.detach().clone())
        )

    def _lost(self, modules: Sequence[nn.Module], changed: Sequence[Tensor]) -> NetworkError:
        """The error for parameters that cannot be restored; later forwards run on copies of them."""
        ids = {id(parameter) for parameter in changed}
        slots = [slot for slot in _slots(modules) if id(_registry(slot)[slot[2]]) in ids]
        if self._edited is not None:
            self._edited += slots
        names = ", ".join([name for name, p in self._network.named_parameters() if id(p) in ids][:4])
        return NetworkError(
            f"{type(self._network).__name__} changed its own weights ({names}) in this forward, "
            "but not when its layers were traced: they cannot be restored, load the network again"
        )


@contextmanager
def _frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """A block in which parameters are frozen; afterwards their flags and gradients are restored."""
    states = [(p, p.requires_grad, p.grad) for p in parameters]
    try:
        for parameter, trainable, _ in states:
            if trainable:
                parameter.requires_grad_(False)
        yield
    finally:
        for parameter, trainable, gradient in states:
            if parameter.requires_grad is not trainable:
                parameter.requires_grad_(trainable)
            if parameter.grad is not gradient:
                parameter.grad = gradient


@contextmanager
def _bound(modules: Sequence[nn.Module]) -> Iterator[None]:
    """A block in evaluation mode; afterwards the attributes of modules are restored."""
    attributes = [(vars(module), vars(module).copy()) for module in modules]
    try:
        for current, original in attributes:  # without the checks of Module.__setattr__
            for name in REGISTRIES:
                current[name] = original[name].copy()
            current["training"] = False
        yield
    finally:
        for current, original in attributes:
            if current.keys() != original.keys():
                for name in current.keys() - original.keys():
                    del current[name]
            current.update(original)


def all_modules(network: nn.Module) -> list[nn.Module]:
    """Every module once; `network.modules()` takes ten times as long."""
    modules = {id(network): network}
    todo = [network]
    while todo:
        for child in todo.pop()._modules.values():
            if child is not None and id(child) not in modules:
                modules[id(child)] = child
                todo.append(child)
    return list(modules.values())


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor is plain memory: not sparse, not quantised."""
    return tensor.layout is torch.strided and not tensor.is_quantized


def _registry(slot: Slot) -> dict[str, Any]:
    module, registry, _ = slot
    attributes = vars(module)
    return attributes[registry] if registry else attributes


def _slots(modules: Sequence[nn.Module]) -> list[Slot]:
    """The slots of all tensors that modules hold, including attributes that are not buffers."""
    registries = [(module, registry) for module in modules for registry in ("_parameters", "_buffers", "")]
    return [
        (*registry, name)
        for registry in registries
        for name, value in _registry((*registry, "")).items()
        if isinstance(value, Tensor)
    ]


def _is_plain(tensor: Any) -> TypeGuard[Tensor]:
    """Whether a copy of the numbers may replace the tensor; a subclass may hold more than numbers."""
    return type(tensor) in (Tensor, nn.Parameter) and is_dense(tensor)


def _copy(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        copy = nn.Parameter(copy, requires_grad=False)
    vars(copy).update(vars(tensor))
    return copy


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two dense tensors hold the same numbers, NaN for NaN."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if torch.equal(a, b):
        return True
    a, b = (tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b))
    return torch.equal(a, b)
