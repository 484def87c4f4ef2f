"""Names of photos as headings and folders, each once."""

from collections.abc import Sequence
from itertools import chain, count

from opsin.base.folders import PAGE, RECORD

GENERAL = "network"  # folder of what is the same for every photo


def headings(names: Sequence[str]) -> list[str]:
    """Names that are fit for folders and differ from each other."""
    made: list[str] = []
    for name in names:
        plain = name.replace("/", "_").strip(". ") or "photo"
        forms = chain([plain], (f"{plain} ({k})" for k in count(2)))
        made.append(next(form for form in forms if form not in {*made, RECORD, PAGE, GENERAL}))
    return made
