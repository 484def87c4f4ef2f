"""Where a network goes wrong on a collection with labels."""

from collections import Counter
from pathlib import Path

import torch

from opsin.base.errors import InputError, at_least
from opsin.base.job import CAUTION, note, noting, steps
from opsin.collection.ask.search import nearest
from opsin.collection.ask.wording import counted, record, seen_as
from opsin.collection.store import truth
from opsin.collection.store.about import damaged
from opsin.collection.store.store import Collection, opened
from opsin.collection.store.tables import IMAGES
from opsin.network.model import Model
from opsin.registry.catalogue import get
from opsin.results.findings import Findings, Shot, Table

PAPER = "Selvaraju et al.: Grad-CAM, 2017 (arXiv:1610.02391), section 6.1: analysing failure modes"
MOST_ROWS = 25  # in the table of confusions
MATRIX = 20  # classes up to which the whole confusion matrix is shown
NEAREST = 4


def mistakes(
    model: Model, collection: Collection | str | Path, *, count: int = 12, layer: str | None = None
) -> Findings:
    """Accuracy, confusions and the most confident errors on a collection's labelled images.

    An image is an error if its most probable class is not its label's class. The `count` errors of highest
    probability are shown with Grad-CAM for the label's class and the predicted class, and with the nearest
    images in the features of `layer`.

    A label is a class's name, one of its synonyms, its index, or its WordNet number. Raises `InputError`
    if no label names a class, and on a collection of another network.
    """
    collection = opened(collection)
    collection.check(model)
    at_least(0, count=count)
    layer = collection.about.layers[collection.layer(layer)].name
    with noting() as notes:
        truth = truths(collection, model)
        confusion, right, errors = Counter[tuple[int, int]](), Counter[str](), list[tuple[float, int]]()
        for id, classes, probabilities in collection.seen():
            if classes and model.classes is not None and classes[0] >= model.classes:
                raise damaged(collection.folder, f"{IMAGES}: class {classes[0]} of {model.classes}")
            if id in truth and classes:
                confusion[truth[id], classes[0]] += 1
                right["top-1"] += classes[0] == truth[id]
                right["top-5"] += truth[id] in classes
                if classes[0] != truth[id]:
                    errors.append((probabilities[0], id))
        errors = sorted(errors, key=lambda error: (-error[0], error[1]))[:count]
        total = sum(confusion.values())
        if not total:
            raise InputError(f"no image of {collection.folder} has both a label and a class")
        shots = _shown(model, collection, layer, truth, [id for _, id in errors])
    accuracy = {name: right[name] / total for name in ("top-1", "top-5")}
    wrong = [(pair, n) for pair, n in confusion.most_common() if pair[0] != pair[1]]
    settings = {"count": count, "layer": layer}
    facts = {
        **settings,
        "images": total,
        **accuracy,
        "confusions": [
            {"label": model.label(a), "seen as": model.label(b), "images": n} for (a, b), n in wrong
        ],
    }
    result_record = record(collection, "mistakes", PAPER, settings, notes)
    return Findings(
        f"Right on {accuracy['top-1']:.1%} of {counted(total, 'image')}",
        f"The label is among the five most probable classes on {accuracy['top-5']:.1%}. Below, what is "
        f"confused with what, and the most confident errors, with the nearest images at {layer}.",
        tuple(shots),
        tuple(_tables(model, confusion, wrong)),
        facts,
        record=result_record,
    )


def truths(collection: Collection, model: Model) -> dict[int, int]:
    """The class that each image's label names, by id. Notes the labels that name none."""
    labels = collection.labels()
    if not labels:
        raise InputError(
            f"{collection.folder} has no labels: scan with --labels, or put photos in folders by class"
        )
    known = {label: truth.truth(label, model.labels or ()) for label in set(labels.values())}
    if model.classes is not None:
        known = {label: None if i is None or i >= model.classes else i for label, i in known.items()}
    unknown = sorted(label for label, index in known.items() if index is None)
    if len(unknown) == len(known):
        raise InputError(
            f"none of the labels is a class of {model.name}: {', '.join(map(repr, unknown[:5]))}"
        )
    if unknown:
        note(f"{CAUTION}ignored labels that name no class: {', '.join(map(repr, unknown[:20]))}")
    return {id: index for id, label in labels.items() if (index := known[label]) is not None}


def _tables(
    model: Model, confusion: Counter[tuple[int, int]], wrong: list[tuple[tuple[int, int], int]]
) -> list[Table]:
    classes = sorted({label for pair in confusion for label in pair})
    totals = Counter[int]()
    for (label, _), n in confusion.items():
        totals[label] += n
    rows = tuple(
        (model.label(a), model.label(b), n, f"{n / totals[a]:.0%}") for (a, b), n in wrong[:MOST_ROWS]
    )
    columns = ("label", "seen as", "images", "of the label's")
    tables = [Table("What is confused with what", columns, rows)] if wrong else []
    if len(classes) <= MATRIX:
        matrix: tuple[tuple[str | int | float, ...], ...] = tuple(
            (model.label(a), *(confusion[a, b] for b in classes)) for a in classes
        )
        tables.append(
            Table("Labels (rows) and what they are seen as", ("", *map(model.label, classes)), matrix)
        )
    return tables


def _shown(
    model: Model, collection: Collection, layer: str, truth: dict[int, int], ids: list[int]
) -> list[Shot]:
    """Shots of each error: its maps and its nearest images."""
    rows = collection.with_ids(ids)
    order = collection.ids().tolist()
    shots = []
    for id in steps([id for id in ids if id in rows], len(rows), "mistakes"):
        row, row_index = rows[id], order.index(id)
        title = f"{row.name}: {model.label(truth[id])}"
        try:
            photo = collection.photo(row, model)[None]
        except InputError as error:
            note(f"{CAUTION}{error}")
            continue
        for target, reason in (
            (truth[id], "why it could be the label"),
            (row.classes[0], "why it is seen as"),
        ):
            ((_, picture),) = get("grad_cam").run(model, photo, target=target).pictures()
            name = model.label(target)
            chance = f", {row.probabilities[0]:.0%}" if target == row.classes[0] else ""
            shots.append(Shot.of(title, f"{reason} {name}{chance}", picture, lead=True))
        near = nearest(
            collection, torch.from_numpy(collection.features(layer, [row_index])), NEAREST + 1, layer=layer
        )
        others = [index for index in near.rows[0].tolist() if index not in (row_index, -1)][:NEAREST]
        for other in collection.rows(others):
            shots.append(Shot(title, f"nearby: {seen_as(collection, other)}", other.thumbnail))
    return shots
