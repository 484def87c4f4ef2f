"""Long work reports its steps to whoever listens; the library itself prints nothing.

    with listening(lambda step: print(step.done, step.total)):
        opsin.occlusion(model, images)

A listener cancels the work by raising: nothing is left behind. Where pictures are made step by step it may
raise `Enough` instead: the work ends with the picture as it is.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from opsin.results.pictures import Pictures

T = TypeVar("T")


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


class Terminated(KeyboardInterrupt):
    """The process was asked to end by the signal of this number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class Enough(Exception):  # noqa: N818 (a wish, no error)
    """Raised by a listener: end here, with the picture so far."""


Listener = Callable[[Step], None]
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` with every step of the work inside the block, in this thread."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report(step: Step) -> None:
    """Hand a step to whoever listens."""
    listener = _listener.get()
    if listener is not None:
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
