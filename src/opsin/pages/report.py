"""What `explain` and `compare` found, as a page and as files."""

from dataclasses import dataclass
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
from opsin.pages.teaching import STRIP, arranged
from opsin.pages.views import Answer, View
from opsin.registry import catalogue
from opsin.registry.kinds import Technique
from opsin.results.html import escaped, page, webp_uri
from opsin.results.result import Result

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

    def title(self, view: View, index: int) -> str:
        """What distinguishes a target of a view from the others of the photo."""
        parts = [view.targets[index].name]
        if len({v.layer for v in self.views}) > 1:
            parts.append(view.layer or view.model.default_layer)
        if len({v.model.name for v in self.views}) > 1:
            parts.append(view.model.name)
        return ", ".join(parts)

    def parts(self) -> list[dict[str, Any]]:
        """The parts of the page, each with a row of figures for every target of every view."""
        known = {answer.technique.name: answer.technique for v in self.views for answer in v.answers}
        parts = []
        for part, techniques in arranged(known.values()):
            rows, names = [], [t.name for t in techniques if t.name != "layers"]
            for view in self.views:
                own = {(a.technique.name, i): (a, n) for a in view.answers for n, i in enumerate(a.targets)}
                for index, target in enumerate(view.targets):
                    cards = [
                        card
                        for name in names
                        if (name, index) in own
                        for card in figures(*own[name, index], view, self.title(view, index))
                    ]
                    if cards:
                        rows.append({"title": self.title(view, index), "target": target, "cards": cards})
                shared = [
                    a for name in names for a in view.answers if a.technique.name == name and not a.targets
                ]
                cards = [
                    card for a in shared for n in range(_count(a.result)) for card in figures(a, n, view, "")
                ]
                if cards:
                    rows.append({"title": "", "target": None, "cards": cards})
            trees = [tree(a.result) for v in self.views for a in v.answers if a.technique.name == "layers"]
            parts.append({"part": part, "rows": rows, "trees": trees if "inside" in part.folders else []})
        return parts

    def strip(self) -> list[Figure]:
        """The first answers, beside the photo at the top."""
        view = self.views[0]
        cards: list[Figure] = []
        for name in STRIP:
            for answer in view.answers:
                if answer.technique.name == name:
                    cards += figures(answer, 0, view, self.title(view, 0) if answer.targets else "")
        return cards


@dataclass(frozen=True)
class Report:
    """What was found: a section per photo, and results that are the same for every photo.

    `left_out` says of each technique that did not fit why; `asked` whether the techniques had been named.
    """

    sections: tuple[Section, ...]
    general: tuple[tuple[Technique, Result], ...]
    left_out: tuple[tuple[str, str], ...]
    asked: bool = False

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
            "explain.html", report=self, photo=_photo, general=general, more=more, scales=colour.SCALES
        )

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{escaped(self.html())}" style="width:100%;height:80vh;border:0"></iframe>'


def _plain(target: ScoredTarget) -> dict[str, Any]:
    return {"name": target.name, "score": target.score, "probability": target.probability}


def _photo(section: Section) -> str:
    return webp_uri(section.picture, SIDE)


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
