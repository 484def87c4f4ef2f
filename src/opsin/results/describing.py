"""A result in a few lines of text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from opsin.base.job import CAUTION
from opsin.base.records import Record
from opsin.results.cells import scored
from opsin.results.sheets import fitting

if TYPE_CHECKING:
    from opsin.results.result import Result

LONGEST, INDENT = 100, 11  # letters of a line, and in front of what it says
LISTED = 3  # targets that are named


def described(result: "Result") -> str:
    """What a result is, in at most five lines."""
    kind, record = type(result).__name__, result.record
    lines = [kind if record is None else f"{kind}: {made_by(record)}"]
    if record is not None:
        lines += [f"  {name + ':':<9}{text}" for name, text in asked(record).items()]
    name, text = result.contents()
    lines.append(f"  {name + ':':<9}{text}")
    if record is not None and (cautions := cautions_of(record)):
        more = f" (and {len(cautions) - 1} more in record.notes)" if len(cautions) > 1 else ""
        lines.append(f"  caution: {fitting(cautions[0], LONGEST - INDENT - len(more))}{more}")
    return "\n".join(fitting(line, LONGEST) for line in lines)


def made_by(record: Record) -> str:
    """The technique and the network."""
    network = record.model.get("name")
    return f"{record.technique} on {network}" if network else record.technique


def asked(record: Record) -> dict[str, str]:
    """What was explained, and at which layer."""
    lines = {}
    if len(record.targets) == 1:
        lines["target"] = scored(record.targets[0])
    elif record.targets:
        named = "; ".join(scored(target) for target in record.targets[:LISTED])
        others = len(record.targets) - LISTED
        more = f"; and {others} more" if others > 0 else ""
        lines["target"] = fitting(named, LONGEST - INDENT - len(more)) + more
    elif isinstance(target := record.arguments.get("target"), str):
        lines["target"] = target
    for name in ("layers", "layer"):
        if layers := record.arguments.get(name):
            lines["layer"] = ", ".join(map(str, layers)) if isinstance(layers, list | tuple) else str(layers)
    return lines


def cautions_of(record: Record) -> list[str]:
    """The cautions among a record's notes, without that word."""
    return [note.removeprefix(CAUTION) for note in record.notes if note.startswith(CAUTION)]


def extent(values: Tensor) -> str:
    """The least and the greatest of some numbers."""
    finite = values[values.isfinite()]
    if not finite.numel():
        return "no finite numbers"
    numbers = f"{float(finite.min()):.4g} to {float(finite.max()):.4g}"
    return numbers if len(finite) == values.numel() else f"{numbers}, and some that are not finite"


def sizes(pictures: Sequence[Any]) -> str:
    """The height and width that some images share, or the smallest and the largest."""
    shapes = sorted({(image.shape[-2], image.shape[-1]) for image in pictures}, key=lambda s: s[0] * s[1])
    written = [f"{height}x{width}" for height, width in shapes]
    return written[0] if len(written) == 1 else f"{written[0]} to {written[-1]}"
