"""A result as a page shows it."""

from itertools import groupby
from typing import Any

from opsin.base.job import CAUTION
from opsin.images import colour
from opsin.registry.kinds import Technique
from opsin.results.gallery import Gallery
from opsin.results.html import data_uri, webp_uri
from opsin.results.pictures import Pictures
from opsin.results.result import Result

STRIP, MOST_SHOWN = 512, 24  # pixels of a picture that was made, and how many stand on the page
THUMBNAIL = 128  # pixels: galleries are drawn small on the page, at full size beside it


def card_of(technique: Technique, result: Result) -> dict[str, Any]:
    """What the page shows of one result."""
    assert result.record is not None
    settings = {k: v for k, v in result.record.arguments.items() if k != "images"}
    cautions = [n for n in result.record.notes if n.startswith(CAUTION)]
    notes = [n for n in result.record.notes if n not in cautions]
    card = {"technique": technique, "settings": settings, "notes": notes, "cautions": cautions, "groups": []}
    if isinstance(result, Pictures):
        strip = [
            (p.group, p.caption, webp_uri(colour.photo(p.image), STRIP)) for p in result.panels[:MOST_SHOWN]
        ]
        return {**card, "pictures": [], "strip": strip}
    if not isinstance(result, Gallery):
        return {**card, "pictures": [data_uri(picture) for _, picture in result.pictures()]}
    groups = [(group, list(panels)) for group, panels in groupby(result.panels, lambda panel: panel.group)]
    if len(result.panels) == 1:
        (panel,) = result.panels
        return {**card, "pictures": [data_uri(panel.picture())], "caption": f"{panel.group}: {panel.caption}"}
    drawn = [
        (g, [(p.title, p.caption, webp_uri(p.picture(), THUMBNAIL)) for p in panels]) for g, panels in groups
    ]
    return {**card, "pictures": [], "groups": drawn}
