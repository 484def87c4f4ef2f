"""What the commands share: options, and the photos and networks that they name."""

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from opsin.base.errors import InputError
from opsin.base.files import read_regular
from opsin.base.folders import RECORD
from opsin.base.records import LARGEST
from opsin.cli.options import given_settings
from opsin.cli.remembered import remember

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from opsin.collection.files.source import Source
    from opsin.collection.store.store import Collection
    from opsin.network.model import Model

Opened = Callable[[], "Image"]
HELD = 32  # photos that are held decoded
STDIN = "-"  # the photo that a command is given on its standard input
STDIN_NAME = "stdin"  # what pages, folders and errors call that photo
STDIN_READ = "opsin.cli.stdin_read"  # in a command's context: whether it has been read


def open_model(name: str, weights: str | None) -> "Model":
    """The network that an option names; the names of its layers are remembered when the command ends."""
    from opsin.zoo.by_name import load

    return _remembered(load(name, weights=weights, **given_settings()))


def _remembered(model: "Model") -> "Model":
    if context := click.get_current_context(silent=True):
        context.call_on_close(lambda: remember(model))
    return model


def reopen_model(known: Mapping[str, Any], name: str | None, weights: str | None, folder: str) -> "Model":
    """The network that the record in a folder names, unless the options name another.

    The folder may come from anybody. Networks that are known by name are opened again; a file of code is run,
    or a network fetched from a hub, only where the user names it.
    """
    from opsin.zoo.by_name import load, reopens
    from opsin.zoo.recorded import as_options, read_loaded

    if name is not None:
        return open_model(name, weights)
    if not known.get("load"):
        raise click.UsageError(
            f"{known.get('name')} was made in Python: name it with --model FILE.py:FACTORY"
        )
    loaded = read_loaded(known["load"], folder)
    if not reopens(loaded["name"]):
        raise InputError(
            f"{folder} was made with {loaded['name']}, which is code or comes from a hub: "
            f"if you trust it, name it with {shlex.join(as_options(loaded))}"
        )
    if weights is None and loaded.get("weights", "random") != "random":
        click.echo(f"opsin: reading the weights {loaded['weights']}, which {folder} names", err=True)
    settings: dict[str, Any] = (
        dict(loaded) | ({} if weights is None else {"weights": weights}) | given_settings()
    )
    return _remembered(load(**settings))


def default_model(name: str, weights: str | None, folders: Iterable[str | None]) -> "Model":
    """The network that the options name; where they name none, that of the first collection among folders."""
    given = click.get_current_context().get_parameter_source("model_name")
    for folder in folders:
        if given is ParameterSource.DEFAULT and folder is not None and is_collection(folder):
            return reopen_model(open_collection(folder).about.model, None, weights, folder)
    return open_model(name, weights)


def open_collection(folder: str) -> "Collection":
    """The collection that an option names."""
    from opsin.collection.store.store import Collection

    return Collection(folder)


def open_photos(
    photos: tuple[str, ...], target: str | None = None, failures: list[str] | None = None
) -> "list[tuple[str, Opened]]":
    """The photos, those in folders, and those of collections that show the target, with their names.

    Few are held decoded at once. Files and folders have been checked: their photos can be read. With a list
    of `failures`, photos that cannot be read are put there in place of raising, as long as others can.
    """
    from opsin.images.photos import decoded, folder_photos, open_photo

    def read(source: "Source", at: str) -> "Image":
        return decoded(source.read(at), at)

    opened = lru_cache(HELD)(open_photo)
    found: list[tuple[str, Opened]] = []
    for path in photos:
        if not path:
            raise InputError("the name of a photo is empty")
        if path == STDIN:
            found.append((STDIN_NAME, read_stdin().copy))
        elif is_collection(path):
            collection = open_collection(path)
            if not len(collection):
                raise InputError(f"{path} holds no images yet")
            found += [(r.name, partial(read, collection.source, r.path)) for r in collection.showing(target)]
        else:
            for file in folder_photos(path):
                try:
                    opened(file)
                except InputError as error:
                    if failures is None:
                        raise
                    failures.append(str(error))
                else:
                    found.append((file.name, partial(opened, file)))
    if failures and not found:
        raise InputError("; ".join(failures))
    return [(name.encode("utf-8", "backslashreplace").decode(), photo) for name, photo in found]


def read_stdin() -> "Image":
    """The photo on the standard input. Raises `InputError` where a command reads it for the second time."""
    from opsin.images.photos import as_photo

    meta = click.get_current_context().meta
    if meta.setdefault(STDIN_READ, False):
        raise InputError(f"{STDIN} is the standard input, which holds one photo: give it once")
    meta[STDIN_READ] = True
    return as_photo(sys.stdin.buffer, STDIN_NAME)


def is_collection(path: str) -> bool:
    """Whether a folder is a collection, told without opening its tables."""
    if path == STDIN:
        return False
    try:
        record = read_regular(Path(path) / RECORD, LARGEST)
        about = json.loads(record.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):  # InputError is a ValueError
        return False
    return isinstance(about, dict) and about.get("kind") == "Collection"


def batches(opened: "list[tuple[str, Opened]]", model: "Model | None", photos: str) -> "list[Tensor]":
    """The photos as a technique gets them from the command line."""
    import torch

    from opsin.images.tensors import fit, whole

    if model is None or photos == "whole":
        return [whole(photo()) for _, photo in opened]
    fitted = torch.stack([fit(photo(), model) for _, photo in opened])
    return [fitted] if photos == "together" else list(fitted.split(1))


def whole_photos(paths: tuple[str, ...]) -> "list[Tensor]":
    """Photos at their own size."""
    from opsin.images.photos import open_photo
    from opsin.images.tensors import whole

    return [whole(read_stdin() if path == STDIN else open_photo(path)) for path in paths]
