"""Which layer a classifier reads."""

import torch
from torch import nn
from torch.nn.functional import linear

from opsin.network.model import Model


def classifier_input(model: Model) -> str:
    """The layer whose output, averaged over positions, is the input of the last linear layer.

    If there is none (the network ends in a convolution, or a function that is not a layer comes between), it
    is the last layer with a spatial extent.
    """
    calls = list(model.calls.values())
    linear_indices = [
        i for i, c in enumerate(calls) if isinstance(model.network.get_submodule(c.layer), nn.Linear)
    ]
    if not linear_indices or calls[linear_indices[-1]].layout != "vector":
        return model.default_layer
    head = calls[linear_indices[-1]].layer
    weight, bias = model.weights([head])[head], model.weights([head], "bias").get(head)
    image = torch.rand(1, 3, *model.size, generator=torch.Generator().manual_seed(0)).to(model.device)
    for call in reversed(calls[: linear_indices[-1]]):
        if call.layout not in ("vector", "maps", "maps_last") or weight.shape[1] not in call.shape:
            continue
        run = model.run(image, (call.name, "output"))
        features = run.pooled(call.name)
        if features.shape[1] == weight.shape[1] and run["output"].ndim == 2:
            output = linear(features, weight, bias)
            if output.shape == run["output"].shape and torch.allclose(
                output, run["output"].to(output), rtol=1e-2, atol=1e-2
            ):
                return call.name
    return model.default_layer
