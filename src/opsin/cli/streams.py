"""Standard output that cannot be written: a full disk, or a pipe whose reader is gone."""

import errno
import os
import sys
from contextlib import suppress
from types import TracebackType

import click

PRINTERS = ("click", "rich")  # the packages that write to standard output


def failed_to_print(error: OSError) -> bool:
    """Whether an error comes from writing to a terminal, a pipe or a file that the shell opened."""
    level: TracebackType | None = error.__traceback__
    module = ""
    while level is not None:
        module, level = level.tb_frame.f_globals.get("__name__", ""), level.tb_next
    return module.partition(".")[0] in PRINTERS


def end_output(error: OSError | None = None) -> None:
    """Write what is left of the output; where that or something before failed, say so and exit.

    A reader who is gone, as `head` is, is no news: then nothing is said. The exit code is 2, or 1 there.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as failure:
        error = error or failure
    if error is None:
        return
    with suppress(OSError, ValueError):  # or the interpreter, when it ends, fails on what is left once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:
        sys.exit(1)
    with suppress(OSError):
        click.echo(f"opsin: the output cannot be written: {error.strerror}", err=True)
    sys.exit(2)
