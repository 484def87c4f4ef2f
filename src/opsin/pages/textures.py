"""New textures of one sample by every technique, side by side, with measures by which each is judged."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.choices import MOST_TEXTURE
from opsin.base.errors import InputError, OpsinError, unknown
from opsin.base.job import noting, steps
from opsin.base.records import PACKAGES, Record, versions
from opsin.images import colour, tensors
from opsin.images.photos import Source, as_photo
from opsin.network.model import Model
from opsin.network.shortcuts.pooling import AveragePooling
from opsin.objectives.features import gram
from opsin.optimise.samples import sample_of
from opsin.optimise.textures import first_activations
from opsin.pages.running import Settings
from opsin.registry import catalogue
from opsin.results.findings import Findings, Shot, Table
from opsin.results.pictures import Pictures
from opsin.statistics import measures

WAYS = ("random_phase", "heeger_bergen", "portilla_simoncelli", "texture", "efros_leung", "quilting")
SMALLEST = 32  # pixels along a side of the sample: less has no statistics of some scales
DIGITS = 3
Distance = Callable[[Float[Tensor, "1 3 h w"], Float[Tensor, "1 3 H W"]], float]


@dataclass(frozen=True)
class Measure:
    """A distance between a texture and its sample, and the technique that minimises it, if one does."""

    name: str
    about: str
    optimised_by: str
    distance: Distance


COPIED = "copied"
MEASURES = (
    Measure(
        "co-occurrence",
        "mean |log ratio| of the features of grey-level co-occurrence matrices, at distances 1 and 4",
        "",
        measures.cooccurrence_distance,
    ),
    Measure(
        "spectrum",
        "mean |log ratio| of the power in 16 rings of frequencies",
        "random_phase",
        measures.spectrum_distance,
    ),
    Measure(
        "wavelets",
        "distance of the statistics of Portilla and Simoncelli, of the brightness",
        "portilla_simoncelli",
        measures.wavelet_distance,
    ),
)


def textures(
    sample: Float[Tensor, "1 3 h w"] | Source,
    model: Model | None = None,
    *,
    size: int = 128,
    width: int | None = None,
    source: int = 128,
    ways: str | Sequence[str] | None = None,
    settings: Settings | None = None,
    seed: int = 0,
) -> Findings:
    """New textures of one sample by every way, at the same size and seed, with time and a table of measures.

    `ways` are techniques of `WAYS`, `settings` further ones by technique: `{"quilting": {"block": 24}}`. With
    a `model`, `texture` is among the ways, and the distance of Gram matrices among the measures. A way that
    cannot be taken (a missing extra, a sample that is too small for it) is left out, and the page says why.

    The measures are distances: 0 is the sample itself. The row of the sample compares its left half with its
    right half. `copied` is the share of patches of 8 x 8 pixels that are in the sample pixel for pixel. The
    second table says which way minimises a measure and so is best by it by design.

    Raises `InputError` on an unknown way or setting, on a sample smaller than 32 pixels at `source`, and
    where no way can be taken.
    """
    photo = sample if isinstance(sample, Tensor) else tensors.whole(as_photo(sample))
    tensors.check(photo)
    if len(photo) != 1:
        raise InputError(f"textures takes one sample at a time, not {len(photo)}")
    for name, value in (("size", size), ("source", source), ("width", size if width is None else width)):
        if not SMALLEST <= value <= MOST_TEXTURE:
            raise InputError(f"{name} must be {SMALLEST} to {MOST_TEXTURE} pixels, not {value}")
    chosen = _chosen(ways, settings or {}, model)
    reduced = sample_of(photo, source, SMALLEST).float()
    judged = [*MEASURES, *([] if model is None else [_gram(model)])]
    made: dict[str, tuple[Tensor, float]] = {}
    left_out: dict[str, str] = {}
    with noting() as notes:
        for name in steps(chosen, len(chosen), "textures"):
            common: dict[str, Any] = {"size": size, "source": source, "seed": seed}
            if width is not None:
                common["width"] = width
            begun = time.perf_counter()
            try:
                texture = _made(name, model, reduced, common | dict((settings or {}).get(name, {})))
            except OpsinError as error:
                left_out[name] = str(error)
            else:
                made[name] = texture, time.perf_counter() - begun
    if not made:
        raise InputError("; ".join(left_out.values()))
    arguments = {"size": size, "width": width, "source": source, "seed": seed, "settings": settings or {}}
    record = _record(arguments, model, [*made], notes)
    return _findings(reduced, made, left_out, judged, record)


def _chosen(ways: str | Sequence[str] | None, settings: Settings, model: Model | None) -> list[str]:
    """The ways to take. Raises `InputError` on one that is none, and on settings of others."""
    asked = [ways] if isinstance(ways, str) else list(dict.fromkeys(ways or WAYS))
    for name in asked:
        if name not in WAYS:
            raise unknown("way to make a texture", name, WAYS)
    for name, given in settings.items():
        if name not in asked:
            raise InputError(f"settings for {name}, which is not among the ways: {', '.join(asked)}")
        for key in given:
            if key not in catalogue.declared(name).parameters:
                raise unknown(f"setting of {name}", key, catalogue.declared(name).parameters)
    if model is None and ways is None:
        asked.remove("texture")
    return asked


def _made(name: str, model: Model | None, sample: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """The new texture of one way."""
    about = catalogue.get(name)
    if about.takes_model and model is None:
        raise InputError(f"{name} needs a network: pass a model")
    if extra := [key for key in settings if key not in about.parameters]:
        raise InputError(f"{name} makes squares: leave {extra[0]} out")
    result = about.run(*about.inputs(model, sample), **settings)
    assert isinstance(result, Pictures)
    return result.images


def _gram(model: Model) -> Measure:
    """The distance of Gram matrices, |G - Ĝ|² / |Ĝ|² averaged over the layers that `texture` takes."""
    layers = first_activations(model)

    def distance(one: Tensor, other: Tensor) -> float:
        found = []
        with torch.no_grad(), AveragePooling():
            for image in (one, other):
                run = model.run(image.to(model.device), layers)
                found.append([gram(run.maps(layer)) for layer in layers])
        shares = [(a - b).square().sum() / b.square().sum() for a, b in zip(*found, strict=True)]
        return float(torch.stack(shares).mean())

    about = f"squared distance of {model.name}'s Gram matrices, a share of the sample's, mean over layers"
    return Measure("Gram", about, "texture", distance)


def _findings(
    sample: Tensor,
    made: Mapping[str, tuple[Tensor, float]],
    left_out: Mapping[str, str],
    judged: Sequence[Measure],
    record: Record,
) -> Findings:
    titles = {name: catalogue.declared(name).title for name in made}
    scores: dict[str, dict[str, float]] = {}
    missing: dict[str, str] = {}
    for name, (texture, _) in made.items():
        scores[name] = _scores(judged, texture.float().cpu(), sample.cpu(), missing)
        scores[name][COPIED] = measures.copied(texture, sample)
    left, right = (half.cpu() for half in measures.halves(sample))
    itself = _scores(judged, left, right, {})
    columns = [measure.name for measure in judged if any(measure.name in row for row in scores.values())]
    rows: list[tuple[str | int | float, ...]] = [
        ("the sample, left half beside right", "", *(_short(itself.get(name)) for name in columns), "")
    ]
    for name, row in scores.items():
        values = [_short(row.get(column)) for column in columns]
        rows.append((titles[name], f"{made[name][1]:.1f} s", *values, f"{100 * row[COPIED]:.1f} %"))
    tables = [
        Table("How near each is", ("way", "time", *columns, COPIED), tuple(rows)),
        Table(
            "What is measured",
            ("measure", "what it is", "minimised by", "nearest"),
            tuple(_about(judged, columns, scores, titles)),
        ),
    ]
    if left_out or missing:
        tables.append(Table("Left out", ("way or measure", "why"), (*left_out.items(), *missing.items())))
    shots = [Shot.of("Sample", f"{sample.shape[3]} x {sample.shape[2]}", colour.photo(sample[0]), lead=True)]
    for name, (texture, seconds) in made.items():
        about = f"{name}, {seconds:.1f} s, {100 * scores[name][COPIED]:.0f} % copied"
        shots.append(Shot.of(titles[name], about, colour.photo(texture[0]), lead=True))
    facts = {
        "ways": [{"way": name, "seconds": made[name][1], **scores[name]} for name in made],
        "sample itself": itself,
        "left out": dict(left_out) | missing,
    }
    intro = (
        "New textures of one sample, at the same size and seed. Measures are distances from the sample; its "
        "own row says how far its two halves are from each other. A technique that copies its sample has "
        "small distances by every measure: read them beside the share that is copied pixel for pixel."
    )
    return Findings("Textures side by side", intro, tuple(shots), tuple(tables), facts, record=record)


def _scores(
    judged: Sequence[Measure], one: Tensor, other: Tensor, missing: dict[str, str]
) -> dict[str, float]:
    """The distances that can be measured; why one is `missing`: it needs an extra, or more pixels."""
    found = {}
    for measure in judged:
        try:
            found[measure.name] = measure.distance(one, other)
        except OpsinError as error:
            missing[measure.name] = str(error)
    return found


def _about(
    judged: Sequence[Measure],
    columns: Sequence[str],
    scores: Mapping[str, Mapping[str, float]],
    titles: Mapping[str, str],
) -> list[tuple[str, str, str, str]]:
    """A line for each measure: what it is, which way minimises it, which is nearest."""
    lines = []
    for measure in judged:
        if measure.name not in columns:
            continue
        every = {name: row.get(measure.name, nan) for name, row in scores.items()}
        known = {name: value for name, value in every.items() if isfinite(value)}
        nearest = titles[min(known, key=known.__getitem__)] if known else ""
        by = titles.get(measure.optimised_by, "") if measure.optimised_by else "no technique"
        lines.append((measure.name, measure.about, by or "none of these", nearest))
    about = "share of 8 x 8 patches that are in the sample pixel for pixel; not a distance"
    return [*lines, (COPIED, about, "no technique", "")]


def _short(value: float | None) -> str | float:
    """A number as the table shows it."""
    return "" if value is None or not isfinite(value) else float(f"{value:.{DIGITS}g}")


def _record(
    arguments: Mapping[str, Any], model: Model | None, ways: Sequence[str], notes: Sequence[str]
) -> Record:
    paper = "; ".join(catalogue.declared(name).paper for name in ways)
    facts: dict[str, Any] = {}
    if model is not None:
        facts = {"name": model.name, "sha256": model.weigh().fingerprint, "load": model.loaded}
    return Record("textures", paper, arguments, facts, versions(PACKAGES), tuple(notes))
