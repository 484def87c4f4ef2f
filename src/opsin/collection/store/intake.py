"""A collection that is being written: locked by one scan at a time, created if it does not exist.

Nothing is written into a folder that holds something else. A scan that is refused leaves the folder as it
was: the folder is checked before it is locked, and a collection that was only begun is deleted again.
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
BEGUN = (LOCK, FRESH.format(RECORD))  # left by a scan that was killed before it wrote a record
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_TEXTS = ("No space left", "StorageFull", "quota", "File too large", "os error 28", "os error 27")


class RefusedError(InputError):
    """A scan that must not leave a new collection behind."""


class Intake(Collection):
    """A collection as seen by the one scan that writes it."""

    def append(self, rows: pa.Table, tallies: Sequence[Tally], chunk: int) -> None:
        """Append one chunk, all of it or nothing."""
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
        """Replace all labels by these; `named` are the labels of a CSV."""
        with _changing(self.folder):
            write_facts(self.folder, NAMED, named)
            lance.write_dataset(
                pa.RecordBatchReader.from_batches(LABEL_SCHEMA, batches),
                self.folder / LABELS,
                mode="overwrite",
            )

    def write_unread(self, unread: Mapping[str, str]) -> None:
        """Store the files that could not be read, and why."""
        with storing(self.folder):
            write_facts(self.folder, UNREAD, unread)

    def tidy(self) -> None:
        """Merge small fragments, drop tallies without images and old versions of the tables."""
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
    """The collection in a folder, locked for one writer; created if it does not exist.

    Raises `InputError` if the folder cannot be written or holds something else, if its collection was made
    with another network, other layers or another root, and if another scan is writing it. A new collection
    is deleted again if the block raises `RefusedError`.
    """
    target = Path(folder)
    _fitting(target, about, model)
    with ExitStack() as undo:
        _hold(target, undo)
        existing = _fitting(target, about, model)
        if existing is None:
            with storing(target):
                write_about(target, about)
        try:
            yield existing or Intake(target)
        except RefusedError:
            if existing is None:
                _take_away(target)
            raise


def _fitting(folder: Path, about: About, model: Model) -> Intake | None:
    """The collection in a folder; `None` if there is none, or only the remains of a scan that was killed.

    Raises `InputError` if it holds something else, or a collection that this scan cannot continue.
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
                f"{folder} holds {others[0]!r} and is not a collection: choose another folder with -o"
            )
        return None
    existing = Intake(folder)
    existing.check(model)
    differing = [
        f"{name} {_named(getattr(existing.about, name))}, not {_named(getattr(about, name))}"
        for name in ("root", "layers", "top")
        if getattr(existing.about, name) != getattr(about, name)
    ]
    if differing:
        raise InputError(
            f"{folder} was scanned with {'; '.join(differing)}: choose another collection with -o"
        )
    return existing


def _named(value: object) -> str:
    return ", ".join(layer.name for layer in value) if isinstance(value, tuple) else str(value)


def _hold(folder: Path, undo: ExitStack) -> None:
    """Lock a folder, created with its parents; `undo` releases the lock and removes folders that are empty.

    The lock file is deleted while the lock is held, and only if no collection was begun. A process that had
    opened it before will lock a deleted file, which `FileLock` notices.
    """
    lock = folder / LOCK
    try:
        make_folder(folder, undo)
        if os.path.lexists(lock) and not (S_ISREG(lock.lstat().st_mode) and lock.lstat().st_size == 0):
            raise InputError(f"{lock} was not written by Opsin: choose another folder with -o")
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
        with suppress(OSError):  # on a disk that became read-only, and on Windows
            (folder / LOCK).unlink()


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Raise `InputError` if the disk is full or the folder cannot be written."""
    try:
        yield
    except OSError as error:
        if not (error.errno in FULL or any(text in str(error) for text in FULL_TEXTS)):
            raise _cannot_write(folder, error) from error
        raise InputError(
            f"no room left to write {folder}: images scanned so far are kept; free some space and scan again"
        ) from error


@contextmanager
def _changing(folder: Path) -> Iterator[None]:
    """Raise `InputError` if tables cannot be written or are damaged."""
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
    """Delete a collection that this scan began in an empty folder."""
    for name in (TALLIES, IMAGES, LABELS):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (NAMED, UNREAD, RECORD):
        (folder / name).unlink(missing_ok=True)


def _cannot_write(folder: Path, error: OSError) -> InputError:
    return InputError(f"cannot write to {folder}: {error.strerror or error}")
