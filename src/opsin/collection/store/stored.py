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

    Raises `InputError` where `folder` is no collection or is damaged.
    """

    _pinned: "Mapping[str, lance.LanceDataset | None] | None" = None

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        about = read_about(self.folder)
        if about is None:
            raise InputError(f"{folder} is not a collection: make one with `opsin scan PHOTOS -o {folder}`")
        self.about = about
        self.pinned()  # a damaged table is found now

    def pinned(self: AnyStored) -> AnyStored:
        """This collection as it stands now, whatever a scan takes in meanwhile.

        Reading it raises `InputError` where a scan has ended meanwhile and what it replaced is gone.
        """
        if self._pinned:
            return self
        found = copy(self)
        found._pinned = {name: self.table(name) for name in (IMAGES, TALLIES, LABELS)}
        return found

    def table(self, name: str) -> "lance.LanceDataset | None":
        """One of the tables; `None` where there is none yet, or the first write of it was cut off."""
        with self.reading(name) as table:
            return table

    @contextmanager
    def reading(self, name: str) -> Iterator["lance.LanceDataset | None"]:
        """A table to read. Raises `InputError` where it is damaged, or was renewed by a scan meanwhile.

        The block should hold little else than the reading: what is wrong with the data may raise anything,
        which for the checks of `tables` is `InputError` and for Lance whatever its Rust stumbles over.
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
                told = f"{self.folder} was scanned again while it was read: ask again"
                raise CollectionError(told) from error
            raise damaged(self.folder, f"{name}: {said(error)}") from error

    def _opened(self, name: str) -> "lance.LanceDataset | None":
        place = self.folder / name
        refuse_links(self.folder, name)
        if not place.exists():
            return None
        for part in place.iterdir():  # data, versions, indices: a scan deletes what is old in them
            refuse_links(self.folder, f"{name}/{part.name}")
        if not any((place / "_versions").glob("*.manifest")):
            return None
        table = lance.dataset(place)
        check_columns(table.schema, schemas(self.about)[name])
        return table

    def layer(self, name: str | None) -> int:
        """A layer's number in the tables; the first one's without a name. Raises `InputError`."""
        names = [layer.name for layer in self.about.layers]
        if name is None:
            return 0
        if name not in names:
            raise unknown("layer of the collection", name, names, ": scan with --layer to have others")
        return names.index(name)


def _renewed(table: "lance.LanceDataset | None") -> bool:
    """Whether there is a newer version of a table."""
    with suppress(OSError, ValueError):  # of what is damaged
        return table is not None and bool(table.latest_version != table.version)
    return False
