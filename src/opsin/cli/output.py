"""The results of a command in its output folder: one in the folder itself, several in a folder each."""

import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from opsin.base.files import MIB, read_regular
from opsin.base.folders import RECORD, discard_checkpoints, storing
from opsin.base.records import as_json
from opsin.cli.watch import Watch

ANIMATIONS = ("webp", "gif")
LARGEST_ANIMATION = 512 * MIB


def each(
    names: Iterable[str], fresh: Path, watch: Watch, absent: Sequence[str] = ()
) -> Iterator[tuple[str, Path]]:
    """The results to make, with their folders; a signal that ended one of them ends the others too.

    The index also lists those that are `absent`: photos that were asked for and not begun.
    """
    todo = list(names)
    _write_index(fresh, [*todo, *absent])
    for done, name in enumerate(todo):
        if watch.ended_by is not None:
            say_not_begun([*todo[done:], *absent])
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


def say_not_begun(names: Sequence[str]) -> None:
    """Say which photos a command had not begun when it ended."""
    if names:
        click.echo(
            f"opsin: not begun: {', '.join(names)}; for these, run the command into another folder (-o)",
            err=True,
        )


def write(result: Any, frames: list[Any], inner: Path, animation: str) -> None:
    """Write a result with its frames."""
    from opsin.images.colour import animate

    result.write_into(inner)
    with storing():
        if len(frames) > 1:
            animate(frames, inner / f"steps.{animation}")
        if getattr(result, "film", False) and animation != "webp":
            (inner / "animation.webp").unlink()
            animate(list(result.images), inner / f"animation.{animation}")


def keep_animation(before: Path, inner: Path) -> None:
    """Copy the animation of the steps that came before, where the new ones made none."""
    names = [f"steps.{kind}" for kind in ANIMATIONS]
    if any((inner / name).exists() for name in names):
        return
    for name in names:
        old = before / name
        if old.is_file() and not old.is_symlink():
            data = read_regular(old, LARGEST_ANIMATION)
            with storing():
                (inner / name).write_bytes(data)


def say_resumable(place: str) -> None:
    """Say that a killed command left pictures behind that can be resumed."""
    click.echo(
        f"opsin: a command that made pictures in {place} was killed; `{_command('resume', place)}` would "
        "resume them, this command starts again and replaces them",
        err=True,
    )


def finish(place: str, watch: Watch) -> None:
    """Say where the results are, and how to go on with those that a signal ended early."""
    click.echo(place)
    if watch.ended_by is not None:
        from opsin.base.resuming import stopped

        for folder, where in stopped(place).items():
            click.echo(f"opsin: {where}; `{_command('resume', folder)}` resumes there", err=True)
        sys.exit(128 + watch.ended_by)


def _command(*words: str) -> str:
    return shlex.join(["opsin", *words])
