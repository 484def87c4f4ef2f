"""What a collection was made with: its `record.json`, which is untrusted and read as data only."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic reads typing's from Python 3.12 on

from opsin.base.errors import InputError, shortened
from opsin.base.files import read_regular
from opsin.base.folders import RECORD
from opsin.base.records import LARGEST, first_fault
from opsin.network.model import Model
from opsin.zoo.recorded import Loaded, Recorded

KIND = "Collection"
FORMAT = 1
FRESH = ".{}.fresh"  # a file that is being written
PREPROCESSING = ("size", "mean", "std", "crop", "interpolation", "squash")
MOST_LISTED = 2**26  # entries in a layer's lists of top images: 1.3 GB, which a tally holds in memory

Count = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]  # longest list that Arrow allows
Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]


class Network(TypedDict):
    """The network, weights and preprocessing of a collection."""

    name: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    load: Recorded | None
    size: Annotated[list[Count], Field(min_length=2, max_length=2)]
    mean: list[Number]
    std: list[Number]
    crop: Number
    interpolation: str
    squash: Annotated[bool, Field(strict=True)]


@dataclass(frozen=True)
class LayerAbout:
    """A layer of a collection: its channels, and the rows and columns of its maps (1, 1 for a vector)."""

    name: str
    channels: Count
    extent: tuple[Count, Count]


@dataclass(frozen=True)
class About:
    """What a collection was made with.

    Raises `InputError` if a layer is listed twice, or if `top` images per channel are too many.
    """

    root: str
    model: Network
    labels: tuple[str, ...] | None
    layers: Annotated[tuple[LayerAbout, ...], Field(min_length=1)]
    top: Count
    versions: dict[str, str]

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"layer {twice[0]!r} is listed twice: name each layer once")
        for layer in self.layers:
            if self.top * layer.channels > MOST_LISTED:
                raise InputError(
                    f"top must be at most {MOST_LISTED // layer.channels:,} for layer {layer.name!r} of "
                    f"{layer.channels:,} channels, not {self.top:,}"
                )


class _Record(TypedDict):
    about: About


def about_model(model: Model) -> Network:
    """A model's network, weights and preprocessing."""
    return {
        "name": model.name,
        "sha256": model.weigh().fingerprint,
        "load": cast("Loaded | None", model.loaded),
        "size": list(model.size),
        "mean": list(model.mean),
        "std": list(model.std),
        "crop": model.crop,
        "interpolation": model.interpolation,
        "squash": model.squash,
    }


def read_about(folder: Path) -> About | None:
    """The record of a collection; `None` if the folder has none, or the record of something else.

    Raises `InputError` if it is damaged, or has another format than this version of Opsin reads.
    """
    facts = read_facts(folder, RECORD)
    if not isinstance(facts, dict) or facts.get("kind") != KIND:
        return None
    if facts.get("format") != FORMAT:
        raise InputError(
            f"{folder} has format {facts.get('format')!r}, this Opsin reads format {FORMAT}: scan again"
        )
    record: _Record = checked(folder, RECORD, facts, _Record)
    return record["about"]


def write_about(folder: Path, about: About) -> None:
    """Write the record of a collection."""
    write_facts(folder, RECORD, {"kind": KIND, "format": FORMAT, "about": asdict(about)})


class CollectionError(InputError):
    """A collection that is damaged, was rescanned while it was read, or cannot be written."""


def damaged(folder: Path, why: str) -> CollectionError:
    """The error for a collection that holds something that Opsin does not write."""
    return CollectionError(f"{folder} is damaged: delete it and scan again ({why})")


def said(error: BaseException) -> str:
    """An error's message as one line, shortened if it is long."""
    return shortened(" ".join(str(error).split())) or type(error).__name__


def read_facts(folder: Path, name: str) -> Any:
    """The content of a JSON file of a collection; `None` if it does not exist. Non-UTF-8 bytes are kept.

    Raises `InputError` if it is not JSON, not a regular file, or a link that leads out of the folder.
    """
    path = folder / name
    if not os.path.lexists(path):
        return None
    refuse_links(folder, name)
    data = read_regular(path, LARGEST)
    try:
        return json.loads(data.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise damaged(folder, f"{name}: {error}") from error


def refuse_links(folder: Path, name: str) -> None:
    """Raise `InputError` if this name in a collection is a link that leads out of the folder."""
    try:
        inside = (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # links in a circle
        raise damaged(folder, f"{name}: {error}") from error
    if not inside:
        raise damaged(folder, f"{name} is a link that leads out of the folder")


def checked(folder: Path, name: str, facts: object, shape: Any) -> Any:
    """The content of a JSON file as a `shape`. Raises `InputError`, naming the first fault."""
    try:
        return TypeAdapter(shape).validate_python(facts)
    except ValidationError as error:
        raise damaged(folder, f"{name}: {first_fault(error)}") from error


def write_facts(folder: Path, name: str, facts: Mapping[str, Any] | None) -> None:
    """Write a JSON file of a collection atomically."""
    path = folder / name
    fresh = folder / FRESH.format(name)
    fresh.unlink(missing_ok=True)  # left by a killed scan, or a link to somebody else's file
    with fresh.open("x", encoding="utf-8", errors="surrogateescape") as file:
        file.write(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    fresh.replace(path)
