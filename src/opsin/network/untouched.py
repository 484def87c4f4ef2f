"""Leaves a network as it was found, whatever its forward does to it."""

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
    """Keeps one network as it was found.

    What a forward binds anew is bound again as it was: attributes, parameters, buffers, modules, hooks and
    flags. Numbers that it changes in place could not be put back, so the first forward is given copies of all
    tensors and shows which of them it changes; every later one is given copies of these alone. A buffer that
    only a later forward changes is put back; a parameter cannot be, which is a `NetworkError`, and goes
    unnoticed where it is changed through `.data`. What a forward changes inside a Python object that a module
    holds (a list to which it appends) stays changed.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._edited: list[Slot] | None = None  # what forwards change in place; unknown before the first
        self._copies: dict[int, tuple[Tensor, int, Tensor]] = {}  # of buffers, with the version copied

    def edits(self, parameter: Tensor) -> bool:
        """Whether forwards are known to change this parameter in place."""
        return any(_registry(slot).get(slot[2]) is parameter for slot in self._edited or ())

    @contextmanager
    def forward(self) -> Iterator[list[nn.Module]]:
        """All modules, as in `reading`, with copies of the tensors that a forward changes in place."""
        with self.reading() as modules:
            slots = _slots(modules) if self._edited is None else self._edited
            originals = [(slot, t) for slot in slots if _is_plain(t := _registry(slot).get(slot[2]))]
            copies = {id(t): (t, _copy(t)) for _, t in originals}  # one of tensors that are tied
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

        Raises `NetworkError` where a parameter was changed in place.
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
        """A block after which buffers hold the numbers that they held before."""
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
        kept = self._copies.get(id(buffer))
        fresh = kept is not None and kept[0] is buffer and kept[1] == buffer._version
        return kept if kept is not None and fresh else (buffer, buffer._version, buffer.detach().clone())

    def _lost(self, modules: Sequence[nn.Module], changed: Sequence[Tensor]) -> NetworkError:
        """The error for parameters that cannot be put back; later forwards are given copies of them."""
        ids = {id(parameter) for parameter in changed}
        slots = [slot for slot in _slots(modules) if id(_registry(slot)[slot[2]]) in ids]
        if self._edited is not None:
            self._edited += slots
        names = ", ".join([name for name, p in self._network.named_parameters() if id(p) in ids][:4])
        return NetworkError(
            f"{type(self._network).__name__} changed its own weights ({names}) in this forward, "
            "but not when its layers were traced: they cannot be restored; load the network again"
        )


@contextmanager
def _frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """A block in which parameters are frozen, and after which they have their flags and gradients again."""
    found = [(p, p.requires_grad, p.grad) for p in parameters]
    try:
        for parameter, trainable, _ in found:
            if trainable:
                parameter.requires_grad_(False)
        yield
    finally:
        for parameter, trainable, gradient in found:
            if parameter.requires_grad is not trainable:
                parameter.requires_grad_(trainable)
            if parameter.grad is not gradient:
                parameter.grad = gradient


@contextmanager
def _bound(modules: Sequence[nn.Module]) -> Iterator[None]:
    """A block in evaluation mode, after which modules bind what they bound before it."""
    attributes = [(vars(module), vars(module).copy()) for module in modules]
    try:
        for own, found in attributes:  # without the checks of Module.__setattr__
            for name in REGISTRIES:
                own[name] = found[name].copy()
            own["training"] = False
        yield
    finally:
        for own, found in attributes:
            if own.keys() != found.keys():
                for name in own.keys() - found.keys():
                    del own[name]
            own.update(found)


def all_modules(network: nn.Module) -> list[nn.Module]:
    """Every module once; `network.modules()` takes ten times as long."""
    found = {id(network): network}
    todo = [network]
    while todo:
        for child in todo.pop()._modules.values():
            if child is not None and id(child) not in found:
                found[id(child)] = child
                todo.append(child)
    return list(found.values())


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor is plain memory: not sparse, not quantised."""
    return tensor.layout is torch.strided and not tensor.is_quantized


def _registry(slot: Slot) -> dict[str, Any]:
    module, registry, _ = slot
    own = vars(module)
    return own[registry] if registry else own


def _slots(modules: Sequence[nn.Module]) -> list[Slot]:
    """Where all tensors lie that a module holds, attributes that are no buffers among them."""
    places = [(module, registry) for module in modules for registry in ("_parameters", "_buffers", "")]
    return [
        (*place, name)
        for place in places
        for name, value in _registry((*place, "")).items()
        if isinstance(value, Tensor)
    ]


def _is_plain(tensor: Any) -> TypeGuard[Tensor]:
    """Whether a copy of the numbers may take the tensor's place; a subclass may hold more than these."""
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
    a, b = (one.detach().contiguous().reshape(-1).view(torch.uint8) for one in (a, b))
    return torch.equal(a, b)
