"""Batch normalisation folded into the convolution before it, for forwards without gradients.

s (W * x + b - mean) + beta with s = gamma / sqrt(var + eps) is W' * x + b' with W' = s W and
b' = s (b - mean) + beta: each normalisation folded saves one pass over the activations.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import batch_norm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from opsin.network.activations import Activations
from opsin.network.model import Model
from opsin.network.regions import NAMES as CONV_NAMES

PRECISE = (torch.float32, torch.float64)  # in half precision W' would lose digits of W
NORM_NAMES = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
NORM_DEFAULTS = {"weight": None, "bias": None, "training": False, "eps": 1e-5}
EQUAL = 1e-3  # of the greatest activation: more than this is not rounding


class Folded:
    """A faster model whose `run` gives these layers' activations, equal up to rounding.

    The weights are those at creation. A convolution is not folded if it is called twice, or if its own
    output is requested or read by anything but the normalisation.
    """

    def __init__(self, model: Model, layers: Sequence[str]) -> None:
        self.model, self.layers = model, tuple(layers)
        image = torch.rand(1, 3, *model.size, generator=torch.Generator().manual_seed(0)).to(model.device)
        plain = model.run(image, self.layers)
        with _Seeing() as seen:
            wanted = model.run(image, self.layers)
        self._mode = _Folding(seen.pairs(list(wanted.values())))
        folded = self.run(image)
        if not all(_equal(folded[layer], plain[layer]) for layer in self.layers):
            self._mode = _Folding({})

    def run(self, images: Float[Tensor, "n 3 h w"]) -> Activations:
        """The activations of the layers."""
        with self._mode as mode:
            run = self.model.run(images, self.layers)
        if mode.open:  # on these images the forward takes another path than when it was examined
            mode.open.clear()
            return self.model.run(images, self.layers)
        return run


class _Seeing(TorchFunctionMode):
    """Records every convolution and the functions that read its output."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions: list[tuple[dict[str, Any], Tensor]] = []  # arguments and output
        self.readers: dict[
            int, list[dict[str, Any] | None]
        ] = {}  # of an output: arguments of a normalisation, or `None`

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(
            isinstance(leaf, Tensor) for leaf in tree_leaves(result)
        ):  # not a query for a shape or the like
            norm = _named(NORM_NAMES, args, kwargs) if func is batch_norm else None
            for leaf in tree_leaves((args, kwargs)):
                if id(leaf) in self.readers:
                    self.readers[id(leaf)].append(norm)
        if func is torch.conv2d:
            self.convolutions.append((_named(CONV_NAMES, args, kwargs), result))
            self.readers[id(result)] = []
        return result

    def pairs(self, wanted: Sequence[Tensor]) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
        """Running mean, W' and b' of each convolution that can be folded, by the id of its weight."""
        weights = [id(arguments["weight"]) for arguments, _ in self.convolutions]
        folds = {}
        for arguments, output in self.convolutions:
            weight, readers = arguments["weight"], self.readers[id(output)]
            free = weights.count(id(weight)) == 1 and not any(tensor is output for tensor in wanted)
            norm = readers[0] if len(readers) == 1 else None
            if not (free and norm and weight.dtype in PRECISE) or norm["input"] is not output:
                continue
            norm = {**NORM_DEFAULTS, **norm}
            if norm["training"] or norm["running_mean"] is None:
                continue
            mean, var = norm["running_mean"].double(), norm["running_var"].double()
            gamma, beta = (
                1 if tensor is None else tensor.double() for tensor in (norm["weight"], norm["bias"])
            )
            scale = gamma / (var + norm["eps"]).sqrt()
            bias = 0 if arguments.get("bias") is None else arguments["bias"].double()
            shift = scale * (bias - mean) + (0 if norm["bias"] is None else beta)
            kernel = (weight.double() * scale.view(-1, 1, 1, 1)).to(weight)
            folds[id(weight)] = (norm["running_mean"], kernel, shift.to(weight))
        return folds


class _Folding(TorchFunctionMode):
    """Runs convolutions with W' and b', and skips the normalisations after them."""

    def __init__(self, kernels: dict[int, tuple[Tensor, Tensor, Tensor]]) -> None:
        super().__init__()
        self.kernels = kernels
        self.open: dict[int, tuple[Tensor, Tensor]] = {}  # outputs that await their normalisation

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d:
            given = _named(CONV_NAMES, args, kwargs)
            if fold := self.kernels.get(id(given["weight"])):
                mean, given["weight"], given["bias"] = fold
                result = func(**given)
                self.open[id(result)] = result, mean
                return result
        elif func is batch_norm and self.open:
            given = _named(NORM_NAMES, args, kwargs)
            waiting = self.open.get(id(given["input"]))
            if waiting is not None and waiting[1] is given["running_mean"]:
                return self.open.pop(id(given["input"]))[0]
        return func(*args, **(kwargs or {}))


def _named(names: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any] | None) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **(kwargs or {})}


def _equal(values: Tensor, expected: Tensor) -> bool:
    magnitudes = expected[expected.isfinite()].abs()
    largest = float(magnitudes.amax()) if len(magnitudes) else 0.0
    return torch.allclose(values, expected, rtol=0, atol=EQUAL * largest, equal_nan=True)
