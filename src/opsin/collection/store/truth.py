"""Which class a label means."""

import re
from collections.abc import Sequence
from functools import cache

WNID = re.compile(r"n\d{8}")  # a WordNet number, as folders of ImageNet are named
LONGEST_INDEX = 9  # digits of a class's or a channel's index


def truth(label: str, names: Sequence[str]) -> int | None:
    """The class of a label: index, WordNet number, name or synonym; `None` where none or several fit."""
    text = label.strip().lower()
    if text.isdecimal():
        index = index_of(text)
        return None if index is None or (names and index >= len(names)) else index
    if WNID.fullmatch(text) and len(names) in (0, len(_wordnet())):
        return _wordnet().get(text)
    found = [index for index, name in enumerate(names) if text.replace("_", " ") in _forms(name)]
    return found[0] if len(found) == 1 else None


def index_of(decimals: str) -> int | None:
    """The index that a text of decimals is; `None` where it has more of them than any index."""
    return int(decimals) if len(decimals) <= LONGEST_INDEX else None


def _forms(name: str) -> set[str]:
    whole = name.lower().replace("_", " ")
    return {whole, *(part.strip() for part in whole.split(","))}


@cache
def _wordnet() -> dict[str, int]:
    """ImageNet's classes by WordNet number."""
    from timm.data.imagenet_info import ImageNetInfo  # noqa: PLC0415 (slow)

    return {name: index for index, name in enumerate(ImageNetInfo().label_names())}
