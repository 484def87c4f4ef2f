"""What a technique is, and what its settings may be."""

import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from opsin.base.choices import LARGEST_INT
from opsin.base.errors import InputError, shown

Photos = Literal["each", "whole", "together"]


@dataclass(frozen=True)
class Arg:
    """What the annotation of a parameter says besides its type."""

    help: str
    role: Literal["value", "target", "layer", "layers", "images"] = "value"
    least: float | None = None
    most: float | None = None


_TARGET = Arg("class name or index, layer:channel, layer:channel@row,column, or a sum", "target")
if TYPE_CHECKING:
    from opsin.objectives.objective import Objective

    Target = Annotated[Objective, _TARGET]
else:
    Target = Annotated["opsin.objectives.objective.Objective", _TARGET]  # which would import torch
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

    `title` is the name that papers use. `cost` is in forward passes per image with the default settings, a
    backward pass counted as two; with `per_channel` it is the default layer's number of channels.
    An `expensive` one runs in `explain` only when it is asked for. An `iterative` one makes pictures step
    by step. `photos` says how it gets them from the command line: `each` one cut to the model's size, each
    one `whole` at its own size, or all `together`. `network` names the zoo's network that suits it best;
    it is empty of a technique that takes no model, and that costs no forward pass.
    """

    name: str
    run: Callable[..., Any]
    title: str
    paper: str
    reading: str
    cost: int
    expensive: bool
    iterative: bool
    per_channel: bool
    photos: Photos
    network: str
    takes_model: bool
    takes_images: bool
    parameters: Mapping[str, Parameter]

    def inputs(self, model: Any, images: Any) -> list[Any]:
        """What `run` takes before the settings, of a network and images."""
        return [model] * self.takes_model + [images] * self.takes_images

    @property
    def summary(self) -> str:
        """The first sentence of the docstring."""
        return self.docstring.split("\n\n")[0].replace("\n", " ")

    @property
    def docstring(self) -> str:
        """The docstring as it stands in the file, without what `help` adds."""
        return inspect.getdoc(inspect.unwrap(self.run)) or ""


def parameter_of(parameter: inspect.Parameter) -> Parameter:
    """A setting as its annotation declares it."""
    kind, arg = get_args(parameter.annotation)[:2]  # every setting is Annotated[type, Arg]
    default = parameter.default
    if arg.role == "target" and default is not inspect.Parameter.empty:
        default = None  # the technique's own: each image's predicted class, or strongest unit
    return Parameter(parameter.name, kind, default, arg)


def checked(name: str, parameter: Parameter, value: Any) -> Any:
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
                f"{name}: {parameter.name} must be one of {', '.join(parameter.choices)}, not {shown(value)}"
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
            raise InputError(f"{name}: {parameter.name} must be a finite number, not {shown(value)}")
    if kind is int and abs(value) > LARGEST_INT:
        raise InputError(f"{name}: {parameter.name} must be at most {LARGEST_INT}, not {shown(value)}")
    if arg.least is not None and not value >= arg.least:
        raise InputError(f"{name}: {parameter.name} must be at least {arg.least:.12g}, not {shown(value)}")
    if arg.most is not None and not value <= arg.most:
        raise InputError(f"{name}: {parameter.name} must be at most {arg.most:.12g}, not {shown(value)}")
    return value
