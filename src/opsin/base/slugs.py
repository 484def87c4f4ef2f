"""Readable names for files that every file system accepts."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import count

LONGEST = 60  # characters of one part of a name
READ = 1000  # characters of a text that are looked at
# names that Windows keeps for devices, whatever the suffix
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
NUMBERED = re.compile(r"\d+ \((.+)\)", re.DOTALL)


def slug(text: str) -> str:
    """The text in lower-case letters a to z and digits, with underscores between; empty if it has none."""
    text = text[:READ].replace(" - ", " minus ").replace(" + ", " plus ")
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return "_".join(re.findall(r"[a-z0-9]+", plain))[:LONGEST].rstrip("_")


def first_name(label: str) -> str:
    """A class's first name without its index: `goldfish` of `1 (goldfish, Carassius auratus)`."""
    numbered = NUMBERED.fullmatch(label)
    name = numbered[1] if numbered else label
    return name if "(" in name else name.partition(", ")[0]


def stems(names: Sequence[Sequence[str]], otherwise: str) -> list[str]:
    """A unique file name, without its suffix, from the parts of each name.

    Names that would be equal get numbers, in their order. Where no letter is left, `otherwise` stands first.
    """
    plain = [_stem(parts, otherwise) for parts in names]
    counts = Counter(plain)
    taken = {stem for stem, times in counts.items() if times == 1}
    numbers: defaultdict[str, count[int]] = defaultdict(count)
    unique = []
    for stem in plain:
        width = max(3, len(str(counts[stem] - 1)))
        numbered = (f"{stem}-{number:0{width}d}" for number in numbers[stem])
        unique.append(stem if counts[stem] == 1 else next(name for name in numbered if name not in taken))
        taken.add(unique[-1])
    return unique


def _stem(parts: Sequence[str], otherwise: str) -> str:
    stem = "-".join(part for part in map(slug, parts) if part)
    if not re.search("[a-z]", stem):
        stem = "-".join(part for part in (slug(otherwise) or "picture", stem) if part)
    return f"{stem}_" if stem in RESERVED else stem
