"""The words in which findings describe their collection."""

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
    """The record of how a finding was made from a collection."""
    readable_notes = tuple(
        line.encode("utf-8", "backslashreplace").decode() for line in notes
    )  # they may contain file names
    all_arguments = {"collection": str(collection.folder), "images": len(collection), **arguments}
    return Record(technique, paper, all_arguments, collection.about.model, versions(PACKAGES), readable_notes)


def counted(count: int, kind: str) -> str:
    """A number of things in words: `1 image`, `2,000 images`."""
    return f"{count:,} {kind}{'s' * (count != 1)}"


def seen_as(collection: Collection, row: Row) -> str:
    """An image's predicted class with its probability, and its label if it has one."""
    label = collection.named(row.label).split(",")[0] if row.label else ""
    prediction = collection.label(row.classes[0]).split(",")[0] if row.classes else ""
    chance = f", {row.probabilities[0]:.0%}" if row.classes else ""
    if label == prediction:
        return f"{label}{chance}" if label else ""
    return "; ".join(
        [f"labelled {label}"] * bool(label) + [f"seen as {prediction}{chance}"] * bool(prediction)
    )
