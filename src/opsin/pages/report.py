"""What `explain` and `compare` found, as a page and as files."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from opsin.base.folders import PAGE, PAGE_OF_PHOTOS, RECORD, storing, writing
from opsin.base.headings import GENERAL
from opsin.base.job import steps
from opsin.base.records import ScoredTarget, as_json
from opsin.base.slugs import slug, stems
from opsin.images import colour
from opsin.pages.figures import Figure, figures, tree
from opsin.pages.running import WHOLE, takes_layer
from opsin.pages.teaching import STRIP, arranged
from opsin.pages.views import Answer, View
from opsin.registry import catalogue
from opsin.registry.kinds import Technique
from opsin.results.cells import scored
from opsin.results.describing import LONGEST
from opsin.results.html import escaped, page, webp_uri
from opsin.results.result import Result
from opsin.results.sheets import fitting

if TYPE_CHECKING:
    from opsin.results.findings import Shot

SIDE = 640  # pixels of the longer side of a photo on the page


@dataclass(frozen=True)
class Section:
    """One photo with its views: one for each network and layer; `near` are similar images of a collection."""

    name: str
    photo: Image.Image | Tensor
    views: tuple[View, ...]
    near: "tuple[Shot, ...]" = ()

    @property
    def picture(self) -> Image.Image:
        """The whole photo."""
        return colour.photo(self.photo[0]) if isinstance(self.photo, Tensor) else self.photo

    def columns(self) -> list[tuple[View, int]]:
        """Every target of every view: what stands side by side."""
        return [(view, index) for view in self.views for index in range(len(view.targets))]

    def networks(self) -> list[View]:
        """The first view of each network."""
        return list({view.model.name: view for view in reversed(self.views)}.values())[::-1]

    def title(self, view: View, index: int, technique: Technique | None = None) -> str:
        """What distinguishes a target of a view from the others of the photo, for a technique."""
        parts = [view.targets[index].name]
        if len({v.layer for v in self.views}) > 1 and (technique is None or takes_layer(technique)):
            parts.append(view.maps_from)
        if len(self.networks()) > 1:
            parts.append(view.model.name)
        return ", ".join(parts)

    def parts(self) -> list[dict[str, Any]]:
        """The parts of the page: for every technique a group of figures, one for each column that it has."""
        known = {answer.technique.name: answer.technique for v in self.views for answer in v.answers}
        parts = []
        for part, techniques in arranged(known.values()):
            groups = [group for t in techniques if t.name != WHOLE for group in self._groups(t)]
            trees = [tree(a.result) for v in self.views for a in v.answers if a.technique.name == WHOLE]
            parts.append({"part": part, "groups": groups, "trees": trees if "inside" in part.folders else []})
        return parts

    def _groups(self, technique: Technique) -> list[list[Figure]]:
        """The figures of a technique: those of targets side by side, then those that hold for all targets."""
        groups: list[list[Figure]] = []
        beside: list[Figure] = []
        for view, answer in [(v, a) for v in self.views for a in v.answers if a.technique is technique]:
            for number, index in enumerate(answer.targets):
                cards = figures(answer, number, view, self.title(view, index, technique))
                beside += [replace(card, goal=view.targets[index].name) for card in cards]
            if not answer.targets:
                groups += [figures(answer, n, view, "") for n in range(_count(answer.result))]
        return [beside, *groups] if beside else groups

    def strip(self) -> list[Figure]:
        """The first answers, beside the photo at the top."""
        view = self.views[0]
        by_name = {answer.technique.name: answer for answer in reversed(view.answers)}
        cards: list[Figure] = []
        for answer in (by_name[name] for name in STRIP if name in by_name):
            title = self.title(view, answer.targets[0], answer.technique) if answer.targets else ""
            cards += figures(answer, 0, view, title)
        return cards


@dataclass(frozen=True, repr=False)
class Report:
    """What was found: a section per photo, and results that are the same for every photo.

    `left_out` says of each technique that did not fit why; `asked` are those that had been named.
    """

    sections: tuple[Section, ...]
    general: tuple[tuple[Technique, Result], ...]
    left_out: tuple[tuple[str, str], ...]
    asked: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        photos = ", ".join(section.name for section in self.sections)
        targets = dict.fromkeys(scored(t) for s in self.sections for v in s.views for t in v.targets)
        techniques = dict.fromkeys(
            a.technique.name for s in self.sections for v in s.views for a in v.answers
        )
        techniques |= dict.fromkeys(technique.name for technique, _ in self.general)
        lines = [f"Report: {photos} on {', '.join(model.name for model in self.models)}"]
        lines += [f"  targets:    {'; '.join(targets)}", f"  techniques: {', '.join(techniques)}"]
        if self.left_out:
            lines.append(f"  left out:   {', '.join(name for name, _ in self.left_out)}")
        return "\n".join(fitting(line, LONGEST) for line in [*lines, "  .save(folder) writes the page"])

    @property
    def models(self) -> list[Any]:
        """The networks, each once."""
        return list({v.model.name: v.model for s in self.sections for v in s.views}.values())

    def save(self, folder: str | Path, *, values: bool = False) -> Path:
        """Write `index.html`, and beside it a folder per photo with each technique's pictures and record.

        With `values` the raw arrays are written too, as `Result.save` does: some 10 MB for each photo.
        Returns the page's path. Raises `InputError` where the folder cannot be written.
        """
        with writing(folder) as place:
            self.write_into(place, values=values)
        return Path(folder) / PAGE

    def write_into(self, place: Path, *, values: bool = False) -> None:
        """Write the files of `save` into an existing folder."""
        results = [
            (section.name, folder, answer.result)
            for section in self.sections
            for folder, answer in _folders(section.views)
        ]
        results += [(GENERAL, technique.name, result) for technique, result in self.general]
        for name, folder, result in steps(results, len(results), "writing"):
            inner = place / name / folder
            with storing():
                inner.mkdir(parents=True)
            result.write_into(inner) if values else result.write_pictures(inner)
        with storing():
            (place / PAGE).write_text(self.html(), "utf-8")
            (place / RECORD).write_text(as_json(self.facts()), "utf-8")

    def facts(self) -> dict[str, Any]:
        """The networks, and each photo's classes and targets with scores and probabilities."""
        photos = {
            section.name: [
                {
                    "model": view.model.name,
                    "layer": view.layer,
                    "classes": [_plain(t) for t in view.top],
                    "targets": [_plain(t) for t in view.targets],
                }
                for view in section.views
            ]
            for section in self.sections
        }
        names = [model.name for model in self.models]
        return {"kind": PAGE_OF_PHOTOS, "models": names, "photos": photos, "left_out": dict(self.left_out)}

    def html(self) -> str:
        """The page."""
        general = [
            card
            for technique, result in self.general
            for card in figures(Answer(technique, result), 0, None, "")
        ]
        run = {a.technique.name for s in self.sections for v in s.views for a in v.answers}
        more = [t for t in catalogue.techniques().values() if t.expensive and t.name not in run]
        return page(
            "explain.html",
            report=self,
            photos=[(i, webp_uri(s.picture, SIDE), *s.picture.size) for i, s in enumerate(self.sections, 1)],
            general=general,
            more=more,
            scales=colour.SCALES,
            share=share,
        )

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{escaped(self.html())}" style="width:100%;height:80vh;border:0"></iframe>'


def _plain(target: ScoredTarget) -> dict[str, Any]:
    return {"name": target.name, "score": target.score, "probability": target.probability}


def share(probability: float) -> str:
    """A probability in per cent; never 0 or 100, which no softmax gives."""
    percent = 100 * probability
    return "< 0.1 %" if percent < 0.05 else "> 99.9 %" if percent > 99.95 else f"{percent:.1f} %"


def _count(result: Result) -> int:
    return len(result) if hasattr(result, "values") else 1  # type: ignore[arg-type]


def _folders(views: tuple[View, ...]) -> list[tuple[str, Answer]]:
    """A folder's name for every answer: the technique's, and what distinguishes it."""
    several = [(view, answer) for view in views for answer in view.answers]
    parts = [
        [
            answer.technique.name,
            slug(view.model.name) if len({v.model.name for v in views}) > 1 else "",
            slug(view.layer or "") if len({v.layer for v in views}) > 1 else "",
            view.targets[answer.targets[0]].name if len(answer.targets) == 1 < len(view.targets) else "",
        ]
        for view, answer in several
    ]
    names = stems(parts, "technique")
    return [(name, answer) for name, (_, answer) in zip(names, several, strict=True)]
