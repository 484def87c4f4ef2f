"""The text form of an objective, for the command line and the record.

tabby cat                             a class by name, a unique part of its name, or its index (281)
inception_5b:12                       channel 12 of a layer: its mean over positions
inception_5b:12@3,4                   one unit: channel 12 at row 3, column 4
neuron(inception_5b, 12)              the central unit of channel 12
strongest(inception_5b)               the most active unit of a layer, in each image its own
strongest unit                        that of the model's default layer
direction(inception_5b, 1, 0, -2)     the features along a direction
energy(inception_5b)                  the mean square of a whole layer
tabby; beagle                         one per picture
diversity(inception_5b)               how different the pictures of a batch are
total_variation(2), norm(6)           priors on the image
1.5*inception_5b:12 - inception_5b:30 weighted sums; signs need spaces around them, brackets group
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from opsin import objectives
from opsin.base.errors import InputError, shortened, shown, unknown
from opsin.network.model import Model
from opsin.objectives.objective import LARGEST, Objective
from opsin.objectives.units import PREDICTED, STRONGEST, channel, each, logit, separated, strongest, unit

UNIT = re.compile(r"^(?P<layer>.+):(?P<channel>\d+)(@(?P<row>\d+), ?(?P<column>\d+))?$")
NUMBER = r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?"
TERM = re.compile(rf"^(?:(?P<weight>{NUMBER})\s*\*\s*)?(?P<body>.+)$", re.DOTALL)
CALL = re.compile(r"^(?P<name>[a-z_]+)\((?P<arguments>[^()]*)\)$")
# an index, optionally followed by the class's name
NUMBERED = re.compile(r"(?P<index>\d+)(?: \((?P<name>(?:[^()]|\([^()]*\))*)\))?")
NEGATIVE = re.compile(r"-\d+")
MAX_CANDIDATES = 12
LONGEST_TARGET = 100_000  # characters; a direction of some thousand channels is the longest
MOST_NESTED = 50  # brackets within brackets
MOST_DIGITS = 18  # in an index


def resolve(target: object, model: Model, n: int | None = None) -> Objective:
    """The objective that a user means by `target`.

    It is an `Objective`, a class index, a text, `None` for each image's predicted class, or a sequence of
    these with one per image: `n` of them, or any number if `n` is None. Raises `InputError` on anything
    else, naming what is valid.
    """
    if target is None:
        return PREDICTED
    if target is STRONGEST:
        return strongest(model.default_layer)
    if isinstance(target, Objective):
        return target
    if isinstance(target := _separate(target, model), list):
        if n is not None and len(target) != n:
            images = "1 image" if n == 1 else f"{n} images"
            raise InputError(
                f"{len(target)} targets for {images}: give one for all, or one per image; "
                "`explain` shows several targets of one image"
            )
        return each([resolve(single_target, model) for single_target in target])
    if isinstance(target, int) and not isinstance(target, bool):
        return logit(target, _class_name(target, model))
    if isinstance(target, str):
        return parse(target, model)
    raise InputError(f"a target must be a class index, a text or an Objective, got {shown(target)}")


def one_each(target: object, model: Model, n: int) -> list[Objective]:
    """The objective of each of `n` images that are processed one by one: its own, or the same for all.

    Raises `InputError` unless there are one or `n` targets, and whenever `resolve` does.
    """
    whole = resolve(target, model, n)
    several = _separate(target, model)
    return (
        [resolve(single_target, model) for single_target in several]
        if isinstance(several, list)
        else [whole] * n
    )


def named_classes(value: object, model: Model, n: int) -> list[tuple[int, str]]:
    """The class of each of `n` images, and its name, from what `resolve` takes.

    Raises `InputError` on a target that is not one class, and on one that the network does not have.
    """
    found = []
    for target in one_each(value, model, n):
        index, count = target.class_index, model.classes
        if index is None:
            raise InputError(f"a class is needed here, by name or index, not {target.name!r}")
        if count is not None and not 0 <= index < count:
            raise InputError(f"class {index} does not exist: the output has classes 0 to {count - 1}")
        found.append((index, target.name))
    return found


def _separate(target: object, model: Model) -> object:
    """A list if `target` is several targets, one per image; else the target itself."""
    if isinstance(target, Tensor | np.ndarray | np.generic):
        return target.tolist()
    if isinstance(target, str):
        parts = separated(target)
        return parts if len(parts) > 1 and class_named(target, model.labels or ()) is None else target
    return list(target) if isinstance(target, Sequence) else target


def parse(text: str, model: Model) -> Objective:
    """The objective that `text` describes, in the form shown in this module's docstring.

    Raises `InputError` on an invalid text, and beyond 100,000 characters or 50 nested brackets.
    """
    text = text.strip()
    if not text:
        raise InputError("an empty target: give a class, or layer:channel")
    if len(text) > LONGEST_TARGET:
        raise InputError(f"a target has at most {LONGEST_TARGET:,} characters, not {len(text):,}")
    if text == PREDICTED.name:
        return PREDICTED
    if model.labels and (index := _class_index(text, model, strict=False)) is not None:
        return logit(index, _class_name(index, model))
    pieces = _pieces(text)
    total = _term(pieces[0], model)
    for sign, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        total = total + _term(piece, model) if sign == "+" else total - _term(piece, model)
    return total


def _pieces(text: str) -> list[str]:
    """The terms of a sum and the signs between them; brackets are not split."""
    pieces, depth, start = [], 0, 0
    for match in re.finditer(r"[()]|\s[+-]\s+", text):
        if (token := match.group()) in "()":
            depth += 1 if token == "(" else -1
        elif depth == 0:
            pieces += [text[start : match.start()], token.strip()]
            start = match.end()
        if depth > MOST_NESTED:
            raise InputError(f"target {shortened(text)!r} has more than {MOST_NESTED} nested brackets")
    if depth:
        raise InputError(f"target {shortened(text)!r} has an unmatched bracket")
    return [*pieces, text[start:]]


def _term(text: str, model: Model) -> Objective:
    match = TERM.match(text.strip())
    if match is None:
        raise InputError("an empty target: give a class, or layer:channel")
    weight = 1.0 if match["weight"] is None else _number(match["weight"])
    objective = _atom(match["body"].strip(), model)
    return objective if match["weight"] is None else weight * objective


def _atom(text: str, model: Model) -> Objective:
    if text.startswith("(") and text.endswith(")"):
        return parse(text[1:-1], model)
    if text == STRONGEST.name:
        return strongest(model.default_layer)
    if match := CALL.match(text):
        if match["name"] in CALLS:
            return _called(match["name"], [part.strip() for part in match["arguments"].split(",")], model)
        if _class_index(text, model, strict=False) is None:
            raise unknown("objective", match["name"], CALLS)
    if match := UNIT.match(text):
        layer, index = match["layer"], _whole(match["channel"])
        model.call(layer)  # raises on an unknown layer
        if match["row"] is None:
            return channel(layer, index)
        return unit(layer, index, _whole(match["row"]), _whole(match["column"]))
    class_index = _class_index(text, model, strict=True)
    assert class_index is not None
    return logit(class_index, _class_name(class_index, model))


def _number(text: str) -> float:
    """A number in a target. Raises `InputError`, naming it, if it is too large for single precision."""
    number = float(text)
    if not abs(number) <= LARGEST:
        raise InputError(
            f"{shortened(text)} in a target is not finite in single precision: give a smaller number"
        )
    return number


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise InputError(f"{shortened(digits)} in a target is too large for an index")
    return int(digits)


CALLS: dict[str, Callable[..., Objective]] = {
    name: getattr(objectives, name)
    for name in ("neuron", "strongest", "direction", "energy", "diversity", "total_variation", "norm")
}
ON_IMAGE = ("total_variation", "norm")


def _called(name: str, arguments: list[str], model: Model) -> Objective:
    """The objective `name(layer, number, ...)`, or `name(number, ...)` for a prior on the image."""
    layer = [] if name in ON_IMAGE else arguments[:1]
    for layer_name in layer:
        model.call(layer_name)  # raises on an unknown layer
    try:
        kind: Callable[[str], float] = int if name == "neuron" else _number
        numbers = [kind(part) for part in arguments[len(layer) :] if part]
        if name == "direction":
            return objectives.direction(layer[0], numbers)
        return CALLS[name](*layer, *numbers)
    except (TypeError, ValueError) as error:
        call, why = shortened(f"{name}({', '.join(arguments)})"), shortened(str(error))
        raise InputError(f"target {call} is invalid: {why}") from error


def _class_name(index: int, model: Model) -> str:
    known = model.labels is not None and 0 <= index < len(model.labels)
    return f"{index} ({model.label(index)})" if known else str(index)


def _class_index(text: str, model: Model, *, strict: bool) -> int | None:
    """The class of this index, name or unique part of a name; if not `strict`, `None` for an unknown one.

    Raises `InputError` on an index that is followed by the name of another class.
    """
    labels = model.labels or ()
    numbered = NUMBERED.fullmatch(text)
    index = _whole(numbered["index"]) if numbered else None
    if numbered and index is not None:
        known = labels[index] if index < len(labels) else None
        if known is None or numbered["name"] is None or class_named(numbered["name"], [known]) == 0:
            return index
    named = class_named(text, labels)
    if named is not None:
        return named
    if numbered and index is not None:
        raise InputError(f"class {index} is {labels[index]!r}, not {shortened(numbered['name'])!r}")
    if not strict:
        return None
    if NEGATIVE.fullmatch(text):
        known = "classes - 1" if model.classes is None else f"{model.classes - 1:,}, the last class"
        raise InputError(f"{shortened(text)} is no class: a class index is a whole number from 0 to {known}")
    if not labels:
        raise InputError(
            f"{model.name} has no class names, so {shortened(text)!r} cannot be one: give its index"
        )
    modules = dict(model.network.named_modules())  # `model.calls` would take a forward
    layer, colon, _ = text.partition(":")
    is_layer = layer != "" and layer.partition("#")[0] in modules
    if colon and is_layer:
        raise InputError(
            f"{shortened(text)!r} names no channel of layer {layer!r}: "
            f"write {layer}:0 for a channel, {layer}:0@3,4 for a unit of it"
        )
    if is_layer:
        raise InputError(f"{text!r} is a layer: name a channel of it, as {text}:0")
    raise unknown("class", text, [part.strip() for label in labels for part in label.split(",")])


def class_named(text: str, names: Sequence[str]) -> int | None:
    """The class of this name, or unique part of a name; `None` if there is none.

    Raises `InputError` on a part of several names, listing them.
    """
    labels = [label.lower() for label in names]
    wanted = text.lower()
    if len(wanted) > max(map(len, labels), default=0):
        return None
    synonyms = [[part.strip() for part in label.split(",")] for label in labels]
    for matches in (
        [i for i, label in enumerate(labels) if label == wanted],
        [i for i, parts in enumerate(synonyms) if wanted in parts],
        [i for i, label in enumerate(labels) if re.search(rf"\b{re.escape(wanted)}\b", label)],
        [i for i, label in enumerate(labels) if wanted in label],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            listed = ", ".join(f"{i} ({names[i]})" for i in matches[:MAX_CANDIDATES])
            more = f" and {len(matches) - MAX_CANDIDATES} more" if len(matches) > MAX_CANDIDATES else ""
            raise InputError(f"class {text!r} is ambiguous: {listed}{more}")
    return None
