"""The labels of images: the names of the folders that they lie in, or what a CSV says."""

import csv
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from opsin.base.errors import InputError
from opsin.base.files import open_regular
from opsin.collection.files.source import Entry

FOLDERS = "folders"  # given in place of a CSV: the names of folders
PATH_COLUMNS, LABEL_COLUMNS = ("path", "file", "filename", "image"), ("label", "class")


def label(entry: Entry, named: Mapping[str, str] | None) -> str | None:
    """An image's label: from a CSV by its path, else by its name; without one the name of its folder."""
    path = PurePosixPath(entry.path)
    if named is None:
        return os.fsencode(path.parent.name).decode("utf-8", "replace") or None
    return named.get(entry.path, named.get(path.name))


def read_labels(table: Path, root: str) -> dict[str, str]:
    """The labels of a CSV by path below the root, or as the CSV has it.

    Its paths may start at the root, at the CSV's folder or at the top, with slashes or backslashes.

    Raises `InputError` if it cannot be read, is no regular file or lacks a column.
    """
    try:
        with io.TextIOWrapper(open_regular(table), "utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            columns = rows.fieldnames or []
            keys = [
                next((c for c in columns if c.strip().lower() in names), None)
                for names in (PATH_COLUMNS, LABEL_COLUMNS)
            ]
            if None in keys:
                wanted = f"one of {', '.join(PATH_COLUMNS)} and one of {', '.join(LABEL_COLUMNS)}"
                raise InputError(f"{table} has the columns {', '.join(columns)}: it needs {wanted}")
            pairs = [((row[keys[0]] or "").strip(), (row[keys[1]] or "").strip()) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} cannot be read as a CSV of labels: {error}") from error
    given = {path.removeprefix("./"): said for path, said in pairs if path and said}
    found = dict(given)
    for path, said in given.items():
        for other in _spellings(path, root, table.absolute().parent):
            found.setdefault(other, said)
    return found


def _spellings(file: str, root: str, folder: Path) -> Iterator[str]:
    """What else a path of a CSV in `folder` may be below the root."""
    slashed = file.replace("\\", "/")
    yield slashed.removeprefix("./")
    if "://" in root:
        yield slashed.removeprefix(f"{root.rstrip('/')}/")
    else:
        path = Path(os.path.normpath(folder / slashed))
        for base in {Path(root), Path(root).resolve()}:
            if path.is_relative_to(base):
                yield path.relative_to(base).as_posix()
