"""The one place that runs a network."""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from opsin.base.errors import NetworkError, OpsinError
from opsin.network.tracing import Capture
from opsin.network.untouched import Untouched, all_modules
from opsin.network.weights import is_quantised, refuse_gradient


class Stop(BaseException):
    """Ends a forward after the last requested layer."""


class _NotOfTheNetwork(BaseException):
    """Carries an error of a `capture` function through the network, apart from the network's own errors."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class Forward:
    """Runs a network on images in [0, 1], which it normalises; leaves the network unchanged.

    Raises `NetworkError` if the network fails.
    """

    def __init__(self, network: nn.Module, name: str, mean: Sequence[float], std: Sequence[float]) -> None:
        self.network, self.name, self.mean, self.std = network, name, mean, std
        self.untouched = Untouched(network)
        # On CPUs channels_last takes 0.69 to 1.0 of the time (benchmarks/attribution.py)
        on_cpu = self.device.type == "cpu"
        self.memory_format = torch.channels_last if on_cpu else torch.contiguous_format

    @property
    def device(self) -> torch.device:
        """The device of the network's first parameter."""
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's first floating-point parameter."""
        floats = (p.dtype for p in self.network.parameters() if p.is_floating_point())
        return next(floats, torch.float32)

    def __call__(self, images: Tensor, layers: set[str], capture: Capture, weights: dict[str, Tensor]) -> Any:
        """One forward that calls `capture` after every call of `layers`; leaves the network unchanged."""
        x = images.mean(1, keepdim=True) if len(self.mean) == 1 else images
        x = x.to(self.device, self.dtype)
        mean, std = x.new_tensor(self.mean).view(-1, 1, 1), x.new_tensor(self.std).view(-1, 1, 1)
        x = ((x - mean) / std).contiguous(memory_format=self.memory_format)
        counts: Counter[str] = Counter()

        def hook(layer: str, _module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            counts[layer] += 1
            try:
                return capture(layer, counts[layer], (args, kwargs), output)
            except Exception as error:
                raise _NotOfTheNetwork(error) from error

        with ExitStack() as stack:
            if any(module.training for module in all_modules(self.network)):
                # a backward would recompute activations in training mode
                message = (
                    "gradient checkpointing recomputes activations in training mode: call .eval() before"
                )
                stack.enter_context(torch.autograd.graph.disable_saved_tensors_hooks(message))
            # hooks need not be removed: `untouched` restores them
            for module in stack.enter_context(self.untouched.forward()):
                if torch.is_grad_enabled() and is_quantised(module):
                    module.register_forward_pre_hook(refuse_gradient)
            for layer in layers:
                module = self.network.get_submodule(layer)
                module.register_forward_hook(partial(hook, layer), with_kwargs=True)
            try:
                return functional_call(self.network, dict(weights), (x,)) if weights else self.network(x)
            except Stop:
                return None
            except _NotOfTheNetwork as carrier:
                raise carrier.error from carrier.error.__cause__
            except (OpsinError, torch.OutOfMemoryError):
                raise
            except (Exception, SystemExit) as error:
                shape = "x".join(map(str, x.shape))
                message = str(error) if isinstance(error, Exception) else repr(error)
                raise NetworkError(f"{self.name} failed on an input of {shape}: {message}") from error
