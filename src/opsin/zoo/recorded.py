"""What `opsin.load` was given, as records keep it: enough to load the same network again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired, cast

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic reads typing's from Python 3.12 on

from opsin.base.errors import InputError, shown
from opsin.zoo.own_settings import OwnSettings

MOST_CLASSES = 2**20  # in a record, which somebody else may have written
LARGEST_SIDE = 2**14  # pixels of a network's input, in a record

Share = Annotated[float, Field(ge=0, le=1, strict=True)]
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE, strict=True)]


class Loaded(TypedDict):
    """A network's name, its weights, and the settings that these were given with."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    name: str
    weights: NotRequired[str]
    classes: NotRequired[Annotated[int, Field(ge=1, le=MOST_CLASSES, strict=True)]]
    labels: NotRequired[Annotated[list[str], Field(max_length=MOST_CLASSES)]]
    mean: NotRequired[Annotated[list[Share], Field(min_length=3, max_length=3)]]
    std: NotRequired[Annotated[list[Share], Field(min_length=3, max_length=3)]]
    size: NotRequired[Annotated[list[Side], Field(min_length=2, max_length=2)]]


Recorded = Loaded | Annotated[list[str], Field(min_length=1, max_length=2)]  # a list: name and weights


def as_loaded(name: str, weights: str | Path | None, own: OwnSettings) -> Loaded:
    """What a model was loaded with, to be recorded: files by their absolute paths."""
    file, _, factory = name.rpartition(":")
    loaded: dict[str, Any] = {"name": f"{Path(file).absolute()}:{factory}" if file.endswith(".py") else name}
    if weights is not None:
        loaded["weights"] = weights if weights == "random" else str(Path(weights).absolute())
    settings = {key: value if isinstance(value, int) else list(value) for key, value in own.given().items()}
    return cast("Loaded", loaded | settings)


def read_loaded(recorded: object, folder: str) -> Loaded:
    """What the record in a folder says that its network was loaded with, in today's form.

    Raises `InputError` if it is something else.
    """
    try:
        loaded: Any = TypeAdapter(Recorded).validate_python(recorded)
    except ValidationError as error:
        raise InputError(f"{folder} is damaged: the network that it names is {shown(recorded)}") from error
    if isinstance(loaded, list):
        loaded = dict(zip(("name", "weights"), loaded, strict=False))
    return cast("Loaded", loaded)


def as_options(loaded: Mapping[str, Any]) -> list[str]:
    """The options of the command line that load this network; class names are in a file of the user's."""
    words = ["--model", loaded["name"]]
    for key, option in (("weights", "--weights"), ("classes", "--classes")):
        words += [option, str(loaded[key])] if key in loaded else []
    for key, option in (("mean", "--mean"), ("std", "--std"), ("size", "--input-size")):
        words += [option, ",".join(str(value) for value in loaded[key])] if key in loaded else []
    return [*words, "--class-names", "FILE"] if "labels" in loaded else words
