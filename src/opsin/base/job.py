"""The running job: its progress listener, its notes, and the saved state that it resumes.

The library itself prints nothing; long work reports its steps:

    with listening(lambda step: print(step.done, step.total)):
        opsin.occlusion(model, images)

A listener cancels the work by raising an exception; no files remain. If pictures are optimised step by step,
it may raise `StopEarly` instead: the work ends with the picture so far.
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
    """The progress of a piece of work; for an optimisation, with the mean score and the pictures.

    `result()` then gives the pictures so far as a result that `opsin.resume` can continue, for a checkpoint.
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
    """The process was asked to end by this signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


Listener = Callable[[Step], None]


@dataclass(frozen=True)
class Job:
    """The context of the running work in this thread.

    `notes` collects a technique's remarks on its result, `trail` the states of its optimisations; `resumed`
    is the saved state that the next technique resumes.
    """

    listener: Listener | None = None
    notes: list[str] | None = None
    trail: "Trail | None" = None
    resumed: "Mapping[str, Tensor]" = field(default_factory=lambda: MappingProxyType({}))


_job: ContextVar[Job] = ContextVar("job", default=Job())  # noqa: B039 (frozen)


def current() -> Job:
    """The running job; an empty one if none is running."""
    return _job.get()


@contextmanager
def within(**changes: Any) -> Iterator[None]:
    """A block in which the running job has these changes."""
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
    """Add a line to the record of the running technique; without one, do nothing.

    A line that begins with `CAUTION` is shown beside the picture on the page.
    """
    notes = current().notes
    if notes is not None and text not in notes:
        notes.append(text)


def report(step: Step) -> None:
    """Report a step to the listener."""
    if (listener := current().listener) is not None:
        listener(step)


def tell(label: str, done: int, total: int) -> None:
    """Report the progress of a piece of work to the listener."""
    report(Step(label, done, total))


def steps(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yield the items and report each one when it is done."""
    for done, item in enumerate(items):
        tell(label, done, total)
        yield item
    tell(label, total, total)
