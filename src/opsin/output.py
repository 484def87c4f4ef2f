"""The results of a command in its output folder: one in the folder itself, several in a folder each."""

import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from opsin.folders import RECORD, discard_checkpoints, storing
from opsin.records import as_json
from opsin.resuming import stopped
from opsin.watch import Watch


def each(names: Iterable[str], fresh: Path, watch: Watch) -> Iterator[tuple[str, Path]]:
    """The results to make, with their folders; a signal that ended one of them ends the others too."""
    todo = list(names)
    _write_index(fresh, todo)  # so that what a killed command made can be told from what it did not begin
    for done, name in enumerate(todo):
        if watch.ended_by is not None:
            click.echo(
                f"opsin: not begun: {', '.join(todo[done:])}; run the command again for these", err=True
            )
            _write_index(fresh, todo[:done])
            return
        inner = fresh / name
        with storing():
            inner.mkdir(exist_ok=True)
        watch.into(inner)
        yield name, inner
        discard_checkpoints(inner)


def _write_index(fresh: Path, names: list[str]) -> None:
    if names != ["."]:
        with storing():
            (fresh / RECORD).write_text(as_json({"kind": "Photos", "photos": names}), "utf-8")


def write(result: Any, frames: list[Any], inner: Path, animation: str) -> None:
    """Write a result with its frames."""
    from opsin.colour import animate

    result.write_into(inner)
    with storing():
        if len(frames) > 1:
            animate(frames, inner / f"steps.{animation}")
        if getattr(result, "film", False) and animation != "webp":
            (inner / "animation.webp").unlink()
            animate(list(result.images), inner / f"animation.{animation}")


def say_resumable(place: str) -> None:
    """Say that a killed command left something behind which could be gone on with."""
    click.echo(
        f"opsin: a command that made pictures in {place} was killed; `{_command('resume', place)}` would go "
        "on with them, this command begins anew and takes their place",
        err=True,
    )


def finish(place: str, watch: Watch) -> None:
    """Say where the results are, and how to go on with those that a signal ended early."""
    click.echo(place)
    if watch.ended_by is not None:
        for folder, where in stopped(place).items():
            click.echo(f"opsin: {where}; `{_command('resume', folder)}` goes on from there", err=True)
        sys.exit(128 + watch.ended_by)


def _command(*words: str) -> str:
    return shlex.join(["opsin", *words])
