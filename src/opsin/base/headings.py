"""Unique names of photos, as headings and folders."""

from collections.abc import Sequence
from itertools import chain, count

from opsin.base.folders import PAGE, RECORD

GENERAL = "network"  # folder of results that are the same for every photo


def headings(names: Sequence[str]) -> list[str]:
    """Unique names that are valid for folders."""
    unique: list[str] = []
    for name in names:
        plain = name.replace("/", "_").strip(". ") or "photo"
        forms = chain([plain], (f"{plain} ({k})" for k in count(2)))
        unique.append(next(form for form in forms if form not in {*unique, RECORD, PAGE, GENERAL}))
    return unique
