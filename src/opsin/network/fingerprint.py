"""Which weights a network holds."""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from opsin.network.untouched import all_modules, is_dense


class Weighed:
    """The SHA-256 of all weights and buffers (names, dtypes, shapes, bytes), and whether all are finite."""

    def __init__(self, network: nn.Module) -> None:
        digest, self.finite = hashlib.sha256(), True
        for name, tensor in _stored(network):
            plain = tensor.dequantize() if tensor.is_quantized else tensor.to_dense()
            flat = plain.detach().cpu().contiguous().reshape(-1)
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(flat.view(torch.uint8).numpy().data)
            self.finite = self.finite and bool(flat.isfinite().all())
        self.fingerprint = digest.hexdigest()
        tensors, self._packed = _held(network)
        self._versions = _versions(tensors)
        # edits through `tensor.data` change numbers but not the version
        readable = [t.detach() for t in tensors if is_dense(t) and t.numel()]
        samples = [t[tuple(side // 2 for side in t.shape)].view(1) for t in readable]
        kinds = {(sample.device, sample.dtype) for sample in samples}
        self._samples = [
            [sample for sample in samples if (sample.device, sample.dtype) == kind] for kind in kinds
        ]
        self._read = self._look()

    def holds(self, network: nn.Module) -> bool:
        """Whether the network still has the same tensors, unchanged."""
        tensors, packed = _held(network)
        same = _versions(tensors) == self._versions and list(map(id, packed)) == list(map(id, self._packed))
        return same and all(map(torch.equal, self._look(), self._read))

    def _look(self) -> list[Tensor]:
        return [torch.cat(views).nan_to_num() for views in self._samples]


def _versions(tensors: Sequence[Tensor]) -> list[tuple[int, int, int]]:
    return [(id(t), t.data_ptr() if is_dense(t) else 0, t._version) for t in tensors]


def _stored(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the state dict by name; quantised linear layers save weight and bias together."""
    for name, value in network.state_dict().items():
        leaves = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        for index, leaf in enumerate(leaves):
            yield name if leaf is value else f"{name}.{index}", leaf


def _held(network: nn.Module) -> tuple[list[Tensor], list[torch.ScriptObject]]:
    """All parameters and buffers, and the objects that quantised layers hold instead."""
    modules = all_modules(network)
    tensors = [t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
    return tensors, [v for m in modules for v in vars(m).values() if isinstance(v, torch.ScriptObject)]
