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
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """So much of a piece of work is done; of a climb, with the mean score and the pictures."""

    label: str
    done: int
    total: int
    score: float | None = None
    images: Callable[[], Tensor] | None = None


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


def report(label: str, done: int, total: int, score: float, images: Callable[[], Tensor]) -> None:
    """Tell whoever listens of a step of a climb."""
    listener = _listener.get()
    if listener is not None:
        listener(Step(label, done, total, score, images))


def tell(label: str, done: int, total: int) -> None:
    """Tell whoever listens how far a piece of work is."""
    listener = _listener.get()
    if listener is not None:
        listener(Step(label, done, total))


def steps(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Hand on the items and report each one, once it is worked through."""
    for done, item in enumerate(items):
        tell(label, done, total)
        yield item
    tell(label, total, total)
