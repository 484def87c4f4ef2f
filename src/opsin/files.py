"""Files that somebody else may have written: only regular ones are opened, and read only up to a size."""

import errno
import os
from pathlib import Path
from stat import S_ISCHR, S_ISDIR, S_ISFIFO, S_ISREG
from typing import BinaryIO

from opsin.errors import InputError

MIB = 2**20
KINDS = {S_ISDIR: "a folder", S_ISFIFO: "a pipe", S_ISCHR: "a device"}


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file, or what a link to one leads to, opened to be read.

    Raises `InputError` on a pipe, a device, a socket or a folder, which might be waited for or read without
    end, and on what cannot be opened.
    """
    try:
        # Without O_NONBLOCK the opening of a pipe waits for somebody who writes into it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        why = "it is a socket" if error.errno == errno.ENXIO else error.strerror or error
        raise InputError(f"{path} cannot be read: {why}") from error
    except ValueError as error:  # a NUL in the name
        raise InputError(f"{str(path)!r} cannot be the name of a file: {error}") from error
    mode = os.fstat(descriptor).st_mode  # of what was opened, which cannot be exchanged any more
    if S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    kind = next((name for is_kind, name in KINDS.items() if is_kind(mode)), "no file")
    raise InputError(f"{path} is {kind}, not a regular file")


def read_regular(path: str | Path, most: int) -> bytes:
    """The bytes of a regular file. Raises `InputError` as `open_regular` does, and beyond `most` bytes."""
    with open_regular(path) as file:
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > most:
        raise InputError(f"{path} is larger than {most / MIB:g} MiB, the most that is read")
    return data
