"""What a shell offers behind TAB: names that are known without loading a network or running a file."""

import ast
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from opsin.base.errors import InputError
from opsin.base.files import MIB, read_regular

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from opsin.cli.remembered import Names

    Items = list[CompletionItem[str]]

VARIABLE = "_OPSIN_COMPLETE"  # of the environment; with it the shell's script asks what to offer
LARGEST_SOURCE = MIB  # bytes of a FILE.py whose functions are offered
UNFINISHED = "unfinished"  # the type of what goes on without a space, such as `timm:`


def files(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> "Items":
    """Files, which the shell itself knows."""
    return [_item(incomplete, "file")]


def folders(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> "Items":
    """Folders, which the shell itself knows."""
    return [_item(incomplete, "dir")]


def techniques(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> "Items":
    """The techniques, with their first sentences."""
    from opsin.registry import catalogue

    return described(catalogue.names(), incomplete)


def described(about: Mapping[str, str], incomplete: str) -> "Items":
    """The names that begin so, with what they are."""
    return [_item(name, about=about[name]) for name in _beginning(about, incomplete)]


def models(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> "Items":
    """Networks: the zoo's, those of timm and torchvision behind their prefix, and functions of a file."""
    from opsin.zoo import families
    from opsin.zoo.entries import ENTRIES, FORMS

    family, colon, _ = incomplete.partition(":")
    if colon and family in families.FAMILIES:
        names = (f"{family}:{name}" for name in families.names(family))
        return [_item(name) for name in _beginning(names, incomplete)]
    file, _, _ = incomplete.rpartition(":")
    if file.endswith(".py"):
        names = (f"{file}:{name}" for name in _functions(file))
        return [_item(name) for name in _beginning(names, incomplete)]
    prefixes = [form.removesuffix("NAME") for form in FORMS if form.endswith(":NAME")]
    unfinished = [*_beginning(prefixes, incomplete), *_sources(incomplete)]
    zoo = described(ENTRIES, incomplete)
    return [*zoo, *(_item(name, UNFINISHED) for name in unfinished if name != incomplete)]


def models_or_files(context: click.Context, parameter: click.Parameter, incomplete: str) -> "Items":
    """Networks, or where none begins so, files."""
    return models(context, parameter, incomplete) or files(context, parameter, incomplete)


def layers(context: click.Context, _parameter: click.Parameter, incomplete: str) -> "Items":
    """The layers of the network that the command names."""
    return [_item(name) for name in _beginning(_network(context).layers, incomplete)]


def several_layers(context: click.Context, _parameter: click.Parameter, incomplete: str) -> "Items":
    """The layers of the network that the command names, behind those that are there before a comma."""
    before, last = _split(incomplete, ",")
    return [_item(before + name) for name in _beginning(_network(context).layers, last)]


def targets(context: click.Context, _parameter: click.Parameter, incomplete: str) -> "Items":
    """The classes of the network that the command names, and its layers, which a channel follows.

    They come behind the targets that are there before a semicolon.
    """
    before, last = _split(incomplete, ";")
    network = _network(context)
    channels = [f"{layer}:" for layer in network.layers]
    classes = [_item(before + name) for name in _beginning(_unique(network.classes), last)]
    return classes + [_item(before + name, UNFINISHED) for name in _beginning(channels, last) if name != last]


def _item(value: str, kind: str = "plain", about: str | None = None) -> "CompletionItem[str]":
    from click.shell_completion import CompletionItem

    return CompletionItem(value, type=kind, help=about)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    """The names that begin so, in this case of letters or, where none does, in any.

    Names that a terminal cannot show are left out: they may come from somebody else's network.
    """
    shown = [name for name in names if name.isprintable()]
    exact = [name for name in shown if name.startswith(incomplete)]
    return exact or [name for name in shown if name.lower().startswith(incomplete.lower())]


def _split(text: str, separator: str) -> tuple[str, str]:
    """The text up to the last of several values, and this one."""
    last = text.rpartition(separator)[2].lstrip()
    return text.removesuffix(last), last


def _unique(labels: Iterable[str]) -> list[str]:
    """The synonyms that name one class only."""
    synonyms = [part.strip() for label in labels for part in label.split(",")]
    count = Counter(name.lower() for name in synonyms)
    return [name for name in synonyms if name and count[name.lower()] == 1]


def _network(context: click.Context) -> "Names":
    """What is remembered of the network that the command names, or that it takes by default."""
    from opsin.cli.remembered import Names, recall

    option = next((p for p in context.command.params if p.name == "model_name"), None)
    name = context.params.get("model_name") or (option and option.get_default(context))
    return recall(name) if isinstance(name, str) else Names()


def _sources(incomplete: str) -> Iterator[str]:
    """The Python files that begin so, each with the colon before its function, and folders to look in."""
    folder, slash, start = incomplete.rpartition("/")
    with suppress(OSError, ValueError), os.scandir(folder + slash or ".") as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = folder + slash + entry.name
            hidden = entry.name.startswith(".") and not start.startswith(".")
            if hidden or not entry.name.startswith(start) or not path.isprintable():
                continue
            if entry.name.endswith(".py") and entry.is_file():
                yield f"{path}:"
            elif incomplete and entry.is_dir():
                yield f"{path}/"


def _functions(file: str) -> list[str]:
    """The public functions of a file, which is read, not run."""
    try:
        module = ast.parse(read_regular(file, LARGEST_SOURCE))
    except (InputError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    names = [node.name for node in module.body if isinstance(node, ast.FunctionDef)]
    return [name for name in names if not name.startswith("_")]
