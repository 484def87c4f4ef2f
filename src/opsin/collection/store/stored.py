"""The tables of a collection, as they stand at one moment."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path
from typing import TypeVar

import lance

from opsin.base.errors import InputError, OutOfMemoryError, unknown
from opsin.collection.store.about import CollectionError, damaged, read_about, refuse_links, said
from opsin.collection.store.tables import IMAGES, LABELS, TALLIES, check_columns, is_damage, schemas

AnyStored = TypeVar("AnyStored", bound="Stored")


class Stored:
    """A folder with a collection's tables.

    Raises `InputError` if `folder` is not a collection or is damaged.
    """

    _pinned: "Mapping[str, lance.LanceDataset | None] | None" = None

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        about = read_about(self.folder)
        if about is None:
            raise InputError(f"{folder} is not a collection: create one with `opsin scan PHOTOS -o {folder}`")
        self.about = about
        self.pinned()  # a damaged table raises here

    def pinned(self: AnyStored) -> AnyStored:
        """This collection in its current state, unaffected by a scan that runs meanwhile.

        Reading it raises `InputError` if a scan has ended meanwhile and deleted the old state.
        """
        if self._pinned:
            return self
        pinned = copy(self)
        pinned._pinned = {name: self.table(name) for name in (IMAGES, TALLIES, LABELS)}
        return pinned

    def table(self, name: str) -> "lance.LanceDataset | None":
        """One of the tables; `None` if nothing has been written into it yet, or its first write was cut off.

        Raises `InputError` with the nearest names if a collection has no table of this name.
        """
        if name not in (known := schemas(self.about)):
            raise unknown("table of a collection", name, known)
        with self.reading(name) as table:
            return table

    @contextmanager
    def reading(self, name: str) -> Iterator["lance.LanceDataset | None"]:
        """A table to read. Raises `InputError` if it is damaged, or was replaced by a scan meanwhile.

        The block should do little else than read: any exception in it may be due to damaged data, an
        `InputError` of the checks in `tables` as well as any error of Lance's Rust code.
        """
        table = None
        try:
            table = self._pinned[name] if self._pinned else self._opened(name)
            yield table
        except CollectionError:
            raise
        except MemoryError as error:
            raise OutOfMemoryError(
                f"{self.folder}: {name} does not fit into the memory of this machine"
            ) from error
        except BaseException as error:
            if not is_damage(error):
                raise
            if _renewed(table):
                message = f"{self.folder} was scanned again while it was read: try again"
                raise CollectionError(message) from error
            raise damaged(self.folder, f"{name}: {said(error)}") from error

    def _opened(self, name: str) -> "lance.LanceDataset | None":
        path = self.folder / name
        refuse_links(self.folder, name)
        if not path.exists():
            return None
        for part in path.iterdir():  # data, versions, indices: a scan deletes old files in them
            refuse_links(self.folder, f"{name}/{part.name}")
        if not any((path / "_versions").glob("*.manifest")):
            return None
        table = lance.dataset(path)
        check_columns(table.schema, schemas(self.about)[name])
        return table

    def layer(self, name: str | None) -> int:
        """A layer's number in the tables; without a name the first. Raises `InputError` if it is unknown."""
        names = [layer.name for layer in self.about.layers]
        if name is None:
            return 0
        if name not in names:
            raise unknown("layer of the collection", name, names, ": scan with --layer to have others")
        return names.index(name)


def _renewed(table: "lance.LanceDataset | None") -> bool:
    """Whether there is a newer version of a table."""
    with suppress(OSError, ValueError):  # if the table is damaged
        return table is not None and bool(table.latest_version != table.version)
    return False
