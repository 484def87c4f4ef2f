"""What the commands share: the options, photos and networks from the command line, progress."""

import json
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from opsin.collection.source import Source
    from opsin.collection.store import Collection
    from opsin.model import Model
    from opsin.progress import Step

Command = TypeVar("Command", bound=Callable[..., Any] | click.Command)
Opened = Callable[[], "Image"]
HELD = 32  # photos that are held decoded
TELL_EVERY = 10.0  # seconds between lines of progress where stderr is no terminal
PHOTOS = click.argument("photos", nargs=-1, required=True, type=click.Path())
MODEL_HELP = "Network: a zoo name, timm:NAME, torchvision:NAME, hf:NAME or FILE.py:FACTORY."
DEFAULT_MODEL = "tf_efficientnet_lite0"
WEIGHTS_HELP = "Checkpoint to load in place of the published weights, or 'random'."
WEIGHTS = click.option("--weights", default=None, help=WEIGHTS_HELP)
OUT = click.option(
    "--out", "-o", "folder", default=None, help="Output folder; by default named after the command."
)


def model_option(
    default: str | None, also: str = "For a collection by default its own."
) -> Callable[[Command], Command]:
    """The option that names a network."""
    shown = default is not None
    about = f"{MODEL_HELP} {also}".strip()
    return click.option("--model", "-m", "model_name", default=default, show_default=shown, help=about)


def open_model(name: str, weights: str | None) -> "Model":
    """The network that an option names."""
    from opsin.zoo import load

    return load(name, weights=weights)


def reopen_model(known: Mapping[str, Any], name: str | None, weights: str | None) -> "Model":
    """The network that a record names, unless the options name another."""
    if name is None and not known.get("load"):
        raise click.UsageError(f"{known['name']} was made in Python: name it with --model FILE.py:FACTORY")
    name, *saved = known["load"] if name is None else [name]
    return open_model(name, weights or next(iter(saved), None))


def default_model(name: str, weights: str | None, folders: Iterable[str | None]) -> "Model":
    """The network that the options name; where they name none, that of the first collection among folders."""
    given = click.get_current_context().get_parameter_source("model_name")
    for folder in folders:
        if given is ParameterSource.DEFAULT and folder is not None and is_collection(folder):
            return reopen_model(open_collection(folder).about.model, None, weights)
    return open_model(name, weights)


def open_collection(folder: str) -> "Collection":
    """The collection that an option names."""
    from opsin.collection.store import Collection

    return Collection(folder)


def open_photos(photos: tuple[str, ...], target: str | None = None) -> "list[tuple[str, Opened]]":
    """The photos, those in folders, and those of collections that show the target, with their names.

    Of many, few are held decoded. Those in files and folders have been looked at: they can be read.
    """
    from opsin.photos import decoded, folder_photos, open_photo

    def read(source: "Source", at: str) -> "Image":
        return decoded(source.read(at), at)

    opened = lru_cache(HELD)(open_photo)
    found: list[tuple[str, Opened]] = []
    for path in photos:
        if is_collection(path):
            collection = open_collection(path)
            found += [(r.name, partial(read, collection.source, r.path)) for r in collection.showing(target)]
        else:
            for one in folder_photos(path):
                opened(one)
                found.append((one.name, partial(opened, one)))
    return [(name.encode("utf-8", "backslashreplace").decode(), photo) for name, photo in found]


def is_collection(path: str) -> bool:
    """Whether a folder is a collection, told without opening its tables."""
    try:
        about = json.loads((Path(path) / "record.json").read_text("utf-8", "surrogateescape"))
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and about.get("kind") == "Collection"


def batches(opened: "list[tuple[str, Opened]]", model: "Model", photos: str) -> "list[tuple[Tensor]]":
    """The photos as a technique gets them from the command line."""
    import torch

    from opsin.images import fit, whole

    if photos == "whole":
        return [(whole(photo()),) for _, photo in opened]
    fitted = torch.stack([fit(photo(), model) for _, photo in opened])
    return [(fitted,)] if photos == "together" else [(one,) for one in fitted.split(1)]


def whole_photos(paths: tuple[str, ...]) -> "list[Tensor]":
    """Photos at their own size."""
    from opsin.images import whole
    from opsin.photos import open_photo

    return [whole(open_photo(path)) for path in paths]


@contextmanager
def progress(every: int | None = None, *, climbs: bool = True) -> Iterator[list[Any]]:
    """Tell steps on stderr: a bar on a terminal, else a line now and then. Gives the list of frames to keep.

    Of pictures that are climbed the first interrupt ends the climb, and the picture so far is kept.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )

    from opsin.progress import Enough, listening

    class Speed(ProgressColumn):
        def render(self, task: Task) -> str:
            return f"{task.speed:.3g}/s" if task.speed else ""

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Speed(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    frames: list[Any] = []
    interrupted: list[int] = []
    told = time.monotonic()

    def interrupt(number: int, _: Any) -> None:
        if interrupted:
            raise KeyboardInterrupt
        interrupted.append(number)

    def show(step: "Step") -> None:
        nonlocal told
        text = step.label if step.score is None else f"{step.label}  score {step.score:.4g}"
        begun.setdefault(step.label, (step.done, time.monotonic()))
        if not console.is_terminal and time.monotonic() - told > TELL_EVERY:
            told = time.monotonic()
            speed = (step.done - begun[step.label][0]) / max(told - begun[step.label][1], 1e-9)
            left = f", {speed:.3g}/s, {(step.total - step.done) / speed:.0f} s left" if speed else ""
            click.echo(f"{text}: {step.done} of {step.total}{left}", err=True)
        if step.label not in tasks:
            tasks[step.label] = bars.add_task(text)
        bars.update(
            tasks[step.label],
            completed=step.done,
            total=step.total,
            description=text,
            visible=step.done < step.total,
        )
        if step.images is None or not climbs:
            if interrupted:
                raise KeyboardInterrupt
            return
        if every and step.done % every == 0:
            frames.append(step.images().cpu().permute(1, 2, 0, 3).flatten(2))  # side by side
        if interrupted:
            raise Enough

    tasks: dict[str, Any] = {}
    begun: dict[str, tuple[int, float]] = {}
    before = signal.signal(signal.SIGINT, interrupt) if climbs else None
    try:
        with (
            Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars,
            listening(show),
        ):
            yield frames
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
