"""Techniques are plain annotated functions: what they are called with, said and cited is read off them.

`@technique` gives every function the same contract: inputs are checked and resolved, it runs with
gradients on whatever the caller's mode is, and its result carries the record of how it was made.
The command line, the report, the reference pages and the contract tests are made from `techniques()`.
"""

import ast
import functools
import hashlib
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, TypeVar, get_args, get_origin

from opsin.errors import InputError, OutOfMemoryError, shown

if TYPE_CHECKING:
    from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

Photos = Literal["each", "whole", "together"]

PACKAGES = ("opsin", "torch", "torchvision", "timm", "numpy", "pillow")
FOLDER = Path(__file__).parent / "techniques"
LARGEST = 2**63 - 1  # of a whole number that torch takes
MOST_PIXELS = 2**15  # of a side of pictures that are made, and of what is done to them


@dataclass(frozen=True)
class Arg:
    """What the annotation of a parameter says besides its type."""

    help: str
    role: Literal["value", "target", "layer", "layers", "images"] = "value"
    least: float | None = None
    most: float | None = None


Target = Annotated[
    Any, Arg("class name or index, layer:channel, layer:channel@row,column, or a sum", "target")
]
Layer = Annotated[Any, Arg("layer by name, as `opsin layers` lists them", "layer")]
Layers = Annotated[Any, Arg("layers by name, separated by commas", "layers")]


@dataclass(frozen=True)
class Parameter:
    """One setting of a technique."""

    name: str
    type: Any
    default: Any
    arg: Arg

    @property
    def choices(self) -> tuple[str, ...]:
        """The valid words of a setting that is one of a few."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True)
class Technique:
    """A technique with what its users want to know of it.

    `cost` is in forward passes an image with the default settings, a backward pass counted as two.
    A `dear` one runs in `explain` only when it is asked for. One that `climbs` makes pictures step by
    step. `photos` says how it gets them from the command line: `each` one cut to the model's size, each one
    `whole` at its own size, or all `together`. `network` names the zoo's network that suits it best.
    """

    name: str
    run: Callable[..., Any]
    paper: str
    reading: str
    cost: int
    dear: bool
    climbs: bool
    photos: Photos
    network: str
    takes_images: bool
    parameters: Mapping[str, Parameter]

    @property
    def summary(self) -> str:
        """The first sentence of the docstring."""
        return (inspect.getdoc(self.run) or "").split("\n\n")[0].replace("\n", " ")


def technique(
    *,
    paper: str,
    reading: str,
    cost: int,
    dear: bool = False,
    climbs: bool = False,
    photos: Photos = "each",
    network: str = "tf_efficientnet_lite0",
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a function `(model, images, ...)` or `(model, ...)` that returns a `Result`."""

    def register(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        settings = [p for p in signature.parameters.values() if p.name not in ("model", "images")]
        parameters = {p.name: _parameter(p) for p in settings}

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            return _run(about, function, signature, args, kwargs)  # type: ignore[no-any-return]

        takes_images = "images" in signature.parameters
        about = Technique(
            function.__name__,
            run,
            paper,
            reading,
            cost,
            dear or climbs,
            climbs,
            photos,
            network,
            takes_images,
            parameters,
        )
        run.technique = about  # type: ignore[attr-defined]
        return run

    return register


@functools.cache
def names() -> dict[str, str]:
    """Every technique's name and first sentence, read without importing it (that would import torch)."""
    found = {}
    for path in sorted(FOLDER.glob("[a-z]*.py")):
        functions = [n for n in ast.parse(path.read_text("utf-8")).body if isinstance(n, ast.FunctionDef)]
        function = next(n for n in functions if n.name == path.stem)
        found[path.stem] = (ast.get_docstring(function) or "").split("\n\n")[0].replace("\n", " ")
    return found


def get(name: str) -> Technique:
    """The technique of this name; `InputError` with the nearest names where there is none."""
    from opsin.errors import unknown

    if name not in (known := [module.name for module in pkgutil.iter_modules([str(FOLDER)])]):
        raise unknown("technique", name, known)
    return getattr(importlib.import_module(f"opsin.techniques.{name}"), name).technique  # type: ignore[no-any-return]


def techniques() -> dict[str, Technique]:
    """Every technique by name."""
    return {name: get(name) for name in names()}


def resume(result: Any, model: Any, *, steps: int | None = None, target: Any = None) -> Any:
    """Go on where a saved or loaded result of a climbing technique stands.

    `result` is one, or the folder of one. Its arguments hold again, but for more `steps`. A `target` that
    has no text form is to be given again.

    Raises `InputError` on a result of another kind, another model or target, fewer steps than have been
    climbed, or a target that has no text form and is not given.
    """
    from opsin.parsing import resolve
    from opsin.results import Pictures, Result

    if not isinstance(result, Result | str | Path):
        raise InputError(f"resume takes a result or the folder of one, got {type(result).__name__}")
    loaded = result if isinstance(result, Result) else Result.load(result)
    if not isinstance(loaded, Pictures) or loaded.record is None or not loaded.state:
        raise InputError("only pictures that a technique climbed step by step can be resumed")
    about, record = get(loaded.record.technique), loaded.record
    climbed = _climbed(loaded.state)
    if steps is not None and steps < climbed:
        raise InputError(f"this result already has {climbed} steps: {steps} are fewer")
    if (sha256 := str(record.model.get("sha256"))) != model.weigh().fingerprint:
        raise InputError(
            f"these pictures were made with {record.model.get('name')} (weights {sha256[:12]}), "
            f"not with {model.name} (weights {model.weigh().fingerprint[:12]})"
        )
    given = {k: v for k, v in record.arguments.items() if k in about.parameters}
    kept = {k.removeprefix("given."): v for k, v in loaded.state.items() if k.startswith("given.")}
    for name, parameter in about.parameters.items():
        if parameter.arg.role == "images":
            given[name] = [v for k, v in kept.items() if k.startswith(f"{name}.")]
    if target is not None:
        given["target"] = resolve(target, model)
        if given["target"].name != record.arguments.get("target"):
            raise InputError(f"the target was {record.arguments.get('target')}, not {given['target'].name}")
    if steps is not None:
        given["steps"] = steps
    if about.takes_images and "images" not in kept:
        raise InputError("the state to go on from is damaged: the photos that were given are missing")
    images = (kept["images"],) if about.takes_images else ()
    with _resuming(loaded.state):
        return about.run(model, *images, **given)


def _climbed(state: "Mapping[str, Tensor]") -> int:
    """How many steps the last climb of a state took. Raises `InputError` where the state does not say."""
    stages = [name.removesuffix(".number") for name in state if name.endswith(".number")]
    try:
        return int(state[f"{max(stages, key=int)}.number"])
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the state to go on from is damaged: {error}") from error


@contextmanager
def _resuming(state: Mapping[str, Any]) -> Iterator[None]:
    token = _resumed.set(state)
    try:
        yield
    finally:
        _resumed.reset(token)


_resumed: ContextVar[Mapping[str, Any]] = ContextVar("resumed", default=MappingProxyType({}))


def _parameter(parameter: inspect.Parameter) -> Parameter:
    kind, arg = get_args(parameter.annotation)[:2]  # every setting is Annotated[type, Arg]
    return Parameter(parameter.name, kind, parameter.default, arg)


def _run(
    about: Technique, function: Callable[..., Any], signature: inspect.Signature, args: Any, kwargs: Any
) -> Any:
    import torch
    from torch import Tensor

    from opsin import images as photos
    from opsin.ascent import Trail, trailing
    from opsin.backward import lacks_memory
    from opsin.finite import Scores, caution
    from opsin.model import Model
    from opsin.records import Record
    from opsin.results import CAUTION, Heatmap, Picture, Pictures, note, noting

    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"{about.name}: {error}") from error
    bound.apply_defaults()
    given = bound.arguments
    model = given["model"]
    if not isinstance(model, Model):
        raise InputError(
            f"{about.name} takes an opsin.Model first, got {type(model).__name__}: see opsin.load"
        )
    arguments: dict[str, Any] = {}
    pictures: dict[str, Tensor] = {}
    if about.takes_images:
        photos.check(given["images"])
        pictures["images"] = given["images"]
        arguments["images"] = _seen(given["images"])
        given["images"] = _placed(given["images"], model)
    for parameter in about.parameters.values():
        _take(about, parameter, given, arguments, pictures)
    scores = Scores()
    targets = [name for name, parameter in about.parameters.items() if parameter.arg.role == "target"]
    given.update({name: given[name].watched(scores.see) for name in targets})

    def record() -> Record:
        facts: dict[str, Any] = {"name": model.name, "sha256": weights.fingerprint, "load": model.loaded}
        facts |= {name: list(getattr(model, name)) for name in ("size", "mean", "std")}
        facts |= {name: getattr(model, name) for name in ("crop", "squash", "interpolation")}
        return Record(about.name, about.paper, arguments, facts, versions(PACKAGES), tuple(notes))

    def finished(result: Pictures, trail: Trail) -> Pictures:
        state = trail.arrays() | {f"given.{name}": value for name, value in pictures.items()}
        return replace(result, state=state, stopped=trail.stopped, record=record())

    def so_far(images: Tensor, caption: str, trail: Trail) -> Pictures:
        return finished(Pictures(tuple(Picture("so far", caption, image) for image in images)), trail)

    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        noting() as notes,
        trailing(_resumed.get(), so_far) as trail,
    ):
        weights = model.weigh()
        if not weights.finite:
            note(f"{CAUTION}the network's weights hold NaN or infinite numbers: so may the values here")
        try:
            result = function(*bound.args, **bound.kwargs)
        except (MemoryError, RuntimeError) as error:
            if lacks_memory(error):
                cause = str(error).partition("\n")[0]
                raise OutOfMemoryError(
                    f"{about.name} ran out of memory: give fewer or smaller photos at a time, or choose a "
                    f"smaller network ({cause})"
                ) from error
            raise
        if isinstance(result, Heatmap) and (blank := result.blank()):
            note(f"{CAUTION}the map is zero everywhere on image {', '.join(map(str, blank))}")
        caution(model, given.get("images"), [*scores.not_finite(), *result.not_finite()])
    return finished(result, trail) if about.climbs else replace(result, record=record())


def _take(
    about: Technique,
    parameter: Parameter,
    given: dict[str, Any],
    arguments: dict[str, Any],
    pictures: dict[str, Any],
) -> None:
    """Check and resolve one setting in `given`; what it was goes into `arguments`, images into `pictures`."""
    from opsin.parsing import resolve

    name, model = parameter.name, given["model"]
    value, role = given[name], parameter.arg.role
    if role == "target":
        value = resolve(value, model, len(given["images"]) if about.takes_images else None)
        arguments[name] = value.name
    elif role == "layer":
        value = _default_layer(model, given.get("target")) if value is None else value
        if not isinstance(value, str):
            raise InputError(f"{about.name}: {name} is a layer's name, not {value!r}")
        model.call(value)  # raises on an unknown one
        arguments[name] = value
    elif role == "layers":
        value = None if value is None else _layers(about.name, name, value, model)
        arguments[name] = value
    elif role == "images":
        several = _several(value)
        pictures.update({f"{name}.{index}": one for index, one in enumerate(several)})
        value = [_placed(one, model) for one in several]
        arguments[name] = [_seen(one) for one in several]
    else:
        value = _checked(about.name, parameter, value)
        arguments[name] = value
    given[name] = value


def _seen(images: "Tensor") -> dict[str, Any]:
    """Which images these are."""
    plain = images.detach().cpu().float().contiguous()
    return {"shape": list(plain.shape), "sha256": hashlib.sha256(plain.numpy().data).hexdigest()}


def _placed(images: "Tensor", model: Any) -> "Tensor":
    """Images on the model's device, in single precision at least: resizing and spectra need it."""
    import torch

    dtype = torch.promote_types(images.dtype, torch.float32)
    return images.detach().to(model.device, dtype)


def _several(images: Any) -> "list[Tensor]":
    """Images of any sizes, each (1, 3, h, w), from one tensor or a sequence of them."""
    from opsin import images as photos

    found = []
    for one in images if isinstance(images, list | tuple) else [images]:
        photos.check(one)
        found += list(one.split(1))
    return found


def _layers(technique: str, name: str, value: object, model: Any) -> list[str]:
    """Layers from a text with commas or a sequence of names."""
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(one, str) for one in names):
        raise InputError(f"{technique}: {name} are layers' names, not {value!r}")
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


def _checked(name: str, parameter: Parameter, value: Any) -> Any:
    """The value of a setting, of its type. Raises `InputError` where it cannot be."""
    kind, arg = parameter.type, parameter.arg
    kinds = get_args(kind) if NoneType in get_args(kind) else (kind,)
    if value is None and NoneType in kinds:
        return None
    kind = kinds[0]
    if hasattr(value, "item"):  # a number of NumPy or torch
        with suppress(ValueError, RuntimeError):  # several, or of a tensor without numbers
            value = value.item()
    if parameter.choices:
        if not isinstance(value, str) or value not in parameter.choices:
            raise InputError(
                f"{name}: {parameter.name} is one of {', '.join(parameter.choices)}, not {shown(value)}"
            )
        return value
    numeric = (int, float) if kind is float else kind
    if not isinstance(value, numeric) or (isinstance(value, bool) and kind is not bool):
        raise InputError(
            f"{name}: {parameter.name} is a {getattr(kind, '__name__', kind)}, not {shown(value)}"
        )
    if kind is float:
        with suppress(OverflowError):  # a whole number that no float can be
            value = float(value)
        if not isinstance(value, float) or not math.isfinite(value):
            raise InputError(f"{name}: {parameter.name} is a finite number, not {shown(value)}")
    if kind is int and abs(value) > LARGEST:
        raise InputError(f"{name}: {parameter.name} is at most {LARGEST}, not {shown(value)}")
    if arg.least is not None and not value >= arg.least:
        raise InputError(f"{name}: {parameter.name} is at least {arg.least:.12g}, not {shown(value)}")
    if arg.most is not None and not value <= arg.most:
        raise InputError(f"{name}: {parameter.name} is at most {arg.most:.12g}, not {shown(value)}")
    return value


@functools.cache
def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """The version of each package that is installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "unknown"
    return found
