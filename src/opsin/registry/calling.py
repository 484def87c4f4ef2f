"""How a technique is called: inputs checked and resolved, its result recorded."""

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor

from opsin.base.errors import InputError, OutOfMemoryError
from opsin.base.job import CAUTION, current, note, within
from opsin.base.records import PACKAGES, Record, ScoredTarget, versions
from opsin.base.trail import Trail
from opsin.images import tensors
from opsin.network.backward import lacks_memory
from opsin.network.finite import Scores, caution
from opsin.network.model import Model
from opsin.objectives.parsing import named_classes, resolve
from opsin.registry.explained import Explained
from opsin.registry.kinds import Parameter, Technique, checked
from opsin.results.heatmap import Heatmap
from opsin.results.pictures import Picture, Pictures


def call_technique(
    about: Technique, function: Callable[..., Any], signature: inspect.Signature, args: Any, kwargs: Any
) -> Any:
    """The technique's result on inputs that are checked and resolved, with its record.

    For a list of layers it is a list of results, one for each layer.
    """
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"{about.name}: {error}") from error
    bound.apply_defaults()
    given = bound.arguments
    model: Model | None = given.get("model")
    if about.takes_model and not isinstance(model, Model):
        raise InputError(
            f"{about.name} takes an opsin.Model first, got {type(model).__name__}: see opsin.load"
        )
    for name, parameter in about.parameters.items():
        if parameter.arg.role == "layer" and isinstance(given[name], list | tuple):
            layers = _layers(about.name, name, given[name], model)
            return [about.run(**given | {name: layer}) for layer in layers]
    arguments: dict[str, Any] = {}
    pictures: dict[str, Tensor] = {}
    if about.takes_images:
        tensors.check(given["images"])
        pictures["images"] = given["images"]
        arguments["images"] = _seen(given["images"])
        given["images"] = _placed(given["images"], model)
    for parameter in about.parameters.values():
        _take(about, parameter, given, arguments, pictures)
    scores = Scores()
    targets = [name for name, parameter in about.parameters.items() if parameter.arg.role == "target"]
    explained = [
        Explained(model, given["images"], given[name])
        for name in targets
        if model is not None and about.takes_images and not about.iterative
    ]
    given.update({name: target.followed() for name, target in zip(targets, explained, strict=False)})
    given.update({name: given[name].watched(scores.see) for name in targets})

    def record(scored: tuple[ScoredTarget, ...] = ()) -> Record:
        facts = {} if model is None else _facts(model)
        return Record(about.name, about.paper, arguments, facts, versions(PACKAGES), tuple(notes), scored)

    def finished(result: Pictures, trail: Trail) -> Pictures:
        state = trail.flat() | {f"given.{name}": value for name, value in pictures.items()}
        return replace(result, state=state, stopped=trail.stopped, record=record())

    def so_far(images: Tensor, caption: str, trail: Trail) -> Pictures:
        return finished(Pictures(tuple(Picture("so far", caption, image) for image in images)), trail)

    notes: list[str] = []
    trail = Trail(current().resumed, so_far)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        within(notes=notes, trail=trail, resumed=MappingProxyType({})),
    ):
        if model is not None and not model.weigh().finite:
            note(f"{CAUTION}the network's weights hold NaN or infinite numbers, so the values here may too")
        try:
            result = function(*bound.args, **bound.kwargs)
        except (MemoryError, RuntimeError) as error:
            if lacks_memory(error):
                cause = str(error).partition("\n")[0]
                smaller = "" if model is None else ", or choose a smaller network"
                raise OutOfMemoryError(
                    f"{about.name} ran out of memory: give fewer or smaller photos at a time{smaller} "
                    f"({cause})"
                ) from error
            raise
        if isinstance(result, Heatmap) and (blank := result.blank()):
            note(f"{CAUTION}the map is zero everywhere for image {', '.join(map(str, blank))}")
        caution(model, given.get("images"), [*scores.not_finite(), *result.not_finite()])
        scored = explained[0].targets() if explained else ()
    return finished(result, trail) if about.iterative else replace(result, record=record(scored))


def _take(
    about: Technique,
    parameter: Parameter,
    given: dict[str, Any],
    arguments: dict[str, Any],
    pictures: dict[str, Any],
) -> None:
    """Check and resolve one setting in `given`; what it was goes into `arguments`, images into `pictures`."""

    name, model = parameter.name, cast("Model", given.get("model"))  # no target or layer is without one
    value, role = given[name], parameter.arg.role
    if role == "target":
        if value is None and not parameter.required:
            value = inspect.signature(inspect.unwrap(about.run)).parameters[name].default
        value = resolve(value, model, len(given["images"]) if about.takes_images else None)
        arguments[name] = value.name
    elif role == "layer":
        value = _default_layer(model, given.get("target")) if value is None else value
        if not isinstance(value, str):
            raise InputError(
                f"{about.name}: {name} must be a layer's name or a list of layers' names, not {value!r}"
            )
        model.call(value)  # raises on an unknown one
        arguments[name] = value
    elif role == "layers":
        value = None if value is None else _layers(about.name, name, value, model)
        arguments[name] = value
    elif role == "classes":
        found = None if value is None else named_classes(value, model, len(given["images"]))
        value = None if found is None else [index for index, _ in found]
        arguments[name] = None if found is None else "; ".join(text for _, text in found)
    elif role == "images":
        several = _several(value)
        pictures.update({f"{name}.{index}": one for index, one in enumerate(several)})
        value = [_placed(one, model) for one in several]
        arguments[name] = [_seen(one) for one in several]
    else:
        value = checked(about.name, parameter, value)
        arguments[name] = value
    given[name] = value


def _seen(images: "Tensor") -> dict[str, Any]:
    """Which images these are."""
    plain = images.detach().cpu().float().contiguous()
    return {"shape": list(plain.shape), "sha256": hashlib.sha256(plain.numpy().data).hexdigest()}


def _facts(model: Model) -> dict[str, Any]:
    """What a record says of the network."""
    facts: dict[str, Any] = {
        "name": model.name,
        "sha256": model.weigh().fingerprint,
        "load": model.loaded,
    }
    facts |= {name: list(getattr(model, name)) for name in ("size", "mean", "std")}
    return facts | {name: getattr(model, name) for name in ("crop", "squash", "interpolation")}


def _placed(images: "Tensor", model: Model | None) -> "Tensor":
    """Images on the model's device, in single precision at least: resizing and spectra need it."""

    dtype = torch.promote_types(images.dtype, torch.float32)
    return images.detach().to(images.device if model is None else model.device, dtype)


def _several(images: Any) -> "list[Tensor]":
    """Images of any sizes, each (1, 3, h, w), from one tensor or a sequence of them."""

    found = []
    for one in images if isinstance(images, list | tuple) else [images]:
        tensors.check(one)
        found += list(one.split(1))
    return found


def _layers(technique: str, name: str, value: object, model: Any) -> list[str]:
    """Layers from a text with commas or a sequence of names."""
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(one, str) for one in names):
        raise InputError(f"{technique}: {name} must be layers' names, not {value!r}")
    names = [one.strip() for one in names]
    for one in names:
        model.call(one)  # raises on an unknown one
    return names


def _default_layer(model: Any, target: Any) -> str:
    """The model's default layer; for a target inside the network, its own layer where that has an extent."""
    inner = [model.call(name) for name in target.layers if name not in ("image", "output")] if target else []
    own: list[str] = [call.name for call in inner if call.extent not in (None, (1, 1))]
    if own and "output" not in target.layers:
        return own[0]
    found: str = model.default_layer
    return found
