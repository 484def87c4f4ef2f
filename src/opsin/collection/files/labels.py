"""The labels of images: the names of their folders, or the labels of a CSV."""

import csv
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from opsin.base.errors import InputError
from opsin.base.files import open_regular
from opsin.collection.files.source import Entry

FOLDERS = "folders"  # given in place of a CSV: use folder names as labels
PATH_COLUMNS, LABEL_COLUMNS = ("path", "file", "filename", "image"), ("label", "class")


def label(entry: Entry, named: Mapping[str, str] | None) -> str | None:
    """An image's label: from a CSV by its path, else by its file name; without a CSV its folder's name."""
    path = PurePosixPath(entry.path)
    if named is None:
        return os.fsencode(path.parent.name).decode("utf-8", "replace") or None
    return named.get(entry.path, named.get(path.name))


def read_labels(table: Path, root: str) -> dict[str, str]:
    """The labels of a CSV by path, both as the CSV spells it and relative to the root.

    Its paths may be absolute, or relative to the root or to the CSV's folder, with slashes or backslashes.

    Raises `InputError` if it cannot be read, is not a regular file or lacks a column.
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
    given = {path.removeprefix("./"): text for path, text in pairs if path and text}
    labels = dict(given)
    for path, text in given.items():
        for spelling in _spellings(path, root, table.absolute().parent):
            labels.setdefault(spelling, text)
    return labels


def _spellings(file: str, root: str, folder: Path) -> Iterator[str]:
    """Other paths relative to the root that a path of a CSV in `folder` may mean."""
    slashed = file.replace("\\", "/")
    yield slashed.removeprefix("./")
    if "://" in root:
        yield slashed.removeprefix(f"{root.rstrip('/')}/")
    else:
        path = Path(os.path.normpath(folder / slashed))
        for base in {Path(root), Path(root).resolve()}:
            if path.is_relative_to(base):
                yield path.relative_to(base).as_posix()
