"""What is asked of a network: a class, a unit, a channel, a weighted sum of these.

The text form, for the command line and the record:

    tabby cat                         a class by name, a unique part of its name, or its index (281)
    blocks.5:12                       channel 12 of a layer: its mean over positions
    blocks.5:12@3,4                   one unit: channel 12 at row 3, column 4
    1.5*blocks.5:12 - blocks.5:30     weighted sums; the signs stand between spaces
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from opsin.errors import InputError, unknown
from opsin.model import Activations, Model, is_distribution
from opsin.results import CAUTION, note

UNIT = re.compile(r"^(?P<layer>.+):(?P<channel>\d+)(@(?P<row>\d+), ?(?P<column>\d+))?$")
TERM = re.compile(r"^(?:(?P<weight>[+-]?\d*\.?\d+(?:e[+-]?\d+)?)\*)?(?P<body>.+)$")
MAX_CANDIDATES = 12


@dataclass(frozen=True)
class Objective:
    """A score to differentiate or to climb: `score(activations)` gives one number an image, (n,).

    It declares the `layers` it reads; `"image"` and `"output"` are among the valid ones. Objectives
    add, subtract and scale: `2 * channel("conv1", 3) - logit(281)`.
    """

    name: str
    layers: tuple[str, ...]
    score: Callable[[Activations], Float[Tensor, " n"]]
    single: Callable[[Activations, int], "Objective"] | None = None

    def for_image(self, activations: Activations, index: int) -> "Objective":
        """What this objective asks of image `index` of the run: the same of any batch made from it.

        The predicted class is then the one predicted here, whatever is done to the image later.
        """
        return self.single(activations, index) if self.single else self

    def __add__(self, other: "Objective") -> "Objective":
        return self._with(other, " + ", torch.add)

    def __sub__(self, other: "Objective") -> "Objective":
        return self._with(other, " - ", torch.sub)

    def __mul__(self, weight: float) -> "Objective":
        return Objective(
            f"{weight:g}*{self._bracketed()}",
            self.layers,
            lambda a: weight * self.score(a),
            lambda a, i: self.for_image(a, i) * weight,
        )

    __rmul__ = __mul__

    def __neg__(self) -> "Objective":
        return -1.0 * self

    def _with(
        self, other: "Objective", sign: str, combine: Callable[[Tensor, Tensor], Tensor]
    ) -> "Objective":
        right = other._bracketed() if sign == " - " else other.name
        return Objective(
            self.name + sign + right,
            tuple(dict.fromkeys(self.layers + other.layers)),
            lambda a: combine(self.score(a), other.score(a)),
            lambda a, i: self.for_image(a, i)._with(other.for_image(a, i), sign, combine),
        )

    def _bracketed(self) -> str:
        return f"({self.name})" if re.search(r" [+-] ", self.name) else self.name


def logit(index: int, name: str | None = None) -> Objective:
    """The score of one class before the softmax."""

    def score(activations: Activations) -> Tensor:
        output = _classes(activations)
        if not 0 <= index < output.shape[1]:
            raise InputError(
                f"class {index} does not exist: the output has classes 0 to {output.shape[1] - 1}"
            )
        return output[:, index]

    return Objective(name or str(index), ("output",), score)


def predicted() -> Objective:
    """The score of each image's most probable class."""
    return Objective(
        "predicted class",
        ("output",),
        lambda a: _classes(a).max(1).values,  # of equal ones the first, as argmax; amax would mix them
        lambda a, i: logit(int(_classes(a)[i].argmax())),
    )


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


def each(objectives: Sequence[Objective]) -> Objective:
    """A different objective for every image: the i-th score is the i-th objective's."""
    layers = tuple(dict.fromkeys(layer for o in objectives for layer in o.layers))

    def score(activations: Activations) -> Tensor:
        return torch.stack([o.score(activations)[i] for i, o in enumerate(objectives)])

    return Objective(
        "; ".join(o.name for o in objectives), layers, score, lambda a, i: objectives[i].for_image(a, i)
    )


def pinned(target: Objective, run: Activations) -> Objective:
    """The objective that asks of every image of a later batch what `target` asks of it in `run`."""
    return each([target.for_image(run, index) for index in range(len(run["image"]))])


def resolve(target: object, model: Model, n: int | None = None) -> Objective:
    """The objective that a user means by `target`.

    An `Objective`, a class index, a text, `None` for each image's predicted class, or a sequence of
    these with one for each of `n` images. Raises `InputError` on anything else, naming what fits.
    """
    if target is None:
        return predicted()
    if isinstance(target, Objective):
        return target
    if isinstance(target, Tensor | np.ndarray | np.generic):
        target = target.tolist()  # a class index, or one for each image
    if isinstance(target, int) and not isinstance(target, bool):
        return logit(target, _class_name(target, model))
    if isinstance(target, str):
        return parse(target, model)
    if isinstance(target, Sequence):
        if len(target) != n:
            raise InputError(f"{len(target)} targets for {n} images: give one for all, or one an image")
        return each([resolve(one, model) for one in target])
    raise InputError(f"a target is a class, a text or an Objective, got {target!r}")


def parse(text: str, model: Model) -> Objective:
    """The objective that `text` writes, in the form that this module's docstring shows."""
    text = text.strip()
    if not text:
        raise InputError("an empty target: give a class, or layer:channel")
    if text == predicted().name:
        return predicted()
    if model.labels and (index := _class_index(text, model, strict=False)) is not None:
        return logit(index, _class_name(index, model))
    pieces = re.split(r"\s([+-])\s+", text)
    total = _term(pieces[0], model)
    for sign, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        total = total + _term(piece, model) if sign == "+" else total - _term(piece, model)
    return total


def _term(text: str, model: Model) -> Objective:
    match = TERM.match(text.strip())
    if match is None:
        raise InputError("an empty target: give a class, or layer:channel")
    objective = _atom(match["body"].strip(), model)
    return objective if match["weight"] is None else float(match["weight"]) * objective


def _atom(text: str, model: Model) -> Objective:
    if match := UNIT.match(text):
        layer, index = match["layer"], int(match["channel"])
        model.call(layer)  # raises on a layer that is not there
        if match["row"] is None:
            return channel(layer, index)
        return unit(layer, index, int(match["row"]), int(match["column"]))
    found = _class_index(text, model, strict=True)
    assert found is not None
    return logit(found, _class_name(found, model))


def _class_name(index: int, model: Model) -> str:
    known = model.labels is not None and 0 <= index < len(model.labels)
    return f"{index} ({model.label(index)})" if known else str(index)


def _class_index(text: str, model: Model, *, strict: bool) -> int | None:
    """The class of this index, name or unique part of a name; not `strict`, `None` where there is none."""
    if numbered := re.fullmatch(r"(\d+)( \(.*\))?", text):
        return int(numbered[1])
    labels = [label.lower() for label in model.labels or ()]
    wanted = text.lower()
    synonyms = [[part.strip() for part in label.split(",")] for label in labels]
    for found in (
        [i for i, label in enumerate(labels) if label == wanted],
        [i for i, parts in enumerate(synonyms) if wanted in parts],
        [i for i, label in enumerate(labels) if re.search(rf"\b{re.escape(wanted)}\b", label)],
        [i for i, label in enumerate(labels) if wanted in label],
    ):
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(f"{i} ({model.label(i)})" for i in found[:MAX_CANDIDATES])
            more = f" and {len(found) - MAX_CANDIDATES} more" if len(found) > MAX_CANDIDATES else ""
            raise InputError(f"class {text!r} is ambiguous: {listed}{more}")
    if not strict:
        return None
    if not labels:
        raise InputError(f"{model.name} has no class names, so {text!r} cannot be one: give its index")
    if text in model.calls:
        raise InputError(f"{text!r} is a layer: name a channel of it, as {text}:0")
    raise unknown("class", text, [part for parts in synonyms for part in parts])


def _classes(activations: Activations) -> Float[Tensor, "n c"]:
    output = activations["output"]
    if output.ndim != 2:
        raise InputError(f"a class needs an output of (n, classes), this network gives {tuple(output.shape)}")
    if is_distribution(output):
        note(f"{CAUTION}the network's output is probabilities: the score is not the one before the softmax")
    return output


def _channel(activations: Activations, layer: str, index: int) -> Tensor:
    values = activations.channels(layer)
    if not 0 <= index < values.shape[1]:
        raise InputError(f"layer {layer!r} has channels 0 to {values.shape[1] - 1}, not {index}")
    return values[:, index]
