"""Where a collection's images are: a folder, or an address that fsspec knows (`s3://bucket/photos`)."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path, PurePath, PurePosixPath
from stat import S_ISREG
from typing import Any

from opsin.base.errors import InputError
from opsin.base.files import missing, too_large
from opsin.base.folders import MANIFEST, RECORD, WORKING
from opsin.images.photos import RAISING, SUFFIXES, largest_file, photo_bytes

OURS = {MANIFEST: "Manifest", RECORD: "Collection"}  # files in folders that Opsin wrote, with their kinds


@dataclass(frozen=True)
class Entry:
    """One file: its path below the root, and a number that changes when the file does.

    A folder that cannot be listed is an entry too; its path ends with a slash.
    """

    path: str
    version: int

    @classmethod
    def of(cls, path: str, size: int, stamp: str) -> "Entry":
        """The entry of a file of `size` bytes, last changed at `stamp`."""
        return cls(path, number(f"{size} {stamp}".encode()))

    @property
    def id(self) -> int:
        """A hash of the path, the same in every scan."""
        return number(os.fsencode(self.path))

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder that cannot be listed."""
        return self.path.endswith("/")


def number(data: bytes) -> int:
    """The first 63 bits of the data's SHA-256."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") >> 1


class Source:
    """The images below a root. Raises `InputError` if the folder does not exist."""

    def __init__(self, root: str | Path) -> None:
        if "://" in str(root):
            self.root = str(root)
            return
        if not os.path.exists(root):  # noqa: PTH110 (does not raise on a name that no file can have)
            raise missing("folder", Path(root))
        self.root = _absolute(str(root))
        if not Path(self.root).is_dir():
            raise InputError(f"{root} is a file: pass the folder that contains it")

    def __reduce__(self) -> Any:
        return Source, (self.root,)

    @cached_property
    def _remote(self) -> Any:
        import fsspec  # noqa: PLC0415 (slow, and not needed for folders)

        try:
            return fsspec.core.url_to_fs(self.root)
        except (ImportError, ValueError) as error:
            raise InputError(f"{self.root} cannot be opened: {error}") from error

    @cached_property
    def _real(self) -> Path:
        return Path(self.root).resolve()

    def entries(self) -> Iterator[Entry]:
        """Every image, folder by folder, sorted by name; each folder once, under its own name."""
        if "://" in self.root:
            return self._remote_entries()
        return self._checked(self._local_entries(Path(self.root), "", set()))

    def read(self, path: str) -> bytes:
        """A file's bytes. Raises `InputError` saying why it, or a folder, cannot be read."""
        refuse_outside(path)
        try:
            if "://" in self.root:
                return self._remote_bytes(path)
            if path.endswith("/"):
                os.scandir(Path(self.root) / path).close()
            return photo_bytes(Path(self.root) / path, path)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error

    def _checked(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        try:
            yield from entries
        except RecursionError as error:
            raise InputError(
                f"{self.root} has folders nested too deeply: scan a folder further down"
            ) from error

    def _is_ours(self, folder: str) -> bool:
        """Whether Opsin wrote a folder: a collection, or the output of a command."""
        for name, kind in OURS.items():
            with suppress(InputError, ValueError, RecursionError):
                facts = json.loads(self.read(f"{folder}{name}").decode("utf-8", "surrogateescape"))
                if isinstance(facts, dict) and facts.get("kind") == kind:
                    return True
        return False

    def _local_entries(self, folder: Path, prefix: str, seen: set[tuple[int, int]]) -> Iterator[Entry]:
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen or (prefix and self._is_ours(prefix)):
                return
            seen.add((status.st_dev, status.st_ino))
            children = sorted(os.scandir(folder), key=lambda child: child.name)
        except OSError as error:
            if not prefix:
                raise InputError(f"{folder} cannot be read: {error.strerror or error}") from error
            yield Entry.of(prefix, 0, "unread")
            return
        for child in children:
            path = prefix + child.name
            try:
                is_folder = child.is_dir()
            except OSError:  # a link to itself
                is_folder = False
            if child.name.startswith(WORKING):  # left by a killed command
                continue
            if (
                is_folder
                and child.is_symlink()
                and (folder / child.name).resolve().is_relative_to(self._real)
            ):
                continue
            if is_folder:
                yield from self._local_entries(folder / child.name, f"{path}/", seen)
            elif Path(child.name).suffix.lower() in SUFFIXES:
                try:
                    status = child.stat()
                except OSError:
                    yield Entry.of(path, 0, "broken link")
                    continue
                if S_ISREG(status.st_mode):  # not a pipe, whose reading might block forever
                    yield Entry.of(path, status.st_size, str(status.st_mtime_ns))

    def _remote_bytes(self, path: str) -> bytes:
        from fsspec.implementations.local import LocalFileSystem  # noqa: PLC0415 (slow)

        system, base = self._remote
        address = f"{base.rstrip('/')}/{path}"
        if path.endswith("/"):
            system.ls(address.rstrip("/"))
        if isinstance(system, LocalFileSystem):
            return photo_bytes(address, path)
        most = largest_file()
        data = bytes(system.cat_file(address, end=most + 1))
        if len(data) > most:
            raise too_large(path, most, RAISING)
        return data

    def _remote_entries(self, below: str = "") -> Iterator[Entry]:
        system, base = self._remote
        folder = f"{base.rstrip('/')}/{below}".rstrip("/")
        try:
            listed = system.ls(folder, detail=True)
            children = sorted(((_last(details["name"]), details) for details in listed), key=itemgetter(0))
        except OSError as error:
            if not below:
                raise InputError(f"{self.root} cannot be listed: {error.strerror or error}") from error
            yield Entry.of(below, 0, "unread")
            return
        if below and OURS.keys() & dict(children).keys() and self._is_ours(below):
            return
        for name, details in children:
            in_itself = details["name"].rstrip("/") == folder  # object stores list a folder inside itself
            if in_itself or name.startswith(WORKING):
                continue
            if details["type"] == "directory":
                yield from self._remote_entries(f"{below}{name}/")
            elif PurePosixPath(name).suffix.lower() in SUFFIXES:
                keys = ("ETag", "etag", "LastModified", "mtime", "created")
                stamp = next((str(details[key]) for key in keys if details.get(key) is not None), "")
                yield Entry.of(below + name, details.get("size") or 0, stamp)


def refuse_outside(path: str) -> None:
    """Raise `InputError` on a path that may lead outside the root."""
    plain = PurePath(path)
    if not path or "\0" in path or plain.anchor or ".." in plain.parts:
        raise InputError(f"{path!r} is not inside the scanned folder")


def _absolute(path: str) -> str:
    """Without dots; links are kept unless `..` leads out of one."""
    plain, real = os.path.normpath(Path(path).absolute()), Path(path).resolve()
    return plain if Path(plain).resolve() == real else str(real)


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
