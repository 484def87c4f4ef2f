"""What the page explains of a photo: targets, for one network and layer."""

from dataclasses import dataclass

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from opsin.base.errors import InputError, NetworkError
from opsin.base.job import CAUTION
from opsin.base.records import ScoredTarget
from opsin.base.slugs import first_name
from opsin.images.photos import in_photo
from opsin.images.tensors import fit
from opsin.network.finite import origin
from opsin.network.model import Model
from opsin.network.predictions import ranked
from opsin.objectives.objective import Objective
from opsin.objectives.parsing import class_named, resolve
from opsin.objectives.units import channel, logit, separated
from opsin.pages.kinds import two_kinds
from opsin.registry.kinds import Technique
from opsin.results.result import Result

TOP = 5
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Answer:
    """A technique's result on one photo; its i-th image stands for the i-th of `targets`, if it has any."""

    technique: Technique
    result: Result
    targets: tuple[int, ...] = ()


@dataclass(frozen=True)
class View:
    """A photo as one network sees it, with the targets to explain at one layer, and the answers.

    `box` is the part of the photo that the network is shown: left, top, right, bottom as shares of its sides.
    `maps_from` is the layer of the maps: the default one where none is named, empty if there is none.
    `top` are the most probable classes with score and probability; `no_classes` says why there are none.
    """

    model: Model
    layer: str | None
    image: Float[Tensor, "1 3 h w"]
    box: Box
    goals: tuple[Objective, ...]
    targets: tuple[ScoredTarget, ...]
    top: tuple[ScoredTarget, ...]
    maps_from: str = ""
    no_classes: str = ""
    answers: tuple[Answer, ...] = ()


def view(model: Model, photo: Image.Image | Tensor, target: object, layer: str | None) -> View:
    """What is to be explained of a photo; without a `target`, its predicted class and one of another kind.

    Raises `InputError` on an invalid target or layer.
    """
    if isinstance(photo, Tensor):
        image, box = photo, (0.0, 0.0, 1.0, 1.0)
    else:
        image = fit(photo, model)[None]
        box = in_photo((0, 0, model.size[1], model.size[0]), photo.width, photo.height, model)
    if layer is not None:
        model.call(layer)
    output = model.run(image)["output"]
    top, no_classes = _top(model, image, output)
    goals = goals_of(target, model) if target is not None else _default_goals(model, image, output)
    run = model.run(image, tuple({name for goal in goals for name in goal.layers}))
    goals = tuple(goal.for_image(run, 0) for goal in goals)
    probabilities = model.probabilities(output)[0] if output.ndim == 2 else None

    def scored(goal: Objective) -> ScoredTarget:
        score = float(goal.score(run))
        if goal.class_index is None:
            return ScoredTarget(goal.name, score, None)
        share = None if probabilities is None else float(probabilities[goal.class_index])
        return ScoredTarget(first_name(model.label(goal.class_index)), score, share)

    maps_from = layer or _default_layer(model)
    return View(model, layer, image, box, goals, tuple(map(scored, goals)), top, maps_from, no_classes)


def goals_of(target: object, model: Model) -> tuple[Objective, ...]:
    """Each target of a text with semicolons, or of a sequence. Raises `InputError` on an invalid one."""
    several = list(target) if isinstance(target, list | tuple) else [target]
    parts: list[object] = []
    for text in several:
        if isinstance(text, str) and class_named(text, model.labels or ()) is None:
            parts += separated(text)
        else:
            parts.append(text)
    if not parts:
        raise InputError("no target given: name a class, or layer:channel")
    goals = [resolve(part, model) for part in parts]
    return tuple({goal.name: goal for goal in goals}.values())


def _default_goals(model: Model, image: Float[Tensor, "1 3 h w"], output: Tensor) -> tuple[Objective, ...]:
    if output.ndim == 2:
        return tuple(logit(index, f"{index} ({model.label(index)})") for index in two_kinds(model, image))
    layer = model.default_layer
    strongest = model.run(image, (layer,)).pooled(layer)[0].argmax()
    return (channel(layer, int(strongest)),)


def _top(
    model: Model, image: Float[Tensor, "1 3 h w"], output: Tensor
) -> tuple[tuple[ScoredTarget, ...], str]:
    """The most probable classes; where there are none, why, and what can be explained in their place."""
    if output.ndim != 2:
        layer = model.default_layer
        shape = "×".join(map(str, output.shape[1:])) or "one number"
        return (), (
            f"The network gives {shape} for an image, not one score per class. A target can be a channel of "
            f"any layer, such as {layer}:0, one unit of it, {layer}:0@3,4, or a sum of these; where none is "
            f"named, the strongest channel of {layer} is explained."
        )
    if not output.isfinite().all():
        return (), f"{CAUTION}the network's output is NaN or infinite: this begins {origin(model, image)}."
    (classes,) = ranked([output], model.probabilities, model.label, TOP)
    return tuple(ScoredTarget(first_name(p.label), p.score, p.probability) for p in classes), ""


def _default_layer(model: Model) -> str:
    try:
        return model.default_layer
    except NetworkError:  # a network may do without; techniques that need one say so
        return ""
