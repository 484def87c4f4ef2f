"""Which class a label names."""

import re
from collections.abc import Sequence
from functools import cache

WNID = re.compile(r"n\d{8}")  # a WordNet number, the name of ImageNet's folders
LONGEST_INDEX = 9  # digits of a class's or a channel's index


def truth(label: str, names: Sequence[str]) -> int | None:
    """The class of a label: index, WordNet number, name or synonym; `None` if none or several match."""
    text = label.strip().lower()
    if text.isdecimal():
        index = index_of(text)
        return None if index is None or (names and index >= len(names)) else index
    if WNID.fullmatch(text) and len(names) in (0, len(_wordnet())):
        return _wordnet().get(text)
    matches = [index for index, name in enumerate(names) if text.replace("_", " ") in _forms(name)]
    return matches[0] if len(matches) == 1 else None


def index_of(decimals: str) -> int | None:
    """The index that a text of digits spells; `None` if it has more digits than any index."""
    return int(decimals) if len(decimals) <= LONGEST_INDEX else None


def _forms(name: str) -> set[str]:
    text = name.lower().replace("_", " ")
    return {text, *(part.strip() for part in text.split(","))}


@cache
def _wordnet() -> dict[str, int]:
    """ImageNet's classes by WordNet number."""
    from timm.data.imagenet_info import ImageNetInfo  # noqa: PLC0415 (slow)

    return {name: index for index, name in enumerate(ImageNetInfo().label_names())}
