"""A network with its preprocessing, class names and layer names."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opsin.base.errors import InputError, NetworkError
from opsin.network.activations import Activations, is_distribution
from opsin.network.backward import differentiating
from opsin.network.checks import check_labels, check_network, check_preprocessing
from opsin.network.fingerprint import Weighed
from opsin.network.forward import Forward, Stop
from opsin.network.lookup import call_named
from opsin.network.outputs import numbers, replaced, unreadable, version
from opsin.network.predictions import Prediction, batches, ranked
from opsin.network.tracing import Call, Trace, spatial_layers, trace
from opsin.network.weights import weight_of

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_locks_lock = threading.Lock()


class Model:
    """A network with its preprocessing, class names and layer names, and the one way to run it.

    Images are always (n, 3, h, w) in [0, 1]; the network is given (images - mean) / std, in its own
    dtype and on its own device. A single mean makes a one-channel (grey) input of the mean over RGB.

    `size` is the side (or height, width) that photos are read at, `crop` the share of the resized
    photo that the centre crop keeps, `labels` the class names in the output's order. With `squash` the
    whole photo is resized to a square before the crop, whatever its shape.

    The layout of a layer's output is found by experiment (`opsin.network.layouts`); if it stays ambiguous,
    techniques refuse the layer until `layouts` states it: `{"blocks.0": "maps_last"}`, one of `maps`
    (n, c, h, w), `maps_last` (n, h, w, c), `tokens` (n, h*w, c), `tokens+1` (one token before the positions)
    and `other`.

    A compiled network (`torch.compile(net)`) is run uncompiled. Raises `InputError` on a `network` that is
    not an `nn.Module`, is scripted or made under inference mode, or has no weights yet (lazy, on the meta
    device), and on invalid preprocessing; at the first run, if there are not as many labels as classes.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        size: int | tuple[int, int],
        labels: Sequence[str] | None = None,
        name: str | None = None,
        crop: float = 1.0,
        interpolation: str = "bicubic",
        squash: bool = False,
        layouts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        check_network(network)
        check_preprocessing(mean, std, size, crop, interpolation, labels)
        self.network: nn.Module = getattr(network, "_orig_mod", network)
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.size: tuple[int, int] = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.labels = tuple(labels) if labels is not None else None
        self.name = name or type(self.network).__name__
        self.crop, self.interpolation, self.squash = crop, interpolation, squash
        self.layouts = dict(layouts)
        with _locks_lock:
            self._lock = _locks.setdefault(self.network, threading.RLock())
        self.loaded: Mapping[str, Any] | None = None  # what was given to `opsin.load`
        self._weighed: Weighed | None = None
        self._overwritten: set[str] = set()  # calls whose output a later operation changes in place
        self._forward = Forward(self.network, self.name, self.mean, self.std)

    def __repr__(self) -> str:
        return f"Model({self.name}, {self.size[0]}x{self.size[1]})"

    def __reduce__(self) -> Any:
        names = ("mean", "std", "size", "labels", "name", "crop", "interpolation", "squash", "layouts")
        return partial(Model, **{name: getattr(self, name) for name in names}), (self.network,)

    @property
    def device(self) -> torch.device:
        """The device of the network's first parameter."""
        return self._forward.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's first floating-point parameter."""
        return self._forward.dtype

    def run(
        self,
        images: Float[Tensor, "n 3 h w"],
        layers: Sequence[str] = ("output",),
        *,
        start: str | None = None,
        parameters: bool = False,
        replace: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({}),
    ) -> Activations:
        """Run the network and return the activations of `layers`.

        `"output"` is the network's result (the first tensor of a tuple, the `.logits` of an object).
        Without it the forward stops after the last requested layer. `start` names where the graph
        begins: `"image"`, or a layer, below which nothing is recorded; `None` records nothing.
        With `parameters` the weights are differentiable too and are returned under their names.
        The output of a layer in `replace` is replaced by the function's result on its channel maps
        (n, c, h, w), whatever its layout, or on its values (n, c) for a vector layer.

        Activations are as the layer returned them: a later in-place operation does not reach them.
        The network is left unchanged, whatever is raised (`untouched` lists what cannot be restored).

        Raises `InputError` on an unknown layer, on "image" and "output" in `replace`, and on images without
        numbers (sparse, meta), `NetworkError` if the forward fails. Threads may share a model.
        """
        if fault := unreadable(images):
            raise InputError(f"a Model runs on a dense tensor (n, 3, h, w), got {fault}")
        if other := {"image", "output"} & replace.keys():
            raise InputError(f"{min(other)!r} is not a layer, so it cannot be replaced")
        wanted = {
            (c.layer, c.index): c.name for c in map(self.call, {*layers, *replace, start or "image"}) if c
        }
        leaf = images.detach().clone() if images.is_inference() else images.detach()
        leaf = leaf.requires_grad_(start == "image")
        activations = Activations(self.calls, self.size)
        activations["image"] = leaf
        versions: dict[str, int] = {}

        def capture(layer: str, index: int, _given: Any, output: Any) -> Any:
            name = wanted.get((layer, index))
            if name is None:
                return None
            value = numbers(output, f"layer {name!r}")
            if name in replace:
                channels = replace[name](activations.as_channels(value, name))
                new = activations.from_channels(channels, name, value)
                output, value = replaced(output, value, new), new
            safe_value = value.clone() if name in self._overwritten else value
            kept = safe_value.detach().requires_grad_() if name == start else safe_value
            activations[name], versions[name] = kept, version(kept)
            if "output" not in layers and activations.keys() >= set(wanted.values()):
                raise Stop
            onward = kept.clone() if record and name in self._overwritten else kept
            return replaced(output, value, onward) if record else output

        record = start is not None or parameters
        result = None
        with self._lock, torch.inference_mode(False), torch.set_grad_enabled(record):
            weights = self._leaves() if parameters else {}
            if wanted or "output" in layers:
                result = self._forward(leaf, {layer for layer, _ in wanted}, capture, weights)
        if changed := {name for name, before in versions.items() if version(activations[name]) != before}:
            self._overwritten |= changed  # the forward took another path than when it was traced
            return self.run(images, layers, start=start, parameters=parameters, replace=replace)
        activations.update(weights)
        if missed := set(wanted.values()) - activations.keys():
            raise NetworkError(f"{self.name} did not reach {', '.join(sorted(missed))} on this input")
        if "output" in layers:
            activations["output"] = numbers(result, self.name)
        return activations

    def watch(self, images: Float[Tensor, "n 3 h w"], see: Callable[[str, Any, Any], None]) -> Any:
        """One forward without a graph; `see` is called with the name, input and output of every layer call.

        Returns the network's result unchanged. Raises `NetworkError` if the forward fails.
        """
        names = {(call.layer, call.index): call.name for call in self.calls.values()}

        def capture(layer: str, index: int, given: Any, output: Any) -> None:
            if name := names.get((layer, index)):
                see(name, given, output)

        with self._lock, torch.inference_mode(False), torch.no_grad():
            return self._forward(images.detach(), {layer for layer, _ in names}, capture, {})

    def call(self, name: str) -> Call | None:
        """The traced call of this name; `None` for `"image"` and `"output"`, which are not layers.

        Raises `InputError`, with valid names, on an unknown one and on one of several calls without its `#k`.
        """
        if name in ("image", "output"):
            return None
        return call_named(name, self.calls, self.network)

    @property
    def calls(self) -> dict[str, Call]:
        """Every layer call of a forward, by name, in the order in which they end.

        A layer that is called once has its own name; the k-th call of one that is called several
        times is `name#k`, counted from 1.
        """
        return self._traced.calls

    @property
    def classes(self) -> int | None:
        """How many classes the output has; `None` if it is not of shape (n, classes)."""
        return self._traced.classes

    @cached_property
    def _traced(self) -> Trace:
        forward = partial(self._forward, weights={})
        with self._lock, torch.inference_mode(False), torch.no_grad():
            try:
                traced = trace(self.network, forward, self._noise(), self.layouts)
            except NetworkError:
                if self._forward.memory_format is torch.contiguous_format:
                    raise
                # for networks that call .view() on maps
                self._forward.memory_format = torch.contiguous_format
                traced = trace(self.network, forward, self._noise(), self.layouts)
        check_labels(self.labels, traced.classes, self.name)
        self._overwritten |= traced.overwritten
        return traced

    @cached_property
    def default_layer(self) -> str:
        """The last layer with a spatial extent on which the output depends.

        Layers that only pool or pass on are not candidates, nor are the linear maps inside attention.
        In a transformer that reads only its class token, it is the last layer whose patches reach the output.

        Raises `NetworkError` if the network has no such layer.
        """
        for layer in spatial_layers(self.calls):
            if self._reaches_output(layer):
                return layer
        from opsin.network.cut import no_default_layer  # noqa: PLC0415 (which needs a Model)

        raise no_default_layer(self)

    def _reaches_output(self, layer: str) -> bool:
        """Whether the output's highest score has a gradient at the layer's positions."""
        run = self.run(self._noise(), ("output", layer), start=layer)
        if not run["output"].requires_grad:
            return False
        with torch.inference_mode(False), torch.enable_grad():
            score = run["output"].amax()
        with differentiating():
            (gradient,) = torch.autograd.grad(score, run[layer], allow_unused=True)
        return gradient is not None and bool(run.as_maps(gradient, layer).any())

    def weigh(self) -> Weighed:
        """The fingerprint of the network's weights, and whether all are finite.

        Computed again if a tensor's version or its middle number has changed: an edit through `.data`
        that does not change that number goes unnoticed.
        """
        with self._lock:
            if self._weighed is None or not self._weighed.holds(self.network):
                self._weighed = Weighed(self.network)
            return self._weighed

    def weights(self, layers: Iterable[str], name: str = "weight") -> dict[str, Tensor]:
        """The `weight` (or `bias`) of each of these modules, as a forward would use it.

        Parametrizations, norms and masks are applied; modules without one are left out.
        """
        with self._lock, torch.inference_mode(False), torch.no_grad(), self._forward.untouched.reading():
            weights = {layer: weight_of(self.network.get_submodule(layer), name) for layer in layers}
        return {layer: weight for layer, weight in weights.items() if weight is not None}

    def statistics(self, channels: int = 3) -> tuple[Float[Tensor, "c 1 1"], Float[Tensor, "c 1 1"]]:
        """The mean and standard deviation that images are normalised with, for `channels` channels."""
        shaped = (torch.tensor(v, device=self.device).view(-1, 1, 1) for v in (self.mean, self.std))
        mean, std = (v.expand(channels, 1, 1) for v in shaped)
        return mean, std

    def label(self, index: int) -> str:
        """The name of class `index`, or e.g. `class 12` if it has none."""
        return self.labels[index] if self.labels and index < len(self.labels) else f"class {index}"

    def predict(self, images: Float[Tensor, "n 3 h w"], k: int = 5) -> list[list[Prediction]]:
        """Each image's `k` most probable classes, the most probable first.

        Raises `InputError` if the output is not (n, classes), `NetworkError` if it is not finite.
        """
        outputs = (self.run(part)["output"] for part in batches(images))
        return ranked(outputs, self.probabilities, self.label, k)

    def probabilities(self, output: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The softmax of the output, or the sigmoid of a single score; a distribution is unchanged."""
        output = output.float()
        if is_distribution(output):
            return output
        return output.softmax(1) if output.shape[1] > 1 else output.sigmoid()

    def _leaves(self) -> dict[str, Tensor]:
        """Differentiable aliases of the parameters by name; copies of those that the forward changes."""
        named = [(name, p) for name, p in self.network.named_parameters() if p.is_floating_point()]
        aliased = ((name, p.clone() if self._forward.untouched.edits(p) else p) for name, p in named)
        return {name: p.detach().requires_grad_() for name, p in aliased}

    def _noise(self) -> Float[Tensor, "1 3 h w"]:
        return torch.rand(1, 3, *self.size, generator=torch.Generator().manual_seed(0)).to(self.device)
