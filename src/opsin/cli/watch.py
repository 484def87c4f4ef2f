"""What a command does while work runs: shows steps, keeps pictures and checkpoints, handles signals."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from opsin.base.folders import StorageError, checkpoint
from opsin.base.job import StopEarly, listening
from opsin.cli.signals import end, handling

if TYPE_CHECKING:
    from rich.progress import Progress, Task

    from opsin.base.job import Step

TELL_EVERY = 10.0  # seconds between lines of progress where stderr is no terminal
CHECKPOINT_EVERY = 30.0  # seconds, at least, from one checkpoint of a climb to the next
CHECKPOINT_SHARE = 0.02  # of the time of a climb, at most, goes into checkpoints


class Watch:
    """A listener to long work.

    `frames` are the pictures of every so many steps. `ended_by` is the signal that ended a climb early.
    """

    def __init__(self, bars: "Progress", every: int | None, iterative: bool) -> None:
        self.bars, self.every, self.iterative = bars, every, iterative
        self.frames: list[Any] = []
        self.ended_by: int | None = None
        self.folder: Path | None = None
        self.checkpoints = 0
        self.tasks: dict[str, Any] = {}
        self.begun: dict[str, tuple[int, float]] = {}
        self.told = self.kept = time.monotonic()
        self.pause = CHECKPOINT_EVERY

    def into(self, folder: Path) -> None:
        """Frames and checkpoints from now on belong to another result, which goes into this folder."""
        self.folder = folder
        self.frames.clear()
        self.kept = time.monotonic()

    def signalled(self, number: int, _: Any) -> None:
        """The first signal ends a climb with the picture so far, the second one everything."""
        if self.ended_by is not None:
            end(number)
        self.ended_by = number

    def __call__(self, step: "Step") -> None:
        """Handle a step."""
        self._show(step)
        if step.images is None or not self.iterative:
            if self.ended_by is not None:
                end(self.ended_by)
            return
        if self.every and step.done % self.every == 0:
            self.frames.append(step.images().cpu().permute(1, 2, 0, 3).flatten(2))  # side by side
        if self.ended_by is not None:
            raise StopEarly
        if time.monotonic() - self.kept > self.pause:
            self._keep(step)

    def _keep(self, step: "Step") -> None:
        """Write a checkpoint; the longer that takes, the later comes the next one."""
        if self.folder is None or step.result is None:
            return
        began = time.monotonic()
        try:
            with checkpoint(self.folder, self.checkpoints) as place:
                step.result().write_data(place, compress=False)
            self.checkpoints += 1
        except StorageError as error:
            click.echo(f"opsin: no checkpoint could be written: {error.strerror}", err=True)
        self.kept = time.monotonic()
        self.pause = max(CHECKPOINT_EVERY, (self.kept - began) / CHECKPOINT_SHARE)

    def _show(self, step: "Step") -> None:
        text = step.label if step.score is None else f"{step.label}  score {step.score:.4g}"
        self.begun.setdefault(step.label, (step.done, time.monotonic()))
        if self.bars.disable and time.monotonic() - self.told > TELL_EVERY:
            self.told = time.monotonic()
            done, since = self.begun[step.label]
            speed = (step.done - done) / max(self.told - since, 1e-9)
            left = f", {speed:.3g}/s, {(step.total - step.done) / speed:.0f} s left" if speed else ""
            click.echo(f"{text}: {step.done} of {step.total}{left}", err=True)
        if step.label not in self.tasks:
            self.tasks[step.label] = self.bars.add_task(text)
        self.bars.update(
            self.tasks[step.label],
            completed=step.done,
            total=step.total,
            description=text,
            visible=step.done < step.total,
        )


@contextmanager
def progress(every: int | None = None, *, iterative: bool = True) -> Iterator[Watch]:
    """Show steps on stderr: a bar on a terminal, otherwise a line every few seconds.

    Where the work is `iterative`, the first signal to end lets it come to its next step and end there with
    its picture; other work is cancelled.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    class Speed(ProgressColumn):
        def render(self, task: "Task") -> str:
            return f"{task.speed:.3g}/s" if task.speed else ""

    console = Console(stderr=True)
    text, left = TextColumn("{task.description}"), TimeRemainingColumn()
    columns = (text, BarColumn(), MofNCompleteColumn(), Speed(), left)
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        watch = Watch(bars, every, iterative)
        with handling(watch.signalled if iterative else end), listening(watch):
            yield watch
