"""Where a collection's images lie: a folder, or an address that fsspec knows (`s3://bucket/photos`)."""

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

    A folder that cannot be listed is one too, with a slash at its end.
    """

    path: str
    version: int

    @classmethod
    def of(cls, path: str, size: int, stamp: str) -> "Entry":
        """The entry of a file with this size in bytes, last changed at `stamp`."""
        return cls(path, number(f"{size} {stamp}".encode()))

    @property
    def id(self) -> int:
        """A number of the path, the same in every scan."""
        return number(os.fsencode(self.path))

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder that cannot be listed."""
        return self.path.endswith("/")


def number(data: bytes) -> int:
    """The first 63 bits of the SHA-256."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") >> 1


class Source:
    """The images below a root. Raises `InputError` where there is no such folder."""

    def __init__(self, root: str | Path) -> None:
        if "://" in str(root):
            self.root = str(root)
            return
        if not os.path.exists(root):  # noqa: PTH110 (does not raise on a name that no file can have)
            raise missing("folder", Path(root))
        self.root = _absolute(str(root))
        if not Path(self.root).is_dir():
            raise InputError(f"{root} is a file: a scan takes the folder that it lies in")

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
        """Every image, folder by folder, in the order of the names; each folder once, by its own name."""
        if "://" in self.root:
            return self._remote_entries()
        return self._checked(self._local_entries(Path(self.root), "", set()))

    def read(self, path: str) -> bytes:
        """A file's bytes. Raises `InputError`, which of a folder says why it cannot be listed."""
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
            raise InputError(f"{self.root} holds folders nested too deeply") from error

    def _is_ours(self, folder: str) -> bool:
        """Whether Opsin wrote a folder: a collection, or the output of a command."""
        for name, kind in OURS.items():
            with suppress(InputError, ValueError, RecursionError):
                about = json.loads(self.read(f"{folder}{name}").decode("utf-8", "surrogateescape"))
                if isinstance(about, dict) and about.get("kind") == kind:
                    return True
        return False

    def _local_entries(self, folder: Path, prefix: str, seen: set[tuple[int, int]]) -> Iterator[Entry]:
        try:
            about = folder.stat()
            if (about.st_dev, about.st_ino) in seen or (prefix and self._is_ours(prefix)):
                return
            seen.add((about.st_dev, about.st_ino))
            found = sorted(os.scandir(folder), key=lambda one: one.name)
        except OSError as error:
            if not prefix:
                raise InputError(f"{folder} cannot be read: {error.strerror or error}") from error
            yield Entry.of(prefix, 0, "unread")
            return
        for one in found:
            path = prefix + one.name
            try:
                below = one.is_dir()
            except OSError:  # a link to itself
                below = False
            if one.name.startswith(WORKING):  # what a killed command left
                continue
            if below and one.is_symlink() and (folder / one.name).resolve().is_relative_to(self._real):
                continue
            if below:
                yield from self._local_entries(folder / one.name, f"{path}/", seen)
            elif Path(one.name).suffix.lower() in SUFFIXES:
                try:
                    stat = one.stat()
                except OSError:
                    yield Entry.of(path, 0, "broken link")
                    continue
                if S_ISREG(stat.st_mode):  # no pipe, which would be waited for without end
                    yield Entry.of(path, stat.st_size, str(stat.st_mtime_ns))

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
            found = sorted(((_last(about["name"]), about) for about in listed), key=itemgetter(0))
        except OSError as error:
            if not below:
                raise InputError(f"{self.root} cannot be listed: {error.strerror or error}") from error
            yield Entry.of(below, 0, "unread")
            return
        if below and OURS.keys() & dict(found).keys() and self._is_ours(below):
            return
        for name, about in found:
            in_itself = about["name"].rstrip("/") == folder  # as object stores list a folder
            if in_itself or name.startswith(WORKING):
                continue
            if about["type"] == "directory":
                yield from self._remote_entries(f"{below}{name}/")
            elif PurePosixPath(name).suffix.lower() in SUFFIXES:
                keys = ("ETag", "etag", "LastModified", "mtime", "created")
                stamp = next((str(about[key]) for key in keys if about.get(key) is not None), "")
                yield Entry.of(below + name, about.get("size") or 0, stamp)


def refuse_outside(path: str) -> None:
    """Raise `InputError` on a path that may lead to something else than a file below a root."""
    plain = PurePath(path)
    if not path or "\0" in path or plain.anchor or ".." in plain.parts:
        raise InputError(f"{path!r} does not lie below the folder that was scanned")


def _absolute(path: str) -> str:
    """Without dots; links are kept, but where a dot leads out of one."""
    plain, real = os.path.normpath(Path(path).absolute()), Path(path).resolve()
    return plain if Path(plain).resolve() == real else str(real)


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
