"""Where a collection's images lie: a folder, or an address that fsspec knows (`s3://bucket/photos`)."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any

from opsin.errors import InputError, unknown
from opsin.photos import SUFFIXES

RECORD = "record.json"  # a folder that holds one is something that Opsin wrote


@dataclass(frozen=True)
class Entry:
    """One file: its path below the root, and a number that changes when the file does.

    A folder that cannot be listed is one too, with a slash at its end.
    """

    path: str
    version: int

    @classmethod
    def of(cls, path: str, size: int, stamp: str) -> "Entry":
        """Of a file of so many bytes, last changed at `stamp`."""
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
        self.root = str(root) if "://" in str(root) else _absolute(str(root))
        if "://" in self.root:
            return
        place = Path(self.root)
        if not place.exists():
            near = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
            raise unknown("folder", str(root), near)
        if not place.is_dir():
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
        return self._local_entries(Path(self.root), "", set())

    def read(self, path: str) -> bytes:
        """A file's bytes. Raises `InputError`, which of a folder says why it cannot be listed."""
        try:
            if "://" in self.root:
                system, base = self._remote
                place = f"{base.rstrip('/')}/{path}"
                if path.endswith("/"):
                    system.ls(place.rstrip("/"))
                return bytes(system.cat_file(place))
            if path.endswith("/"):
                os.scandir(Path(self.root) / path).close()
            return (Path(self.root) / path).read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error

    def _local_entries(self, folder: Path, prefix: str, seen: set[tuple[int, int]]) -> Iterator[Entry]:
        try:
            about = folder.stat()
            if (about.st_dev, about.st_ino) in seen or (prefix and _is_ours(folder / RECORD)):
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

    def _remote_entries(self, below: str = "") -> Iterator[Entry]:
        system, base = self._remote
        folder = f"{base.rstrip('/')}/{below}".rstrip("/")
        try:
            listed = system.ls(folder, detail=True)
            found = sorted(((_last(about["name"]), about) for about in listed), key=itemgetter(0))
            ours = RECORD in dict(found) and _ours(system.cat_file(f"{folder}/{RECORD}"))
        except OSError as error:
            if not below:
                raise InputError(f"{self.root} cannot be listed: {error.strerror or error}") from error
            yield Entry.of(below, 0, "unread")
            return
        if below and ours:
            return
        for name, about in found:
            if about["name"].rstrip("/") == folder:  # object stores list a folder in itself
                continue
            if about["type"] == "directory":
                yield from self._remote_entries(f"{below}{name}/")
            elif PurePosixPath(name).suffix.lower() in SUFFIXES:
                keys = ("ETag", "etag", "LastModified", "mtime", "created")
                stamp = next((str(about[key]) for key in keys if about.get(key) is not None), "")
                yield Entry.of(below + name, about.get("size") or 0, stamp)


def _absolute(path: str) -> str:
    """Without dots; links are kept, but where a dot leads out of one."""
    plain, real = os.path.normpath(Path(path).absolute()), Path(path).resolve()
    return plain if Path(plain).resolve() == real else str(real)


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _is_ours(record: Path) -> bool:
    try:
        return _ours(record.read_bytes())
    except OSError:
        return False


def _ours(record: bytes) -> bool:
    try:
        return "kind" in json.loads(record.decode("utf-8", "surrogateescape"))
    except (ValueError, TypeError):
        return False
