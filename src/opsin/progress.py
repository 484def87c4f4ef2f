"""Long work reports its steps to whoever listens; the library itself prints nothing.

    with listening(lambda step: print(step.done, step.total)):
        opsin.occlusion(model, images)

A listener cancels the work by raising: nothing is left behind.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """So much of a piece of work is done."""

    label: str
    done: int
    total: int


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


def steps(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Hand on the items and report each one, once it is worked through."""
    listener = _listener.get()
    for done, item in enumerate(items):
        if listener is not None:
            listener(Step(label, done, total))
        yield item
    if listener is not None:
        listener(Step(label, total, total))
