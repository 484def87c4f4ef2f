"""Output folders: only files that Opsin wrote are replaced, and the work of a killed command can be resumed.

    out/
      manifest.json    names and SHA-256 of the files beside it; each subfolder has its own
      .opsin-k3v9x2/   only while a command runs: its files so far, and the `lock` that it holds

The working folder is inside the output folder, so that mount points work too and a folder that cannot be
written fails before the work. At the end its files replace those that the manifest lists, which are deleted
only if they are unchanged. A working folder whose lock nobody holds belongs to a command that was killed; the
next command that succeeds removes it.
"""

import hashlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Literal

from opsin.base.errors import InputError
from opsin.base.files import MIB, open_regular
from opsin.base.records import as_json, read_json

RECORD, VALUES, PAGE, FACTS = "record.json", "values.npz", "index.html", "facts.json"
PAGE_OF_PHOTOS = "Report"  # the kind that the record of a page of photos states
MANIFEST, BOTH = "manifest.json", "manifest-both.json"
WORKING = ".opsin-"
RESCUED = "result-"  # a folder of results that could not be put in place

Listed = set[tuple[str, str]]  # names and SHA-256


@dataclass(frozen=True)
class Manifest:
    """The files of one folder that Opsin wrote."""

    kind: Literal["Manifest"]
    files: list[tuple[str, str]]


class StorageError(OSError):
    """A file that Opsin makes could not be written."""


@contextmanager
def storing() -> Iterator[None]:
    """Turn any `OSError` inside the block into a `StorageError`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(error.errno, error.strerror or str(error)) from error


@contextmanager
def writing(folder: str | Path) -> Iterator[Path]:
    """A folder to fill, whose files are moved to `folder` at the end; after an error `folder` is unchanged.

    Raises `InputError` before any work if `folder` cannot be written, if it holds something that Opsin did
    not write or that was changed since, and if another command is writing into it.
    """
    from filelock import FileLock  # noqa: PLC0415 (slow)

    try:
        with ExitStack() as undo:
            with storing():
                target = make_folder(folder, undo)
                _refuse_foreign(target, folder)
                leftovers = _leftovers(target, folder)
                working = Path(tempfile.mkdtemp(prefix=WORKING, dir=target))
                undo.callback(shutil.rmtree, working, ignore_errors=True)
                lock = undo.enter_context(FileLock(_lock(working), timeout=0))
            yield working
            with storing():
                _seal(working)
                lock.release()
                _lock(working).unlink(missing_ok=True)
                _refuse_foreign(target, folder, rescued=working)
                _place(working, target)
                for leftover in leftovers:
                    shutil.rmtree(leftover, ignore_errors=True)
    except StorageError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error


def interrupted(folder: str | Path) -> Path | None:
    """The working folder that a killed command left in `folder` with results, or `None`.

    Raises `InputError` if a command is still writing there.
    """
    left = [path for path in _leftovers(_resolved(folder), folder) if next(path.rglob(VALUES), None)]
    return max(left, key=lambda path: path.stat().st_mtime_ns, default=None)


@contextmanager
def checkpoint(folder: Path, number: int) -> Iterator[Path]:
    """A folder to fill with the `number`-th state of an optimisation; then earlier ones are removed."""
    with storing():
        part = Path(tempfile.mkdtemp(prefix="part-", dir=folder))
        yield part
        earlier = checkpoints(folder)
        part.rename(folder / f"checkpoint-{number:06d}")
        for path in earlier:
            shutil.rmtree(path)


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("checkpoint-*") if path.is_dir() and not path.is_symlink())


def discard_checkpoints(folder: Path) -> None:
    """Remove the checkpoints in a folder, once the result is complete."""
    with storing():
        for path in [*checkpoints(folder), *folder.glob("part-*")]:
            shutil.rmtree(path)


def _resolved(folder: str | Path) -> Path:
    try:
        return Path(folder).resolve()
    except (RuntimeError, ValueError) as error:  # links in a circle, a NUL
        raise InputError(f"{str(folder)!r} is not a valid output folder: {error}") from error


def make_folder(folder: str | Path, undo: ExitStack) -> Path:
    """The folder, created with its parents if it does not exist; `undo` removes those that are empty."""
    target = _resolved(folder)
    for path in reversed([target, *target.parents]):
        if not path.exists():
            path.mkdir()
            undo.callback(_remove_empty, path)
    if not target.is_dir():
        raise InputError(f"{folder} is a file, not a folder: choose another output folder")
    return target


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _refuse_foreign(target: Path, folder: str | Path, rescued: Path | None = None) -> None:
    """Raise `InputError` if `target` holds files that Opsin did not write, but keep `rescued` results."""
    try:
        foreign = next(_foreign(target), None)
    except RecursionError as error:
        raise InputError(f"{folder} has folders nested too deeply: choose another output folder") from error
    if foreign is None:
        return
    name = foreign.relative_to(target)
    if rescued is None:
        raise InputError(
            f"{folder} holds {str(name)!r}, which Opsin did not write, or which was changed later: "
            "choose another output folder"
        )
    kept = rescued.rename(target / f"{RESCUED}{secrets.token_hex(3)}")
    raise InputError(f"{str(name)!r} appeared in {folder} while Opsin was running: the result is in {kept}")


def _foreign(folder: Path) -> Iterator[Path]:
    """Everything below a folder that no manifest beside it lists with its content; empty folders too."""
    listed = _listed(folder)
    unchanged = _own(folder, listed or set())
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            if not _is_working(path):
                yield from _foreign(path) if any(path.iterdir()) else [path]
        elif path not in unchanged and (path.name != MANIFEST or listed is None):
            yield path


def _own(folder: Path, listed: Listed) -> set[Path]:
    """The files of a folder that are listed and unchanged."""
    names = {name for name, _ in listed}
    files = [
        path for path in folder.iterdir() if path.name in names and path.is_file() and not path.is_symlink()
    ]
    return {path for path in files if (path.name, _sha256(path)) in listed}


def _listed(folder: Path) -> Listed | None:
    """The files that a folder's manifest lists; `None` if there is none, or it is not Opsin's."""
    try:
        return set(read_json(folder / MANIFEST, Manifest).files)
    except InputError:
        return None


def _is_working(folder: Path) -> bool:
    """Whether a folder is the working folder of a command, running or killed.

    It holds a lock with its own name, an empty file and not a link: taking the lock would truncate the file.
    """
    try:
        status = _lock(folder).lstat()
    except OSError:
        return False
    return folder.name.startswith(WORKING) and S_ISREG(status.st_mode) and not status.st_size


def _lock(working: Path) -> Path:
    """The lock of a working folder, named after it, so that no other folder is mistaken for one."""
    return working / f"{working.name}.lock"


def _leftovers(target: Path, folder: str | Path) -> list[Path]:
    """The working folders of killed commands. Raises `InputError` if a command still holds one."""
    from filelock import FileLock, Timeout  # noqa: PLC0415 (slow)

    left = [path for path in target.glob(f"{WORKING}*") if not path.is_symlink() and _is_working(path)]
    for path in left:
        try:
            with FileLock(_lock(path), timeout=0):
                pass
        except Timeout:
            raise InputError(f"another command is writing into {folder}: wait for it") from None
    return left


def _seal(working: Path) -> None:
    """Write a manifest into a working folder and each subfolder; the lock is not listed."""
    for folder in [working, *(path for path in working.rglob("*") if path.is_dir())]:
        files = [path for path in folder.iterdir() if path.is_file() and path != _lock(working)]
        _write_manifest(folder / MANIFEST, {(path.name, _sha256(path)) for path in files})


def _write_manifest(path: Path, listed: Listed) -> None:
    path.write_text(as_json(asdict(Manifest("Manifest", sorted(listed)))), "utf-8")


def _place(working: Path, target: Path) -> None:
    """Move the files of a sealed folder into place; an interrupt is raised after all of them are."""
    try:
        _replace(working, target)
    except KeyboardInterrupt:
        _replace(working, target)
        raise


def _replace(new: Path, old: Path) -> None:
    """Replace the files that `old` lists by those of `new`.

    It may be interrupted anywhere and started again: meanwhile the manifest lists the files of both.
    """
    if not (new / MANIFEST).exists():
        return  # everything was moved already
    before, after = _listed(old) or set(), _listed(new) or set()
    _write_manifest(new / BOTH, before | after)
    (new / BOTH).replace(old / MANIFEST)
    for path in _own(old, before - after):
        path.unlink()
    for path in sorted(old.iterdir()):
        if path.is_dir() and path != new and not (_is_working(path) or (new / path.name).is_dir()):
            _remove(path)
    for path in sorted(new.iterdir()):
        if path.is_dir():
            (old / path.name).mkdir(exist_ok=True)
            _replace(path, old / path.name)
        elif path.name not in (MANIFEST, BOTH):
            path.replace(old / path.name)
    (new / MANIFEST).replace(old / MANIFEST)


def _remove(folder: Path) -> None:
    """Remove the files that a folder's manifests list; other files remain."""
    listed = _listed(folder)
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            _remove(path)
    for path in _own(folder, listed or set()):
        path.unlink()
    if listed is not None:
        (folder / MANIFEST).unlink()
    _remove_empty(folder)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while part := file.read(MIB):
            digest.update(part)
    return digest.hexdigest()
