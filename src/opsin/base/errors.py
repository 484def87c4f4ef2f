"""Errors whose messages say what was passed and what would be valid."""

import difflib
import sys
from collections.abc import Iterable

LONGEST = 200  # characters of a name that an error repeats


class OpsinError(Exception):
    """Every error that Opsin raises on purpose; the command line prints it and exits with code 2."""


class InputError(OpsinError, ValueError):
    """An argument, a file or a name that cannot be used."""


class NetworkError(OpsinError, RuntimeError):
    """The network itself failed, or is not of the kind that the technique needs."""


class OutOfMemoryError(OpsinError, MemoryError):
    """The machine has too little memory for what was asked."""


def at_least(least: int, **given: int) -> None:
    """Raise `InputError` for numbers below `least`."""
    for name, value in given.items():
        if value < least:
            raise InputError(f"{name} must be at least {least}, not {value}")


def unknown(kind: str, name: str, valid: Iterable[str], also: str = "") -> InputError:
    """The error for a name that is not among the valid ones: it lists the nearest of them."""
    names = list(valid)
    lowered = {n.lower(): n for n in reversed(names)}
    near = [lowered[n] for n in difflib.get_close_matches(name.lower(), lowered, n=5, cutoff=0.4)]
    listed = near or names[:5]
    hint = f"; nearest: {', '.join(listed)}" if listed else ""
    return InputError(f"unknown {kind} {shortened(name)!r}{hint}{also}")


def shortened(text: str) -> str:
    """The text, cut off if it is long."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def shown(value: object) -> str:
    """A value as it appears in an error message."""
    try:
        return shortened(repr(value))
    except ValueError:  # Python refuses to convert longer integers to text
        return f"a number of more than {sys.get_int_max_str_digits():,} digits"
