"""Every technique on every photo, on one page that needs nothing but itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from opsin.base.errors import InputError, OpsinError
from opsin.base.folders import PAGE, RECORD, storing, writing
from opsin.base.job import CAUTION, steps
from opsin.base.records import as_json
from opsin.images import colour, tensors
from opsin.network.finite import origin
from opsin.network.model import Model
from opsin.objectives.objective import Objective
from opsin.objectives.parsing import one_each, resolve
from opsin.pages.cards import card_of
from opsin.registry import catalogue
from opsin.registry.kinds import Technique
from opsin.results.gallery import Gallery
from opsin.results.pictures import Pictures
from opsin.results.result import Result

if TYPE_CHECKING:
    from opsin.collection.store.store import Collection
    from opsin.results.findings import Shot
from opsin.base.headings import GENERAL, headings
from opsin.results.html import escaped, page, webp_uri

TOP = 5
NEAREST = 6  # images of a collection


@dataclass(frozen=True)
class Section:
    """One photo: its most probable classes with probabilities, a result per technique, and similar images.

    `no_classes` says why there are no classes, where there are none.
    """

    name: str
    image: Float[Tensor, "1 3 h w"]
    top: tuple[tuple[str, float], ...]
    results: tuple[tuple[Technique, Result], ...]
    near: "tuple[Shot, ...]" = ()
    no_classes: str = ""


@dataclass(frozen=True)
class Report:
    """What `explain` found; `left_out` says of each technique that did not run why."""

    model: Model
    sections: tuple[Section, ...]
    general: tuple[tuple[Technique, Result], ...]
    left_out: tuple[tuple[str, str], ...]

    def save(self, folder: str | Path) -> Path:
        """Write `index.html`, and beside it a folder per photo with each technique's `Result.save`.

        Returns the page's path. Raises `InputError` where the folder cannot be written.
        """
        with writing(folder) as place:
            self.write_into(place)
        return Path(folder) / PAGE

    def write_into(self, place: Path) -> None:
        """Write the files of `save` into an existing folder."""
        found = [(s.name, t.name, r) for s in self.sections for t, r in s.results]
        found += [(GENERAL, t.name, r) for t, r in self.general]
        for name, technique, result in steps(found, len(found), "writing"):
            inner = place / name / technique
            with storing():
                inner.mkdir(parents=True)
            result.write_into(inner)
        about = {"kind": "Report", "model": self.model.name, "photos": [s.name for s in self.sections]}
        with storing():
            (place / PAGE).write_text(self.html(), "utf-8")
            (place / RECORD).write_text(as_json(about), "utf-8")

    def html(self) -> str:
        """The page."""
        return page("report.html", report=self, photo=_photo, card=card_of)

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{escaped(self.html())}" style="width:100%;height:80vh;border:0"></iframe>'


def explain(
    model: Model,
    photos: Float[Tensor, "n 3 h w"],
    *,
    target: object = None,
    layer: str | None = None,
    techniques: str | Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    collection: "Collection | str | Path | None" = None,
) -> Report:
    """Run every technique that costs little, or those named, on each photo.

    `target` and `layer` go to the techniques that take them; `names` are the photos' headings. With a
    `collection` the images of it that are nearest to each photo are shown.
    A technique that was not asked for and does not fit the network or the target is left out, and the report
    says why; one that was asked for raises its error.
    """
    if not isinstance(model, Model):
        raise InputError(f"explain takes an opsin.Model first, got {type(model).__name__}: see opsin.load")
    tensors.check(photos)
    if collection is not None:
        from opsin.collection.store.store import opened  # noqa: PLC0415 (slow, and only needed for a collection)

        opened(collection).check(model)
    if layer is not None:
        model.call(layer)
    goals = _goals(model, photos, target)
    asked = [techniques] if isinstance(techniques, str) else list(dict.fromkeys(techniques or ()))
    chosen, left_out = _chosen(asked, target)
    titles = headings(names or [f"photo {i}" for i in range(len(photos))])
    if len(titles) != len(photos):
        raise InputError(f"{len(titles)} names for {len(photos)} photos")

    def run(technique: Technique, goal: Objective | None, *images: Tensor) -> Result | None:
        """The technique's result; none where it does not fit and was not asked for."""
        roles = {name: parameter.arg.role for name, parameter in technique.parameters.items()}
        given = {"target": goal, "layer": layer}
        settings = {name: given[role] for name, role in roles.items() if given.get(role) is not None}
        try:
            return technique.run(model, *images, **settings)  # type: ignore[no-any-return]
        except OpsinError as error:
            if asked:
                raise
            left_out[technique.name] = str(error)
            return None

    work = [(i, t) for i in range(len(photos)) for t in chosen if t.takes_images]
    results: list[list[tuple[Technique, Result]]] = [[] for _ in photos]
    for index, technique in steps(work, len(work), "techniques"):
        if (result := run(technique, goals[index], photos[index : index + 1])) is not None:
            results[index].append((technique, result))
    for name in {t.name for own in results for t, _ in own} & left_out.keys():
        left_out[name] = f"not on every photo: {left_out[name]}"
    near: list[tuple[Shot, ...]] = [()] * len(photos)
    if collection is not None:
        from opsin.collection.ask.neighbours import neighbours  # noqa: PLC0415 (as above)

        shots = neighbours(model, collection, photos, k=NEAREST, names=titles).shots
        near = [tuple(s for s in shots if s.group == title and not s.lead) for title in titles]
    goal = None if target is None else resolve(target, model)
    general = [(t, r) for t in chosen if not t.takes_images and (r := run(t, goal)) is not None]
    sections = []
    for title, photo, own, shots_ in zip(titles, photos.split(1), results, near, strict=True):
        top, no_classes = _top(model, photo)
        sections.append(Section(title, photo, top, tuple(sorted(own, key=_is_gallery)), shots_, no_classes))
    return Report(model, tuple(sections), tuple(general), tuple(sorted(left_out.items())))


def _chosen(asked: list[str], target: object) -> tuple[list[Technique], dict[str, str]]:
    """The techniques to run, and why each of the others is left out.

    Raises `InputError` on an unknown one, and on one that needs more than photos.
    """
    known = catalogue.techniques()
    chosen = [catalogue.get(n) for n in asked] if asked else [t for t in known.values() if not t.expensive]
    for technique in chosen:
        required = [p for p in technique.parameters.values() if p.required]
        if needed := [p.name for p in required if p.arg.role != "target" or target is None]:
            raise InputError(f"{technique.name} needs a {needed[0]}: use `opsin {technique.name}`")
    others = [t for t in known.values() if t not in chosen]
    why = {t.name: "not asked for" if asked else f"runs only by name: {t.cost} passes" for t in others}
    return chosen, why


def _goals(model: Model, photos: Float[Tensor, "n 3 h w"], target: object) -> list[Objective]:
    """Each photo's target: one for all, or one each. Raises `InputError` if a target does not exist."""
    goals = one_each(target, model, len(photos))
    if target is not None:
        goal = resolve(target, model)
        goal.score(model.run(photos[: goal.count], goal.layers))  # once, so that a bad target fails here
    return goals


def _top(model: Model, image: Float[Tensor, "1 3 h w"]) -> tuple[tuple[tuple[str, float], ...], str]:
    """The most probable classes with probabilities; where there are none, why."""
    output = model.run(image)["output"]
    if output.ndim != 2:
        return (), "The network's output is not one score a class."
    found = model.probabilities(output)[0]
    if not found.isfinite().all():
        return (), f"{CAUTION}the network's output is NaN or infinite: this begins {origin(model, image)}."
    probabilities, classes = found.topk(min(TOP, len(found)))
    return tuple((model.label(int(c)), float(p)) for p, c in zip(probabilities, classes, strict=True)), ""


def _is_gallery(pair: tuple[Technique, Result]) -> bool:
    return isinstance(pair[1], Gallery | Pictures)


def _photo(section: Section) -> str:
    return webp_uri(colour.photo(section.image[0]), section.image.shape[-1])
