"""Output folders: only what Opsin wrote is ever replaced, and the work of a killed command is found again.

    out/
      manifest.json    names and SHA-256 of the files beside it; each folder below has its own
      .opsin-k3v9x2/   only while a command runs: what it has made so far, and the `lock` that it holds

The working folder lies inside the output folder, so that a mount point is as good as any other and what
cannot be written is known before the work. At the end its files take the place of those that the manifest
lists, of which each is deleted only while it is what was written. A working folder whose lock nobody holds
belongs to a command that was killed; the next command that ends well removes it.
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

from filelock import FileLock, Timeout

from opsin.base.errors import InputError
from opsin.base.files import MIB, open_regular
from opsin.base.records import as_json, read_json

RECORD, VALUES, PAGE, FACTS = "record.json", "values.npz", "index.html", "facts.json"
MANIFEST, BOTH = "manifest.json", "manifest-both.json"
WORKING = ".opsin-"
RESCUED = "result-"  # a folder of results that could not take their place

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
    """Mark what the operating system raises inside the block as `StorageError`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(error.errno, error.strerror or str(error)) from error


@contextmanager
def writing(folder: str | Path) -> Iterator[Path]:
    """A folder to fill, whose files stand in `folder` at the end; after an error all is as it was before.

    Raises `InputError` before any work where `folder` cannot be written, where it holds something that Opsin
    did not write or that was changed since, and where another command is writing into it.
    """
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
    """The working folder that a killed command left in `folder` with results, if there is one.

    Raises `InputError` where a command is still writing there.
    """
    left = [path for path in _leftovers(_resolved(folder), folder) if next(path.rglob(VALUES), None)]
    return max(left, key=lambda path: path.stat().st_mtime_ns, default=None)


@contextmanager
def checkpoint(folder: Path, number: int) -> Iterator[Path]:
    """A folder to fill with a climb's state, the `number`-th; once it is whole, earlier ones are removed."""
    with storing():
        part = Path(tempfile.mkdtemp(prefix="part-", dir=folder))
        yield part
        earlier = checkpoints(folder)
        part.rename(folder / f"checkpoint-{number:06d}")
        for path in earlier:
            shutil.rmtree(path)


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, the last one at the end."""
    return sorted(path for path in folder.glob("checkpoint-*") if path.is_dir() and not path.is_symlink())


def discard_checkpoints(folder: Path) -> None:
    """Remove the checkpoints in a folder, which the result has made superfluous."""
    with storing():
        for path in [*checkpoints(folder), *folder.glob("part-*")]:
            shutil.rmtree(path)


def _resolved(folder: str | Path) -> Path:
    try:
        return Path(folder).resolve()
    except (RuntimeError, ValueError) as error:  # links in a circle, a NUL
        raise InputError(f"{str(folder)!r} cannot be an output folder: {error}") from error


def make_folder(folder: str | Path, undo: ExitStack) -> Path:
    """The folder, made with its parents where there is none; on `undo` those that are empty go again."""
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
    """Raise `InputError` where `target` holds what Opsin did not write; new results are `rescued` first."""
    try:
        foreign = next(_foreign(target), None)
    except RecursionError as error:
        raise InputError(f"{folder} has folders nested too deeply: choose another output folder") from error
    if foreign is None:
        return
    name = foreign.relative_to(target)
    if rescued is None:
        raise InputError(
            f"{folder} holds {str(name)!r}, which Opsin did not write or which was changed since: "
            "choose another output folder"
        )
    kept = rescued.rename(target / f"{RESCUED}{secrets.token_hex(3)}")
    raise InputError(f"{str(name)!r} came into {folder} while Opsin was at work: the result is in {kept}")


def _foreign(folder: Path) -> Iterator[Path]:
    """What is below a folder and not listed with this content by a manifest beside it; empty folders too."""
    listed = _listed(folder)
    own = _own(folder, listed or set())
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            if not _is_working(path):
                yield from _foreign(path) if any(path.iterdir()) else [path]
        elif path not in own and (path.name != MANIFEST or listed is None):
            yield path


def _own(folder: Path, listed: Listed) -> set[Path]:
    """The files of a folder that are listed, and still are what was listed."""
    names = {name for name, _ in listed}
    files = [
        path for path in folder.iterdir() if path.name in names and path.is_file() and not path.is_symlink()
    ]
    return {path for path in files if (path.name, _sha256(path)) in listed}


def _listed(folder: Path) -> Listed | None:
    """The files that a folder's manifest lists; `None` where there is none, or it is not Opsin's."""
    try:
        return set(read_json(folder / MANIFEST, Manifest).files)
    except InputError:
        return None


def _is_working(folder: Path) -> bool:
    """Whether a folder is one in which a command works or worked.

    It holds a lock of its own name, an empty file and no link: taking the lock would empty another file.
    """
    try:
        about = _lock(folder).lstat()
    except OSError:
        return False
    return folder.name.startswith(WORKING) and S_ISREG(about.st_mode) and not about.st_size


def _lock(working: Path) -> Path:
    """The lock of a working folder, called after it, so that no other folder is taken for one."""
    return working / f"{working.name}.lock"


def _leftovers(target: Path, folder: str | Path) -> list[Path]:
    """The working folders of killed commands. Raises `InputError` where a command still holds one."""
    left = [path for path in target.glob(f"{WORKING}*") if not path.is_symlink() and _is_working(path)]
    for path in left:
        try:
            with FileLock(_lock(path), timeout=0):
                pass
        except Timeout:
            raise InputError(f"another command is writing into {folder}: wait for it") from None
    return left


def _seal(working: Path) -> None:
    """Write a manifest into a working folder and each one below; its lock is not listed."""
    for folder in [working, *(path for path in working.rglob("*") if path.is_dir())]:
        files = [path for path in folder.iterdir() if path.is_file() and path != _lock(working)]
        _write_manifest(folder / MANIFEST, {(path.name, _sha256(path)) for path in files})


def _write_manifest(path: Path, listed: Listed) -> None:
    path.write_text(as_json(asdict(Manifest("Manifest", sorted(listed)))), "utf-8")


def _place(working: Path, target: Path) -> None:
    """Put the files of a sealed folder into their place; an interrupt comes when all of them are there."""
    try:
        _replace(working, target)
    except KeyboardInterrupt:
        _replace(working, target)
        raise


def _replace(new: Path, old: Path) -> None:
    """Let the files of `new` take the place of those that `old` lists.

    It may be cut off anywhere and begun again: meanwhile the manifest lists the files of both.
    """
    if not (new / MANIFEST).exists():
        return  # all that was here has its place already
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
    """Remove what a folder's manifests list; whatever else is in it stays."""
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
