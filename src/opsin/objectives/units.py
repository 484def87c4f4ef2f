"""Objectives on classes, channels and units."""

import re
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.errors import InputError
from opsin.base.job import CAUTION, note
from opsin.network.activations import Activations, is_distribution
from opsin.objectives.objective import Objective, check_finite, written


def separated(text: str) -> list[str]:
    """The parts of a text between semicolons outside brackets: one objective per image."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[();]", text):
        if match.group() != ";":
            depth += 1 if match.group() == "(" else -1
        elif depth <= 0:
            parts.append(text[start : match.start()])
            start = match.end()
    return [part.strip() for part in (*parts, text[start:])]


def logit(index: int, name: str | None = None) -> Objective:
    """The score of one class before the softmax."""

    def score(activations: Activations) -> Tensor:
        output = _classes(activations)
        if not 0 <= index < output.shape[1]:
            raise InputError(
                f"class {index} does not exist: the output has classes 0 to {output.shape[1] - 1}"
            )
        return output[:, index]

    return Objective(name or str(index), ("output",), score, class_index=index)


def predicted() -> Objective:
    """The score of each image's most probable class."""
    return Objective(
        "predicted class",
        ("output",),
        lambda a: _classes(a).max(1).values,  # the first of equal scores, like argmax; amax would mix them
        lambda a, i: logit(int(_classes(a)[i].argmax())),
    )


PREDICTED = predicted()


def strongest(layer: str) -> Objective:
    """The unit of a layer that is most active: the greatest of all channels and positions, in each image."""

    def at(activations: Activations, image: int) -> Objective:
        values = activations.channels(layer)[image]  # (c, h, w) or (c,)
        index, *position = (int(i) for i in torch.unravel_index(values.argmax(), values.shape))
        return unit(layer, index, *position) if position else channel(layer, index)

    def score(activations: Activations) -> Tensor:
        return activations.channels(layer).flatten(1).max(1).values

    return Objective(f"strongest({layer})", (layer,), score, at)


def _without_layer(activations: Activations) -> Tensor:
    raise InputError("the strongest unit is one of a layer: name the layer, as strongest(LAYER)")


# Of the model's default layer, which `opsin.objectives.parsing.resolve` puts in its place
STRONGEST = Objective("strongest unit", (), _without_layer)


def channel(layer: str, index: int) -> Objective:
    """The mean of one channel of a layer over its positions."""

    def score(activations: Activations) -> Tensor:
        return _channel(activations, layer, index)[:, None].flatten(1).mean(1)  # (n, h, w) or (n,) -> (n,)

    return Objective(f"{layer}:{index}", (layer,), score)


def unit(layer: str, index: int, row: int, column: int) -> Objective:
    """One channel of a layer at one position."""

    def score(activations: Activations) -> Tensor:
        values = _channel(activations, layer, index)
        if values.ndim != 3:
            raise InputError(f"layer {layer!r} has no positions: write {layer}:{index}")
        h, w = values.shape[1:]
        if not (0 <= row < h and 0 <= column < w):
            raise InputError(f"position {row},{column} is outside layer {layer!r}, which is {h}x{w} here")
        return values[:, row, column]

    return Objective(f"{layer}:{index}@{row},{column}", (layer,), score)


def neuron(layer: str, index: int) -> Objective:
    """One channel of a layer at its central position."""

    def score(activations: Activations) -> Tensor:
        values = _channel(activations, layer, index)
        return values[:, values.shape[1] // 2, values.shape[2] // 2] if values.ndim == 3 else values

    return Objective(f"neuron({layer}, {index})", (layer,), score)


def direction(layer: str, vector: Sequence[float]) -> Objective:
    """The mean over positions of a layer's features along a direction: Σ_k v_k A_k."""
    for value in vector:
        check_finite(value)
    named = ", ".join(written(value) for value in vector)

    def score(activations: Activations) -> Tensor:
        values = activations.channels(layer)
        if values.shape[1] != len(vector):
            raise InputError(
                f"layer {layer!r} has {values.shape[1]} channels, but the direction has {len(vector)} numbers"
            )
        means = values.reshape(*values.shape[:2], -1).mean(2)  # (n, c, h, w) or (n, c) -> (n, c)
        return means @ means.new_tensor(vector)

    return Objective(f"direction({layer}, {named})", (layer,), score)


def energy(layer: str) -> Objective:
    """Half the mean square of a layer's units: its gradient is the activations themselves (DeepDream).

    Tokens that are not positions (a class token) are left out.
    """
    return Objective(f"energy({layer})", (layer,), lambda a: a.units(layer).square().flatten(1).mean(1) / 2)


def each(objectives: Sequence[Objective]) -> Objective:
    """A different objective for every image: the i-th score is the i-th objective's."""
    layers = tuple(dict.fromkeys(layer for o in objectives for layer in o.layers))

    def score(activations: Activations) -> Tensor:
        singles = activations.singles(layers)
        if len(singles) != len(objectives):
            raise InputError(f"{len(objectives)} objectives for {len(singles)} images: give one per image")
        return torch.cat([o.score(single) for o, single in zip(objectives, singles, strict=True)])

    name = "; ".join(o.name for o in objectives)
    return Objective(name, layers, score, lambda a, i: objectives[i].for_image(a, i), len(objectives))


def pinned(target: Objective, run: Activations) -> Objective:
    """The objective of a later batch in which each image keeps the objective that `target` is in `run`."""
    return each([target.for_image(run, index) for index in range(len(run["image"]))])


def _classes(activations: Activations) -> Float[Tensor, "n c"]:
    output = activations["output"]
    if output.ndim != 2:
        raise InputError(
            f"a class needs an output of (n, classes), this network gives {tuple(output.shape)}: give a "
            "channel of a layer as the target, as LAYER:0 (`opsin layers MODEL` lists the layers)"
        )
    if is_distribution(output):
        note(
            f"{CAUTION}the network's output holds probabilities: the score is not the one before the softmax"
        )
    return output


def _channel(activations: Activations, layer: str, index: int) -> Tensor:
    values = activations.channels(layer)
    if not 0 <= index < values.shape[1]:
        raise InputError(f"layer {layer!r} has channels 0 to {values.shape[1] - 1}, not {index}")
    return values[:, index]
