"""Where a collection's images lie: a folder, or an address that fsspec knows (`s3://bucket/photos`)."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any

from opsin.errors import InputError, unknown
from opsin.photos import SUFFIXES

RECORD = "record.json"  # a folder that holds one is something that Opsin wrote


@dataclass(frozen=True)
class Entry:
    """One file: its path below the root, its bytes, and what changes when the file does."""

    path: str
    size: int
    stamp: str

    @property
    def id(self) -> int:
        """A number of the path, the same in every scan."""
        return number(os.fsencode(self.path))

    @property
    def version(self) -> int:
        """A number that changes when the file does."""
        return number(f"{self.size} {self.stamp}".encode())


def number(data: bytes) -> int:
    """The first 63 bits of the SHA-256."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") >> 1


class Source:
    """The images below a root. Raises `InputError` where there is no such folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = str(root) if "://" in str(root) else str(Path(root).absolute())
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

    def entries(self) -> Iterator[Entry]:
        """Every image, folder by folder, in the order of the names; each real folder once."""
        if "://" in self.root:
            return self._remote_entries()
        return self._local_entries(Path(self.root), "", set())

    def read(self, path: str) -> bytes:
        """A file's bytes. Raises `InputError`."""
        try:
            if "://" in self.root:
                system, base = self._remote
                return bytes(system.cat_file(f"{base.rstrip('/')}/{path}"))
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
            return  # a folder below that may not be read holds no images for us
        for one in found:
            path = prefix + one.name
            try:
                below = one.is_dir()
            except OSError:  # a link to itself
                below = False
            if below:
                yield from self._local_entries(folder / one.name, f"{path}/", seen)
            elif Path(one.name).suffix.lower() in SUFFIXES:
                try:
                    stat = one.stat()
                except OSError:
                    yield Entry(path, 0, "broken link")
                    continue
                if S_ISREG(stat.st_mode):  # no pipe, which would be waited for without end
                    yield Entry(path, stat.st_size, str(stat.st_mtime_ns))

    def _remote_entries(self) -> Iterator[Entry]:
        system, base = self._remote
        base = base.rstrip("/")
        try:
            for folder, folders, files in system.walk(base, detail=True):
                if RECORD in files and folder != base and _ours(system.cat_file(f"{folder}/{RECORD}")):
                    folders.clear()
                    continue
                folders_in_order = dict(sorted(folders.items()))
                folders.clear()
                folders.update(folders_in_order)
                for name, about in sorted(files.items()):
                    if PurePosixPath(name).suffix.lower() in SUFFIXES:
                        path = f"{folder}/{name}".removeprefix(f"{base}/")
                        keys = ("ETag", "etag", "LastModified", "mtime", "created")
                        stamp = next((str(about[key]) for key in keys if about.get(key) is not None), "")
                        yield Entry(path, about.get("size") or 0, stamp)
        except OSError as error:
            raise InputError(f"{self.root} cannot be listed: {error}") from error


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
