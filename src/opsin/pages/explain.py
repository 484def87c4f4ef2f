"""Techniques on photos, side by side for several targets, layers or networks."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from opsin.base.errors import InputError, unknown
from opsin.base.headings import headings
from opsin.base.job import steps
from opsin.images import tensors
from opsin.images.photos import Source, as_photo, is_source
from opsin.network.model import Model
from opsin.pages.report import Report, Section
from opsin.pages.running import Running, Settings, takes_layer
from opsin.pages.views import View, goals_of, view
from opsin.registry import catalogue
from opsin.registry.kinds import Technique

if TYPE_CHECKING:
    from opsin.collection.store.store import Collection
    from opsin.results.findings import Shot

NEAREST = 6  # images of a collection
COMPARED = ("grad_cam", "hires_cam", "occlusion", "saliency", "guided_backprop", "guided_grad_cam")


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
    cheap = [name for name, technique in catalogue.techniques().items() if not technique.expensive]
    asked = bool(techniques)
    return _report([model], photos, target, layer, techniques or cheap, asked, settings, names, collection)


def compare(
    models: Model | Sequence[Model],
    photos: Float[Tensor, "n 3 h w"] | Source | Sequence[Source],
    *,
    target: object = None,
    layers: str | Sequence[str] | None = None,
    techniques: str | Sequence[str] | None = None,
    settings: Settings | None = None,
    names: Sequence[str] | None = None,
) -> Report:
    """The same techniques on each photo for several networks, layers or targets, side by side.

    Every network is asked at every layer for every target; techniques that read no layer once for each
    network. Without a `target`, networks with the same class names are asked for the classes that `explain`
    would show of the first one. The techniques are by default those of `COMPARED`; the other arguments and
    errors are those of `explain`.
    """
    several = [models] if isinstance(models, Model) else list(models)
    asked = techniques is not None
    return _report(several, photos, target, layers, techniques or COMPARED, asked, settings, names, None)


def _report(
    models: Sequence[Model],
    photos: Float[Tensor, "n 3 h w"] | Source | Sequence[Source],
    target: object,
    layers: str | Sequence[str] | None,
    techniques: str | Sequence[str],
    asked: bool,
    settings: Settings | None,
    names: Sequence[str] | None,
    collection: "Collection | str | Path | None",
) -> Report:
    """The answers of techniques, `asked` for or not, on every photo for every network and layer."""
    if not models or not all(isinstance(model, Model) for model in models):
        kinds = ", ".join(type(model).__name__ for model in models) or "none"
        raise InputError(f"pass an opsin.Model first, not {kinds}: see opsin.load")
    running = Running(settings or {})
    chosen = _chosen(techniques, running, target)
    shown = _photos(photos)
    titles = headings(names or [f"photo {i}" for i in range(len(shown))])
    if len(titles) != len(shown):
        raise InputError(f"{len(titles)} names for {len(shown)} photos")
    at = [layers] if layers is None or isinstance(layers, str) else list(dict.fromkeys(layers))
    for model in models if target is not None else ():
        goals_of(target, model)  # once, so that an invalid target fails here
    if collection is not None:
        from opsin.collection.store.store import opened  # noqa: PLC0415 (slow, and only needed for a collection)

        opened(collection).check(models[0])
    on_photos = [technique for technique in chosen if technique.takes_images]
    total = len(shown) * len(models) * len(at) * len(on_photos)
    ticks = iter(steps(range(total), total, "techniques"))
    sections = []
    for title, photo in zip(titles, shown, strict=True):
        views: list[View] = []
        for model, layer in product(models, at):
            seen = view(model, photo, target if target is not None else _same_classes(model, views), layer)
            answers = []
            for technique in on_photos:
                next(ticks)
                if (layer == at[0] or takes_layer(technique)) and (
                    technique.takes_model or model is models[0]
                ):
                    answers += running.answers(technique, seen)
            views.append(replace(seen, answers=tuple(answers)))
        near = () if collection is None else _nearest(models[0], collection, views[0].image, title)
        sections.append(Section(title, photo, tuple(views), near))
    general = [
        (technique, result)
        for technique, model in product(chosen, models)
        if not technique.takes_images and (result := running.general(technique, model, target)) is not None
    ]
    if running.left_out and not general and not any(v.answers for s in sections for v in s.views):
        raise InputError("; ".join(dict.fromkeys(running.left_out.values())))
    wanted = [techniques] if isinstance(techniques, str) else list(techniques) if asked else []
    named = frozenset({*wanted, *running.settings})
    return Report(tuple(sections), tuple(general), tuple(running.left_out.items()), named)


def _same_classes(model: Model, views: Sequence[View]) -> list[int] | None:
    """The classes that the first network is asked for, if this one has the same class names."""
    classes = [goal.class_index for goal in views[0].goals] if views else []
    if not classes or model.labels is None or model.labels != views[0].model.labels:
        return None
    return [index for index in classes if index is not None] or None


def _chosen(names: str | Sequence[str], running: Running, target: object) -> list[Technique]:
    """The techniques to run; of one that needs more than photos it is said why it is left out.

    Raises `InputError` on unknown techniques and settings.
    """
    asked = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    chosen = [catalogue.get(name) for name in asked]
    for name, given in running.settings.items():
        technique = catalogue.get(name)
        if technique not in chosen:
            raise InputError(f"settings for {name}, which is not among the techniques: {', '.join(asked)}")
        for key in given:
            if key not in technique.parameters:
                raise unknown(f"setting of {name}", key, technique.parameters)
    fitting = []
    for technique in chosen:
        known = running.settings.get(technique.name, {})
        required = [p for p in technique.parameters.values() if p.required and p.name not in known]
        missing = [p.name for p in required if p.arg.role != "target" or target is None]
        if missing:
            running.left_out[technique.name] = (
                f"{technique.name} needs a {missing[0]}: use `opsin {technique.name}`"
            )
        else:
            fitting.append(technique)
    return fitting


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
