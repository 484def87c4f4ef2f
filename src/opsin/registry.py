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
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, get_args, get_origin

from opsin.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

PACKAGES = ("opsin", "torch", "torchvision", "timm", "numpy", "pillow")
FOLDER = Path(__file__).parent / "techniques"


@dataclass(frozen=True)
class Arg:
    """What the annotation of a parameter says besides its type."""

    help: str
    role: Literal["value", "target", "layer"] = "value"
    least: float | None = None
    most: float | None = None


Target = Annotated[
    Any, Arg("class name or index, layer:channel, layer:channel@row,column, or a sum", "target")
]
Layer = Annotated[Any, Arg("layer by name, as `opsin layers` lists them", "layer")]


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


@dataclass(frozen=True)
class Technique:
    """A technique with what its users want to know of it.

    `cost` is in forward passes an image with the default settings, a backward pass counted as two.
    A `dear` one runs in `explain` only when it is asked for.
    """

    name: str
    run: Callable[..., Any]
    paper: str
    reading: str
    cost: int
    dear: bool
    takes_images: bool
    parameters: Mapping[str, Parameter]

    @property
    def summary(self) -> str:
        """The first sentence of the docstring."""
        return (inspect.getdoc(self.run) or "").split("\n\n")[0].replace("\n", " ")


def technique(
    *, paper: str, reading: str, cost: int, dear: bool = False
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
        about = Technique(function.__name__, run, paper, reading, cost, dear, takes_images, parameters)
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


def _parameter(parameter: inspect.Parameter) -> Parameter:
    kind, arg = get_args(parameter.annotation)[:2]  # every setting is Annotated[type, Arg]
    return Parameter(parameter.name, kind, parameter.default, arg)


def _run(
    about: Technique, function: Callable[..., Any], signature: inspect.Signature, args: Any, kwargs: Any
) -> Any:
    import torch

    from opsin import images as photos
    from opsin.model import Model
    from opsin.objectives import resolve
    from opsin.results import CAUTION, Record, note, noting

    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    model = given["model"]
    if not isinstance(model, Model):
        raise InputError(
            f"{about.name} takes an opsin.Model first, got {type(model).__name__}: see opsin.load"
        )
    arguments: dict[str, Any] = {}
    if about.takes_images:
        photos.check(given["images"])
        digest = hashlib.sha256(given["images"].detach().cpu().float().contiguous().numpy().tobytes())
        arguments["images"] = {"shape": list(given["images"].shape), "sha256": digest.hexdigest()}
        given["images"] = given["images"].detach().to(model.device)
    for name, parameter in about.parameters.items():
        value = given[name]
        if parameter.arg.role == "target":
            value = resolve(value, model, len(given["images"]))
            arguments[name] = value.name
        elif parameter.arg.role == "layer":
            value = _default_layer(model, given.get("target")) if value is None else value
            if not isinstance(value, str):
                raise InputError(f"{about.name}: {name} is a layer's name, not {value!r}")
            model.call(value)  # raises on an unknown one
            arguments[name] = value
        else:
            _check(about.name, parameter, value)
            value = float(value) if parameter.type is float else value
            arguments[name] = value
        given[name] = value
    with torch.inference_mode(False), torch.enable_grad(), noting() as notes:
        weights = model.weigh()
        if not weights.finite:
            note(f"{CAUTION}the network's weights hold NaN or infinite numbers: so may the values here")
        result = function(*bound.args, **bound.kwargs)
    facts: dict[str, Any] = {"name": model.name, "sha256": weights.fingerprint, "size": list(model.size)}
    facts |= {"mean": list(model.mean), "std": list(model.std), "crop": model.crop, "squash": model.squash}
    facts |= {"interpolation": model.interpolation}
    record = Record(about.name, about.paper, arguments, facts, _versions(), tuple(notes))
    return replace(result, record=record)


def _default_layer(model: Any, target: Any) -> str:
    """The model's default layer; for a target inside the network, its own layer where that has an extent."""
    inner = [model.call(name) for name in target.layers if name not in ("image", "output")] if target else []
    own: list[str] = [call.name for call in inner if call.extent not in (None, (1, 1))]
    if own and "output" not in target.layers:
        return own[0]
    found: str = model.default_layer
    return found


def _check(name: str, parameter: Parameter, value: Any) -> None:
    kind, arg = parameter.type, parameter.arg
    if parameter.choices:
        if value not in parameter.choices:
            raise InputError(
                f"{name}: {parameter.name} is one of {', '.join(parameter.choices)}, not {value!r}"
            )
        return
    numeric = (int, float) if kind is float else kind
    if not isinstance(value, numeric) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{name}: {parameter.name} is a {getattr(kind, '__name__', kind)}, not {value!r}")
    if arg.least is not None and not value >= arg.least:
        raise InputError(f"{name}: {parameter.name} is at least {arg.least:g}, not {value}")
    if arg.most is not None and not value <= arg.most:
        raise InputError(f"{name}: {parameter.name} is at most {arg.most:g}, not {value}")


@functools.cache
def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "unknown"
    return found
