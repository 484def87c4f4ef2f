"""What a technique is, and what its settings may be."""

import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from opsin.base.choices import LARGEST_INT, MOST_TEXTURE
from opsin.base.errors import InputError, shown

Photos = Literal["each", "whole", "together"]
LEVELS = 255  # of a colour in a file


@dataclass(frozen=True)
class Arg:
    """What the annotation of a parameter says besides its type."""

    help: str
    role: Literal["value", "target", "layer", "layers", "images", "classes", "epsilon"] = "value"
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
_EPSILON = "largest change of a colour value: a number from 0 to 1, or such as 8/255"
Epsilon = Annotated[float | str, Arg(_EPSILON, "epsilon", 0, 1)]
_RADIUS = "radius of an L2 ball, in place of the one of epsilon"
Radius = Annotated[float | None, Arg(_RADIUS, least=0, most=1e4)]
_HEIGHT = "height of the new texture and, by default, its width, pixels"
TextureHeight = Annotated[int, Arg(_HEIGHT, least=16, most=MOST_TEXTURE)]
_WIDTH = "width of the new texture, pixels"
TextureWidth = Annotated[int | None, Arg(_WIDTH, least=16, most=MOST_TEXTURE)]
_SAMPLE = "longer side that the sample is reduced to, pixels"
SampleSide = Annotated[int, Arg(_SAMPLE, least=16, most=MOST_TEXTURE)]
Classes = Annotated[Any, Arg("class by name or index, several photos with semicolons", "classes")]


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
    if arg.role == "epsilon":
        value, kind = _epsilon(f"{name}: {parameter.name}", value), float
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


def _epsilon(where: str, value: Any) -> Any:
    """A largest change of a colour value, from a number or a text such as 8/255; others are left as they are.

    Raises `InputError` on a text that is neither, and on more than 1, which is likely meant in 255ths.
    """
    if isinstance(value, str):
        above, slash, below = value.partition("/")
        try:
            value = float(above) / float(below) if slash else float(above)
        except (ValueError, ZeroDivisionError) as error:
            raise InputError(
                f"{where} is a number from 0 to 1, or such as 8/255, not {shown(value)}"
            ) from error
    if isinstance(value, int | float) and 1 < value <= LEVELS:
        raise InputError(
            f"{where} is in units of [0, 1], at most 1, not {shown(value)}: is {value:g}/{LEVELS} meant?"
        )
    return value
