"""The names of networks' layers and classes, remembered for the shell's completion.

Naming a network's layers takes a forward pass through it, so they are kept in the user's cache, one file a
network, whenever a command has made that pass.
"""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opsin.base.errors import InputError
from opsin.base.files import MIB, read_regular
from opsin.base.records import as_json

if TYPE_CHECKING:
    from opsin.network.model import Model

LARGEST = 8 * MIB  # bytes of one network's file


@dataclass(frozen=True)
class Names:
    """The names of a network's layers and classes."""

    layers: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


def remember(model: "Model") -> None:
    """Keep the names of a network that was loaded by name and has run, unless the cache cannot be written."""
    if model.loaded is None or "_traced" not in vars(model):
        return
    name = _full(model.loaded["name"])
    known = {"network": name, "state": _state(name), "layers": list(model.calls)}
    text = as_json({**known, "classes": list(model.labels or ())})
    cached = _cached(name)
    with suppress(OSError):
        if cached.is_file() and cached.read_text("utf-8") == text:
            return
        cached.parent.mkdir(parents=True, exist_ok=True)
        fresh = cached.with_name(f".{os.getpid()}-{cached.name}")
        fresh.write_text(text, "utf-8")
        fresh.replace(cached)  # atomic


def recall(name: str) -> Names:
    """What is remembered of the network of this name: nothing where its file was edited since."""
    try:
        known = json.loads(read_regular(_cached(_full(name)), LARGEST))
        if [known["network"], known["state"]] != [_full(name), _state(_full(name))]:
            return Names()
        return Names(tuple(map(str, known["layers"])), tuple(map(str, known["classes"])))
    except (InputError, ValueError, RecursionError, KeyError, TypeError):
        return Names()


def _full(name: str) -> str:
    """The name with the absolute path of its file or folder, if it names one."""
    file, _, factory = name.rpartition(":")
    if file.endswith(".py"):
        return f"{Path(file).absolute()}:{factory}"
    kind, _, folder = name.partition(":")
    # os.path.isdir does not raise on a name that no file can have
    return f"hf:{Path(folder).absolute()}" if kind == "hf" and os.path.isdir(folder) else name  # noqa: PTH112


def _state(name: str) -> list[int] | None:
    """When the file of code in a network's name was changed last, and its size; `None` if there is none."""
    file = name.rpartition(":")[0]
    try:
        status = Path(file).stat()
    except (OSError, ValueError):
        return None
    return [status.st_mtime_ns, status.st_size] if file.endswith(".py") else None


def _cached(name: str) -> Path:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    return folder() / f"{digest[:32]}.json"


def folder() -> Path:
    """The folder of the names in the user's cache."""
    from platformdirs import user_cache_path

    return user_cache_path("opsin") / "names"
