"""Single files for other programs: written beside their place, and moved there when they are complete."""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG

from opsin.base.errors import InputError
from opsin.base.files import missing
from opsin.base.folders import WORKING, StorageError, storing


@contextmanager
def replacing(paths: Sequence[Path], *, overwrite: bool) -> Iterator[list[Path]]:
    """Paths of files to write, which are moved to `paths` at the end; after an error nothing has changed.

    Raises `InputError` before any work if a folder does not exist, if a path is anything but a regular file,
    and unless `overwrite` is set, if there is a file already.
    """
    for path in paths:
        _refuse(path, overwrite)
    fresh = [path.with_name(f"{WORKING}{secrets.token_hex(4)}-{path.name}") for path in paths]
    try:
        with storing():
            for path in fresh:
                path.open("xb").close()
        yield fresh
        for path in paths:
            _refuse(path, overwrite)  # it may have appeared meanwhile
        with storing():
            for written, path in zip(fresh, paths, strict=True):
                written.replace(path)
    except StorageError as error:
        raise InputError(f"cannot write {paths[0]}: {error.strerror}") from error
    finally:
        for path in fresh:
            path.unlink(missing_ok=True)


def _refuse(path: Path, overwrite: bool) -> None:
    """Raise `InputError` if a file must not be written there."""
    try:
        if not path.parent.is_dir():
            raise missing("folder", path.parent)
        regular = S_ISREG(path.lstat().st_mode)  # not a link, whose target somebody else may have chosen
    except FileNotFoundError:
        return
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"{str(path)!r} cannot be written: {error}") from error
    if not regular:
        raise InputError(f"{path} exists and is not a regular file: choose another name")
    if not overwrite:
        raise InputError(f"{path} exists already: choose another name, or overwrite it (--overwrite)")
