"""A result as a notebook shows it."""

from typing import Any

from opsin.base.errors import shortened
from opsin.base.records import Record
from opsin.results.cells import Cell
from opsin.results.describing import asked, cautions_of, made_by
from opsin.results.html import data_uri, page, webp_uri

SIDE = 224  # pixels of a picture
LARGEST = 280_000  # characters of all pictures together: a notebook keeps what it shows
CAUTIONS = 5  # that are listed


def notebook_html(kind: str, record: Record | None, cells: list[Cell], total: int) -> str:
    """The pictures with their titles, scales and cautions, as many as go into a notebook."""
    shown: list[dict[str, Any]] = []
    spent = 0
    for cell in cells:
        drawn = _drawn(cell)
        spent += sum(len(drawn[name] or "") for name in ("picture", "photo"))
        if shown and spent > LARGEST:
            break
        shown.append(drawn)
    return page(
        "notebook.html",
        title=made_by(record) if record else kind,
        asked={name: shortened(text) for name, text in asked(record).items()} if record else {},
        cautions=[shortened(text) for text in cautions_of(record)[:CAUTIONS]] if record else [],
        cells=shown,
        side=SIDE,
        more=f"{len(shown)} of {total} shown, save() writes all" if len(shown) < total else "",
    )


def _drawn(cell: Cell) -> dict[str, Any]:
    scale = None
    if cell.scale is not None:
        scale = {
            "low": f"{cell.scale.low:.3g}",
            "high": f"{cell.scale.high:.3g}",
            "bar": data_uri(cell.scale.bar),
        }
    return {
        "title": shortened(cell.title),
        "caption": shortened(cell.caption),
        "picture": webp_uri(cell.picture, SIDE),
        "photo": None if cell.photo is None else webp_uri(cell.photo, SIDE),
        "scale": scale,
    }
