"""Files that somebody else may have written: only regular ones are opened, and read only up to a size."""

import errno
import os
from pathlib import Path
from stat import S_ISBLK, S_ISCHR, S_ISDIR, S_ISFIFO, S_ISREG
from typing import BinaryIO

from opsin.base.errors import InputError, unknown

MIB = 2**20
KINDS = {S_ISDIR: "a folder", S_ISFIFO: "a pipe", S_ISCHR: "a device", S_ISBLK: "a device"}


def open_regular(path: str | Path, name: str = "") -> BinaryIO:
    """A regular file, or what a link to one leads to, opened to be read; errors call it `name`, or its path.

    Raises `InputError` on a pipe, a device, a socket or a folder, which might be waited for or read without
    end, and on what cannot be opened.
    """
    name = name or str(path)
    try:
        # Without O_NONBLOCK the opening of a pipe waits for somebody who writes into it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        why = "it is a socket" if error.errno == errno.ENXIO else error.strerror or error
        raise InputError(f"{name} cannot be read: {why}") from error
    except ValueError as error:  # a NUL in the name
        raise InputError(f"{name!r} cannot be the name of a file: {error}") from error
    mode = os.fstat(descriptor).st_mode  # of what was opened, which cannot be exchanged any more
    if S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    kind = next((name for is_kind, name in KINDS.items() if is_kind(mode)), "no file")
    raise InputError(f"{name} is {kind}, not a regular file")


def read_regular(path: str | Path, most: int, name: str = "", hint: str = "") -> bytes:
    """The bytes that a regular file holds when it is opened.

    Raises `InputError` as `open_regular` does, and beyond `most` bytes; the `hint` says how to raise these.
    """
    with open_regular(path, name) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise too_large(name or str(path), most, hint)
        try:
            return file.read(size)
        except OSError as error:
            raise InputError(f"{name or path} cannot be read: {error.strerror or error}") from error


def too_large(name: str, most: int, hint: str = "") -> InputError:
    """The error for what is larger than may be read."""
    return InputError(f"{name} is larger than {most / MIB:g} MiB, the largest size that is read{hint}")


def missing(kind: str, path: Path, pattern: str = "*") -> InputError:
    """The error for a path at which there is nothing: it lists the nearest names there."""
    try:
        return unknown(kind, str(path), [other.name for other in path.parent.glob(pattern)])
    except (OSError, ValueError):  # of a name that no file can have
        return unknown(kind, str(path), [])
