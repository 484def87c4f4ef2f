"""Techniques on photos, side by side for several targets, layers or networks."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from opsin.base.errors import InputError, OpsinError, unknown
from opsin.base.headings import headings
from opsin.base.job import steps
from opsin.images import tensors
from opsin.images.photos import Source, as_photo, is_source
from opsin.network.model import Model
from opsin.objectives.units import PREDICTED
from opsin.pages.report import Report, Section
from opsin.pages.views import Answer, View, goals_of, view
from opsin.registry import catalogue
from opsin.registry.kinds import Technique
from opsin.results.result import Result

if TYPE_CHECKING:
    from opsin.collection.store.store import Collection
    from opsin.results.findings import Shot

NEAREST = 6  # images of a collection
COMPARED = ("grad_cam", "hires_cam", "occlusion", "saliency", "guided_backprop", "guided_grad_cam")
Settings = Mapping[str, Mapping[str, Any]]


def explain(
    model: Model,
    photos: Float[Tensor, "n 3 h w"] | Source | Sequence[Source],
    *,
    target: object = None,
    layer: str | None = None,
    techniques: str | Sequence[str] | None = None,
    settings: Settings | None = None,
    names: Sequence[str] | None = None,
    collection: "Collection | str | Path | None" = None,
) -> Report:
    """Run every technique that costs little, or those named, on each photo.

    `photos` are images for the network, or photos of any size, which the page then shows whole. `target` may
    be several: a list, or a text with semicolons; they are shown side by side. By default it is the predicted
    class and, if one is probable enough, the next class of another kind. `target` and `layer` go to the
    techniques that take them, `settings` are further ones by technique: `{"occlusion": {"patch": 8}}`.
    `names` are the photos' headings. With a `collection` the images of it that are nearest to each photo are
    shown.

    A technique that does not fit the network or the target is left out, and the report says why. Raises
    `InputError` if no photo can be explained, or if none of the techniques asked for can be run.
    """
    return compare(
        model,
        photos,
        target=target,
        layers=layer,
        techniques=techniques or [name for name, t in catalogue.techniques().items() if not t.expensive],
        settings=settings,
        names=names,
        collection=collection,
        _asked=bool(techniques),
    )


def compare(
    models: Model | Sequence[Model],
    photos: Float[Tensor, "n 3 h w"] | Source | Sequence[Source],
    *,
    target: object = None,
    layers: str | Sequence[str] | None = None,
    techniques: str | Sequence[str] | None = None,
    settings: Settings | None = None,
    names: Sequence[str] | None = None,
    collection: "Collection | str | Path | None" = None,
    _asked: bool = True,
) -> Report:
    """The same techniques on each photo for several networks, layers or targets, side by side.

    Every network is asked at every layer for every target. The techniques are by default those of `COMPARED`;
    the other arguments and errors are those of `explain`.
    """
    several = [models] if isinstance(models, Model) else list(models)
    if not several or not all(isinstance(model, Model) for model in several):
        raise InputError(f"pass an opsin.Model first, not {type(models).__name__}: see opsin.load")
    chosen = _chosen(COMPARED if techniques is None else techniques, settings or {}, target)
    shown = _photos(photos)
    titles = headings(names or [f"photo {i}" for i in range(len(shown))])
    if len(titles) != len(shown):
        raise InputError(f"{len(titles)} names for {len(shown)} photos")
    at = [layers] if layers is None or isinstance(layers, str) else list(dict.fromkeys(layers))
    if target is not None:
        for model in several:
            goals_of(target, model)  # once, so that an invalid target fails here
    if collection is not None:
        from opsin.collection.store.store import opened  # noqa: PLC0415 (slow, and only needed for a collection)

        opened(collection).check(several[0])
    running = _Running(settings or {}, _asked and techniques is not None)
    sections = []
    work = [(index, model, layer) for index in range(len(shown)) for model in several for layer in at]
    views: dict[int, list[View]] = {index: [] for index in range(len(shown))}
    total = len(work) * len(chosen)
    ticks = iter(steps(range(total), total, "techniques"))
    for index, model, layer in work:
        seen = view(model, shown[index], target, layer)
        answers = []
        for technique in chosen:
            next(ticks)
            if technique.takes_images:
                answers += running.answers(technique, seen)
        views[index].append(replace(seen, answers=tuple(answers)))
    for index, title in enumerate(titles):
        near: tuple[Shot, ...] = ()
        if collection is not None:
            near = _nearest(several[0], collection, views[index][0].image, title)
        sections.append(Section(title, shown[index], tuple(views[index]), near))
    general = [
        (technique, result)
        for technique in chosen
        if not technique.takes_images
        for model in several
        if (result := running.general(technique, model, target)) is not None
    ]
    running.check([answer for section in sections for v in section.views for answer in v.answers], general)
    return Report(tuple(sections), tuple(general), tuple(running.left_out.items()), running.asked)


class _Running:
    """Runs techniques on views; `left_out` says of each that did not fit why."""

    def __init__(self, settings: Settings, asked: bool) -> None:
        self.settings = settings
        self.asked = asked
        self.left_out: dict[str, str] = {}

    def answers(self, technique: Technique, seen: View) -> list[Answer]:
        """The technique's results on a view: one for all targets, where it takes images one by one."""
        parameters = technique.parameters
        given: dict[str, Any] = dict(self.settings.get(technique.name, {}))
        if seen.layer is not None and any(p.arg.role == "layer" for p in parameters.values()):
            given["layer"] = seen.layer
        if "target" not in parameters or "target" in given or _has_own_target(technique, seen):
            result = self._run(technique, seen.model, seen.image, given)
            return [] if result is None else [Answer(technique, result)]
        if technique.name == "layers":
            result = self._run(technique, seen.model, seen.image, given | {"target": seen.goals[0]})
            return [] if result is None else [Answer(technique, result)]
        if technique.photos == "each" and not technique.iterative:
            count = len(seen.goals)
            goals = list(seen.goals) if count > 1 else seen.goals[0]
            images = seen.image.expand(count, -1, -1, -1).contiguous()
            result = self._run(technique, seen.model, images, given | {"target": goals})
            return [] if result is None else [Answer(technique, result, tuple(range(count)))]
        results = [self._run(technique, seen.model, seen.image, given | {"target": g}) for g in seen.goals]
        return [Answer(technique, r, (i,)) for i, r in enumerate(results) if r is not None]

    def general(self, technique: Technique, model: Model, target: object) -> Result | None:
        """The result of a technique that takes no photo."""
        given = dict(self.settings.get(technique.name, {}))
        if "target" in technique.parameters and target is not None:
            given.setdefault("target", target)
        return self._run(technique, model, None, given)

    def _run(
        self, technique: Technique, model: Model, images: Tensor | None, given: dict[str, Any]
    ) -> Result | None:
        try:
            return technique.run(model, *([] if images is None else [images]), **given)  # type: ignore[no-any-return]
        except OpsinError as error:
            self.left_out.setdefault(technique.name, str(error))
            return None

    def check(self, answers: Sequence[Answer], general: Sequence[Any]) -> None:
        """Raise `InputError` if nothing could be run."""
        if not answers and not general and self.left_out:
            raise InputError("; ".join(dict.fromkeys(self.left_out.values())))


def _has_own_target(technique: Technique, seen: View) -> bool:
    """Whether its default target is better than a class: the strongest unit, for deconvnet."""
    default = inspect.signature(technique.run.__wrapped__).parameters["target"].default  # type: ignore[attr-defined]
    return (
        default is not inspect.Parameter.empty
        and default is not PREDICTED
        and all("output" in goal.layers for goal in seen.goals)
    )


def _chosen(names: str | Sequence[str], settings: Settings, target: object) -> list[Technique]:
    """The techniques to run. Raises `InputError` on unknown ones, and on one that needs more than photos."""
    asked = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    chosen = [catalogue.get(name) for name in asked]
    for name, given in settings.items():
        technique = catalogue.get(name)
        if technique not in chosen:
            raise InputError(f"settings for {name}, which is not among the techniques: {', '.join(asked)}")
        for key in given:
            if key not in technique.parameters:
                raise unknown(f"setting of {name}", key, technique.parameters)
    for technique in chosen:
        required = [p for p in technique.parameters.values() if p.required]
        known = settings.get(technique.name, {})
        missing = [
            p.name for p in required if p.name not in known and (p.arg.role != "target" or target is None)
        ]
        if missing:
            raise InputError(f"{technique.name} needs a {missing[0]}: use `opsin {technique.name}`")
    return chosen


def _photos(photos: Tensor | Source | Sequence[Source]) -> list[Image.Image | Tensor]:
    """Each photo: a picture of any size, or an image that is cut to a network's size already."""
    if isinstance(photos, Tensor):
        tensors.check(photos)
        return list(photos.split(1))
    several = [photos] if is_source(photos) else list(photos)  # type: ignore[arg-type]
    if not several:
        raise InputError("no photo given: pass at least one")
    return [as_photo(photo) for photo in several]


def _nearest(
    model: Model, collection: "Collection | str | Path", image: Float[Tensor, "1 3 h w"], title: str
) -> "tuple[Shot, ...]":
    from opsin.collection.ask.neighbours import neighbours  # noqa: PLC0415 (as above)

    shots = neighbours(model, collection, image, k=NEAREST, names=[title]).shots
    return tuple(shot for shot in shots if shot.group == title and not shot.lead)
