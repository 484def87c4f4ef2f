"""A result as the page shows it: pictures with their colour scale, and values to hover over."""

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from opsin.base.job import CAUTION
from opsin.base.slugs import first_name
from opsin.images import colour
from opsin.pages.views import Answer, Box, View
from opsin.registry.kinds import Technique
from opsin.results.gallery import Gallery, Panel
from opsin.results.heatmap import Heatmap
from opsin.results.html import data_uri, webp_uri
from opsin.results.pictures import Pictures
from opsin.results.result import Result

OVERLAY = 320  # pixels of the longer side of a map that is laid over a photo
PICTURE = 320  # of a picture
PROBED = 56  # rows and columns of values that can be hovered over, at most
SHEET = 64  # pixels of a layer's tiles on the page
NAMED = re.compile(r"\bimage (\d+(?:, \d+)*)\b")  # in notes
MOST_SHOWN = 24  # pictures of one result on the page


@dataclass(frozen=True)
class Probe:
    """The values of a map as a grey picture: black is `low`, white is `high`."""

    picture: str
    low: float
    high: float


@dataclass(frozen=True)
class Figure:
    """A picture with what it needs to be read.

    An `overlay` lies over the photo at `box` (left, top, right, bottom in percent); any other picture stands
    for itself. `scale` names the colours (`sequential`, `diverging`, `grey`, or none), from `low` to `high`.
    """

    technique: Technique
    target: str
    picture: str
    caption: str = ""
    overlay: bool = False
    box: Box | None = None
    scale: str = ""
    low: str = ""
    high: str = ""
    probe: Probe | None = None
    colours: str = ""  # the same map with its three colours apart
    cautions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    goal: str = ""  # the target's own name, without what distinguishes the column


@dataclass(frozen=True)
class Node:
    """A layer in the tree of layers: its own pictures, and the layers inside it."""

    name: str
    kind: str
    panels: tuple[tuple[str, str, str], ...]  # title, caption, picture
    inside: "tuple[Node, ...]"


def figures(answer: Answer, index: int, view: View | None, target: str) -> list[Figure]:
    """What the page shows of an answer's `index`-th image, a target's."""
    result, technique = answer.result, answer.technique
    assert result.record is not None
    notes = _of_image(result.record.notes, index, len(answer.targets))
    about: dict[str, Any] = {
        "cautions": tuple(note.removeprefix(CAUTION) for note in notes if note.startswith(CAUTION)),
        "notes": tuple(note for note in notes if not note.startswith(CAUTION)),
        "settings": {
            name: value
            for name, value in result.record.arguments.items()
            if name not in ("images", "target") and value is not None
        },
    }
    if isinstance(result, Heatmap):
        names = result.record.targets
        own = target or (first_name(names[index].name) if names else "")
        return _map(technique, result, index, view, own, about)
    if isinstance(result, Pictures):
        return [
            Figure(
                technique, panel.group, webp_uri(colour.photo(panel.image), PICTURE), panel.caption, **about
            )
            for panel in result.panels[:MOST_SHOWN]
        ]
    if isinstance(result, Gallery):
        return [
            Figure(
                technique, "", webp_uri(p.picture(), PICTURE), f"{p.group}, {p.title}: {p.caption}", **about
            )
            for p in result.panels[:MOST_SHOWN]
        ]
    return [
        Figure(technique, target, data_uri(picture), caption, **about)
        for caption, picture in result.pictures()
    ]


def _map(
    technique: Technique, result: Heatmap, index: int, view: View | None, target: str, about: dict[str, Any]
) -> list[Figure]:
    values = result.values[index : index + 1]
    left, top, right, bottom = view.box if view else (0.0, 0.0, 1.0, 1.0)
    box = (100 * left, 100 * top, 100 * right, 100 * bottom)
    if result.overlay and values.shape[1] == 1:
        height, width = result.images.shape[-2:]
        share = OVERLAY / max(height, width)
        drawn = colour.smooth(values, (round(height * share), round(width * share)))[0, 0]
        picture, peak = colour.overlay(drawn, signed=result.signed)
        scale = "diverging" if result.signed else "sequential"
        ends = (_number(-peak if result.signed else 0), _number(peak))
        return [
            Figure(
                technique,
                target,
                webp_uri(picture, OVERLAY),
                "",
                True,
                box,
                scale,
                *ends,
                _probe(values),
                **about,
            )
        ]
    drawn = values.sum(1, keepdim=True) if result.summed else values
    grey = drawn.shape[1] == 3
    scale = "grey" if grey else "diverging" if result.signed else "sequential"
    limit = colour.limit(torch.nan_to_num(drawn.float()))
    ends = (_number(-limit if result.signed or grey else 0), _number(limit))
    apart = webp_uri(colour.heat(values[0], signed=True), PICTURE) if result.summed else ""
    whole = webp_uri(colour.heat(drawn[0], signed=result.signed), PICTURE)
    figures = [Figure(technique, target, whole, "", False, box, scale, *ends, _probe(drawn), apart, **about)]
    if "box" in result.extras:
        up, start, down, end = result.extras["box"][index].tolist()
        patch = (slice(up, down), slice(start, end))
        seen = webp_uri(colour.photo(result.images[index][:, *patch]), PICTURE)
        back = webp_uri(colour.heat(values[0][:, *patch], signed=True), PICTURE)
        figures = [
            Figure(
                technique,
                target,
                back,
                "the strongest unit, carried back to the pixels",
                False,
                None,
                scale,
                *ends,
                **about,
            ),
            Figure(technique, target, seen, "the part of the photo that it sees", **about),
        ]
    return figures


def tree(result: Result) -> tuple[Node, ...]:
    """The layers of a gallery as a tree by the dots of their names."""
    assert isinstance(result, Gallery)
    groups: dict[str, list[Panel]] = {}
    for panel in result.panels:
        groups.setdefault(panel.group, []).append(panel)
    leaves = []
    for group, panels in groups.items():
        name, _, kind = group.rpartition(" (")
        pictures = tuple(
            (p.title, p.caption, webp_uri(p.picture(), SHEET)) for p in panels if "bias" not in p.title
        )
        leaves.append((name.split("."), Node(name, kind.rstrip(")"), pictures, ())))
    return _nested(leaves, 0)


def _nested(leaves: list[tuple[list[str], Node]], depth: int) -> tuple[Node, ...]:
    nodes: dict[str, list[tuple[list[str], Node]]] = {}
    for path, leaf in leaves:
        nodes.setdefault(path[depth], []).append((path, leaf))
    made = []
    for name, members in nodes.items():
        own = [leaf for path, leaf in members if len(path) == depth + 1]
        inner = [(path, leaf) for path, leaf in members if len(path) > depth + 1]
        kind, panels = (own[0].kind, own[0].panels) if own else ("", ())
        made.append(Node(name, kind, panels, _nested(inner, depth + 1)))
    return tuple(made)


def _probe(values: Float[Tensor, "1 c h w"]) -> Probe:
    """The values, summed over colours; fine maps are averaged to at most `PROBED` rows and columns."""
    single = torch.nan_to_num(values.float()).sum(1)
    h, w = single.shape[-2:]
    if max(h, w) > PROBED:
        single = adaptive_avg_pool2d(single, (min(h, PROBED), min(w, PROBED)))
    low, high = float(single.min()), float(single.max())
    grey = (single[0] - low) / ((high - low) or 1)
    return Probe(data_uri(Image.fromarray((grey * 255).round().byte().numpy())), low, high)


def _of_image(notes: tuple[str, ...], index: int, count: int) -> tuple[str, ...]:
    """The notes that hold for one of several images: those that name other images only are left out.

    A page's images are one photo's targets, so the number of the image is no help to its reader.
    """
    kept = []
    for note in notes:
        named = NAMED.search(note)
        numbers = [int(number) for number in named[1].split(", ")] if named else [index]
        if count <= 1 or index in numbers:
            kept.append(NAMED.sub("this target" if count > 1 else "the photo", note, count=1))
    return tuple(kept)


def _number(value: float) -> str:
    """Two digits, or all before the point, with a proper minus."""
    text = f"{value:.0f}" if 10 <= abs(value) < 1e5 else f"{value:.2g}"
    return text.replace("-", "−")
