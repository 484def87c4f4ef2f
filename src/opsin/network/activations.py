"""The activations of layers in a run, in one layout whatever the network's own is."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.errors import NetworkError
from opsin.network.tracing import Call


class Activations(dict[str, Tensor]):
    """The activations of the requested layers by name; `"image"` is always among them."""

    def __init__(self, calls: dict[str, Call], size: tuple[int, int]) -> None:
        super().__init__()
        self._calls = calls
        self._size = size

    def singles(self, layers: Sequence[str]) -> "list[Activations]":
        """Each image's own activations of some layers.

        They are split all at once: indexing one by one would allocate a gradient of the whole batch for each.
        """
        parts = {layer: self[layer].split(1) for layer in dict.fromkeys((*layers, "image"))}
        singles = [Activations(self._calls, self._size) for _ in range(len(self["image"]))]
        for index, single in enumerate(singles):
            single.update({layer: split[index] for layer, split in parts.items()})
        return singles

    def maps(self, layer: str) -> Float[Tensor, "n c h w"]:
        """The activations of `layer` as channel maps, whatever the network's own layout is."""
        return self.as_maps(self[layer], layer)

    def as_maps(self, values: Tensor, layer: str) -> Float[Tensor, "n c h w"]:
        """Values of the shape of `layer`'s activations (a gradient, say) as channel maps.

        Raises `NetworkError` if the layer has no spatial extent.
        """
        call = self._calls.get(layer)
        layout = call.layout if call else "other"
        if layout == "maps" or layer == "image":
            return values
        if layout == "maps_last":
            return values.permute(0, 3, 1, 2)  # (n, h, w, c) -> (n, c, h, w)
        if call is None or call.extent is None or layout != "tokens":
            if call is not None and call.undecided:
                raise undecided(call)
            raise NetworkError(
                f"layer {layer!r} gives {tuple(values.shape)}: no spatial extent to make a map of"
            )
        height, width = self["image"].shape[-2:]
        patches = values[:, call.prefix :].transpose(1, 2)  # (n, prefix + h*w, c) -> (n, c, h*w)
        h = round(call.extent[0] * height / self._size[0])
        w = round(call.extent[1] * width / self._size[1])
        if h * w != patches.shape[2]:
            raise NetworkError(f"layer {layer!r} gives {patches.shape[2]} tokens, which do not tile {h}x{w}")
        return patches.reshape(*patches.shape[:2], h, w)  # (n, c, h*w) -> (n, c, h, w)

    def channels(self, layer: str) -> Tensor:
        """The activations of `layer` with the channel in dimension 1: maps, or (n, c) for a vector layer."""
        return self.as_channels(self[layer], layer)

    def pooled(self, layer: str) -> Float[Tensor, "n c"]:
        """The activations of `layer`, averaged over positions."""
        values = self.channels(layer)
        return values.reshape(*values.shape[:2], -1).mean(2)  # (n, c, h, w) or (n, c) -> (n, c)

    def units(self, layer: str) -> Tensor:
        """The activations of `layer` without tokens that are not positions; all of an unknown layout."""
        call = self._calls.get(layer)
        return self[layer] if call is None or call.layout == "other" else self.channels(layer)

    def as_channels(self, values: Tensor, layer: str) -> Tensor:
        """Values of the shape of `layer`'s activations with the channel in dimension 1."""
        call = self._calls.get(layer)
        flat = layer == "output" or (call is not None and call.layout == "vector")
        return values if flat else self.as_maps(values, layer)

    def from_channels(self, values: Tensor, layer: str, own: Tensor) -> Tensor:
        """The inverse of `as_channels`: laid out like the layer's output `own`, with its other tokens."""
        call = self._calls.get(layer)
        if call is None or call.layout in ("maps", "vector"):
            return values
        if call.layout == "maps_last":
            return values.permute(0, 2, 3, 1)  # (n, c, h, w) -> (n, h, w, c)
        patches = values.flatten(2).transpose(1, 2)  # (n, c, h, w) -> (n, h*w, c)
        return torch.cat([own[:, : call.prefix], patches], 1)


def is_distribution(output: Float[Tensor, "n c"]) -> bool:
    """Whether every row holds probabilities that sum to one, as after a softmax."""
    sums = output.detach().float().sum(1)
    return (
        output.shape[1] > 1
        and bool((output >= 0).all())
        and torch.allclose(sums, sums.new_ones(1), atol=1e-3)
    )


def undecided(call: Call) -> NetworkError:
    """The error for a layer whose layout is ambiguous."""
    ways = " or ".join(f"{str(reading)!r}" for reading in call.undecided)
    return NetworkError(
        f"layer {call.name!r} gives {call.shape}, whose layout may be {ways}: "
        f"say which, as in Model(..., layouts={{{call.name!r}: {str(call.undecided[0])!r}}})"
    )
