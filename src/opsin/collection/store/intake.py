"""A collection that is written: held by one scan at a time, and made where there is none.

Nothing is written into a folder that holds something else. Whatever is refused leaves the folder as it was:
it is looked at before it is locked, and a collection that was only begun is taken away again.
"""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from stat import S_ISREG

import lance
import pyarrow as pa
from filelock import FileLock, Timeout

from opsin.base.errors import InputError
from opsin.base.folders import RECORD, make_folder
from opsin.collection.store.about import FRESH, About, damaged, read_about, said, write_about, write_facts
from opsin.collection.store.store import NAMED, UNREAD, Collection
from opsin.collection.store.tables import IMAGES, LABEL_SCHEMA, LABELS, TALLIES, is_damage, tally_table
from opsin.collection.store.tally import Tally
from opsin.network.model import Model

LOCK = ".lock"
BEGUN = (LOCK, FRESH.format(RECORD))  # what a scan leaves that is cut off before there is a record
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_TEXTS = ("No space left", "StorageFull", "quota", "File too large", "os error 28", "os error 27")


class RefusedError(InputError):
    """A scan that leaves no new collection behind."""


class Intake(Collection):
    """A collection in the hands of the one scan that writes it."""

    def append(self, rows: pa.Table, tallies: Sequence[Tally], chunk: int) -> None:
        """Take one chunk in, or nothing of it."""
        with _changing(self.folder):
            lance.write_dataset(tally_table(tallies, chunk), self.folder / TALLIES, mode="append")
            lance.write_dataset(rows, self.folder / IMAGES, mode="append")

    def forget(self, chunks: Sequence[int]) -> None:
        """Drop whole chunks."""
        if not chunks:
            return
        with _changing(self.folder):
            for name in (IMAGES, TALLIES):
                if (table := self.table(name)) is not None:
                    table.delete(f"chunk in ({', '.join(map(str, chunks))})")

    def write_labels(self, batches: Iterator[pa.RecordBatch], named: Mapping[str, str] | None = None) -> None:
        """Put these in place of all labels; `named` are those of a CSV."""
        with _changing(self.folder):
            write_facts(self.folder, NAMED, named)
            lance.write_dataset(
                pa.RecordBatchReader.from_batches(LABEL_SCHEMA, batches),
                self.folder / LABELS,
                mode="overwrite",
            )

    def write_unread(self, unread: Mapping[str, str]) -> None:
        """Keep what could not be read."""
        with storing(self.folder):
            write_facts(self.folder, UNREAD, unread)

    def tidy(self) -> None:
        """Join small fragments, drop tallies without images and old versions."""
        with _changing(self.folder):
            for name in (IMAGES, TALLIES, LABELS):
                table = self.table(name)
                if table is None:
                    continue
                if name == TALLIES and (chunks := self.chunks()):
                    table.delete(f"chunk not in ({', '.join(map(str, chunks))})")
                table.optimize.compact_files(compaction_mode="try_binary_copy")  # page by page
                table.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)


@contextmanager
def writing(folder: str | Path, about: About, model: Model) -> Iterator[Intake]:
    """The collection in a folder, held for one writer; made where there is none.

    Raises `InputError` where it cannot be written, holds something else, was made with another network, other
    layers or another root, and where another scan is writing it. A collection that is new is taken away again
    where the block raises `RefusedError`.
    """
    place = Path(folder)
    _fitting(place, about, model)
    with ExitStack() as undo:
        _hold(place, undo)
        made = _fitting(place, about, model)
        if made is None:
            with storing(place):
                write_about(place, about)
        try:
            yield made or Intake(place)
        except RefusedError:
            if made is None:
                _take_away(place)
            raise


def _fitting(folder: Path, about: About, model: Model) -> Intake | None:
    """The collection that a folder holds; `None` where there is none, or what a scan left that was cut off.

    Raises `InputError` where it holds something else, or a collection that this scan cannot go on with.
    """
    if read_about(folder) is None:
        try:
            others = [path.name for path in folder.iterdir() if path.name not in BEGUN]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _cannot_write(folder, error) from error
        if others:
            raise InputError(
                f"{folder} holds something that is not a collection ({others[0]!r}): choose another with -o"
            )
        return None
    made = Intake(folder)
    made.check(model)
    differing = [
        f"{name} {_named(getattr(made.about, name))}, not {_named(getattr(about, name))}"
        for name in ("root", "layers", "top")
        if getattr(made.about, name) != getattr(about, name)
    ]
    if differing:
        raise InputError(
            f"{folder} was scanned with {'; '.join(differing)}: choose another collection with -o"
        )
    return made


def _named(value: object) -> str:
    return ", ".join(layer.name for layer in value) if isinstance(value, tuple) else str(value)


def _hold(folder: Path, undo: ExitStack) -> None:
    """Lock a folder, made with its parents; on `undo` the lock is released, and of these what is empty goes.

    The lock's file is deleted with the lock still held, and only where no collection was begun. Whoever had
    opened it before will lock a file that is not there any more, which `FileLock` notices.
    """
    lock = folder / LOCK
    try:
        make_folder(folder, undo)
        if os.path.lexists(lock) and not (S_ISREG(lock.lstat().st_mode) and lock.lstat().st_size == 0):
            raise InputError(f"{lock} was not written by Opsin: choose another collection with -o")
        undo.enter_context(FileLock(lock, timeout=0))
    except Timeout:
        raise InputError(
            f"another scan is writing {folder}: wait for it, or choose another with -o"
        ) from None
    except OSError as error:
        raise _cannot_write(folder, error) from error
    undo.callback(_unlock, folder)


def _unlock(folder: Path) -> None:
    if not os.path.lexists(folder / RECORD):
        with suppress(OSError):  # of a disk that cannot be written any more, and of Windows
            (folder / LOCK).unlink()


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Raise `InputError` where there is no room, or where nothing can be written."""
    try:
        yield
    except OSError as error:
        if not (error.errno in FULL or any(text in str(error) for text in FULL_TEXTS)):
            raise _cannot_write(folder, error) from error
        raise InputError(
            f"no room left to write {folder}: it keeps what was added so far; free some space and scan again"
        ) from error


@contextmanager
def _changing(folder: Path) -> Iterator[None]:
    """Raise `InputError` where tables cannot be written, or what is in them is damaged."""
    with storing(folder):
        try:
            yield
        except (OSError, InputError):
            raise
        except BaseException as error:
            if not is_damage(error):
                raise
            raise damaged(folder, said(error)) from error


def _take_away(folder: Path) -> None:
    """Delete a collection that was begun here, where nothing was before."""
    for name in (TALLIES, IMAGES, LABELS):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (NAMED, UNREAD, RECORD):
        (folder / name).unlink(missing_ok=True)


def _cannot_write(folder: Path, error: OSError) -> InputError:
    return InputError(f"cannot write to {folder}: {error.strerror or error}")
