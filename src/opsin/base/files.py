"""Untrusted files: only regular files are opened, and read only up to a maximal size."""

import errno
import os
from pathlib import Path
from stat import S_ISBLK, S_ISCHR, S_ISDIR, S_ISFIFO, S_ISREG
from typing import BinaryIO

from opsin.base.errors import InputError, unknown

MIB = 2**20
KINDS = {S_ISDIR: "a folder", S_ISFIFO: "a pipe", S_ISCHR: "a device", S_ISBLK: "a device"}


def open_regular(path: str | Path, name: str = "") -> BinaryIO:
    """A regular file, or a link to one, opened for reading; errors call it `name`, by default its path.

    Raises `InputError` on a pipe, device, socket or folder, whose reading might never end, and if the file
    cannot be opened.
    """
    name = name or str(path)
    try:
        # without O_NONBLOCK, opening a pipe blocks until somebody writes to it
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        why = "it is a socket" if error.errno == errno.ENXIO else error.strerror or error
        raise InputError(f"{name} cannot be read: {why}") from error
    except ValueError as error:  # a NUL in the name
        raise InputError(f"{name!r} is not a valid file name: {error}") from error
    mode = os.fstat(descriptor).st_mode  # of the opened file, which cannot be swapped any more
    if S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    kind = next((name for is_kind, name in KINDS.items() if is_kind(mode)), "no file")
    raise InputError(f"{name} is {kind}, not a regular file")


def read_regular(path: str | Path, most: int, name: str = "", hint: str = "") -> bytes:
    """The bytes of a regular file at the time of opening.

    Raises `InputError` as `open_regular` does, and above `most` bytes; `hint` says how to raise that limit.
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
    """The error for a file that is larger than the limit."""
    return InputError(f"{name} is larger than {most / MIB:g} MiB, the most that is read{hint}")


def missing(kind: str, path: Path, pattern: str = "*") -> InputError:
    """The error for a path that does not exist: it lists the nearest names in its folder."""
    try:
        return unknown(kind, str(path), [other.name for other in path.parent.glob(pattern)])
    except (OSError, ValueError):  # for an invalid name
        return unknown(kind, str(path), [])
