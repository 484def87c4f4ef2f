"""What a technique says beside its result."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

CAUTION = "Caution: "

_notes: ContextVar[list[str] | None] = ContextVar("notes", default=None)


def note(text: str) -> None:
    """Write a line into the record of the technique that is running; without one, nothing happens.

    A line that begins with `CAUTION` stands beside the picture on the page.
    """
    notes = _notes.get()
    if notes is not None and text not in notes:
        notes.append(text)


@contextmanager
def noting() -> Iterator[list[str]]:
    """Collect the notes of the block."""
    notes: list[str] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)
