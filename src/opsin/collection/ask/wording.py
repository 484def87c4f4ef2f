"""What findings say of the collection that they are of."""

from collections.abc import Mapping, Sequence
from typing import Any

from opsin.base.records import Record, versions
from opsin.collection.store.store import Collection
from opsin.collection.store.tables import Row

PACKAGES = ("opsin", "torch", "pylance", "numpy", "pillow")


def record(
    collection: Collection,
    technique: str,
    paper: str,
    arguments: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> Record:
    """How something was found in a collection."""
    told = tuple(one.encode("utf-8", "backslashreplace").decode() for one in notes)  # they may name files
    given = {"collection": str(collection.folder), "images": len(collection), **arguments}
    return Record(technique, paper, given, collection.about.model, versions(PACKAGES), told)


def seen_as(collection: Collection, row: Row) -> str:
    """The class that the network put an image in, with its probability, and its label where there is one."""
    label = collection.named(row.label).split(",")[0] if row.label else ""
    seen = collection.label(row.classes[0]).split(",")[0] if row.classes else ""
    chance = f", {row.probabilities[0]:.0%}" if row.classes else ""
    if label == seen:
        return f"{label}{chance}" if label else ""
    return "; ".join([f"labelled {label}"] * bool(label) + [f"seen as {seen}{chance}"] * bool(seen))
