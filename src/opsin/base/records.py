"""The JSON files of results: written as valid JSON, read as untrusted data."""

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from opsin.base.errors import InputError
from opsin.base.files import MIB, read_regular

if TYPE_CHECKING:
    from pydantic import ValidationError

T = TypeVar("T")
LARGEST = 256 * MIB  # bytes of a JSON file; the tables of findings are the longest


@dataclass(frozen=True)
class ScoredTarget:
    """What was explained on one image: the printable name of a class, a unit or a sum, and its score there.

    The score is the one before the softmax. The probability is the class's; it is `None` where the target is
    not one class. A number that is not finite is `None`.
    """

    name: str
    score: float | None
    probability: float | None

    def __post_init__(self) -> None:
        for field in ("score", "probability"):
            number = getattr(self, field)
            if number is not None and not math.isfinite(number):
                object.__setattr__(self, field, None)


@dataclass(frozen=True)
class Record:
    """How a result was made: enough to make it again.

    `targets` are what was explained, one for each image; empty for a technique without images or without a
    target, and for one that makes pictures step by step.
    """

    technique: str
    paper: str
    arguments: Mapping[str, Any]
    model: Mapping[str, Any]
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    targets: tuple[ScoredTarget, ...] = ()


def as_json(value: object) -> str:
    """Valid JSON: non-finite numbers become null, and text that is not valid Unicode is escaped."""

    def valid(part: object) -> object:
        if isinstance(part, Mapping):
            return {valid(key): valid(inner) for key, inner in part.items()}
        if isinstance(part, list | tuple):
            return [valid(inner) for inner in part]
        if isinstance(part, str):
            return part.encode("utf-8", "backslashreplace").decode()
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(valid(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path, shape: type[T]) -> T:
    """The content of a JSON file as a `shape`: a dataclass, a `TypedDict` or a mapping.

    Raises `InputError`, naming the file and the first fault, if it is not a regular file, not JSON, or has
    another shape.
    """
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 (slow)

    try:
        return TypeAdapter(shape).validate_json(read_regular(path, LARGEST), strict=True)
    except ValidationError as error:
        raise InputError(f"{path} is damaged: {first_fault(error)}") from error


def first_fault(error: "ValidationError") -> str:
    """The first fault, with its location in the file."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, fault["loc"]))
    return f"{where}: {fault['msg']}" if where else fault["msg"]


PACKAGES = ("opsin", "torch", "torchvision", "timm", "numpy", "pillow")


@functools.cache
def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """The version of each package that is installed."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 (slow)

    installed = {}
    for package in packages:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            installed[package] = "unknown"
    return installed
