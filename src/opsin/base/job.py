"""The job that is running: who listens to its steps, what it notes, and what it resumes.

The library itself prints nothing; long work reports its steps:

    with listening(lambda step: print(step.done, step.total)):
        opsin.occlusion(model, images)

A listener cancels the work by raising: nothing is left behind. Where pictures are made step by step it may
raise `StopEarly` instead: the work ends with the picture as it is.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from opsin.base.trail import Trail
    from opsin.results.pictures import Pictures

T = TypeVar("T")
CAUTION = "Caution: "


@dataclass(frozen=True)
class Step:
    """So much of a piece of work is done; of a climb, with the mean score and the pictures.

    `result()` is then the pictures so far as a result that `opsin.resume` goes on from, for a checkpoint.
    """

    label: str
    done: int
    total: int
    score: float | None = None
    images: "Callable[[], Tensor] | None" = None
    result: "Callable[[], Pictures] | None" = None


class StopEarly(Exception):  # noqa: N818 (a request, not an error)
    """Raised by a listener to end the work here, with the picture so far."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end by the signal of this number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


Listener = Callable[[Step], None]


@dataclass(frozen=True)
class Job:
    """What surrounds the running work in this thread.

    `notes` collects what a technique says besides its result, `trail` what its climbs leave behind;
    `resumed` is the saved state that the next technique resumes.
    """

    listener: Listener | None = None
    notes: list[str] | None = None
    trail: "Trail | None" = None
    resumed: "Mapping[str, Tensor]" = field(default_factory=lambda: MappingProxyType({}))


_job: ContextVar[Job] = ContextVar("job", default=Job())  # noqa: B039 (frozen)


def current() -> Job:
    """The running job; outside of any an empty one."""
    return _job.get()


@contextmanager
def within(**changes: Any) -> Iterator[None]:
    """A block in which the running job is changed so."""
    token = _job.set(replace(_job.get(), **changes))
    try:
        yield
    finally:
        _job.reset(token)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` with every step of the work inside the block, in this thread."""
    with within(listener=listener):
        yield


@contextmanager
def noting() -> Iterator[list[str]]:
    """Collect the notes of the block."""
    notes: list[str] = []
    with within(notes=notes):
        yield notes


def note(text: str) -> None:
    """Write a line into the record of the technique that is running; without one, nothing happens.

    A line that begins with `CAUTION` stands beside the picture on the page.
    """
    notes = current().notes
    if notes is not None and text not in notes:
        notes.append(text)


def report(step: Step) -> None:
    """Hand a step to whoever listens."""
    if (listener := current().listener) is not None:
        listener(step)


def tell(label: str, done: int, total: int) -> None:
    """Tell whoever listens how far a piece of work is."""
    report(Step(label, done, total))


def steps(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Hand on the items and report each one, once it is worked through."""
    for done, item in enumerate(items):
        tell(label, done, total)
        yield item
    tell(label, total, total)
