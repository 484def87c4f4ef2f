"""The images that look alike to a network."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.errors import InputError, at_least
from opsin.base.headings import headings
from opsin.base.job import noting, tell
from opsin.collection.ask.approximate import Metric
from opsin.collection.ask.coarse import QUERIES
from opsin.collection.ask.search import nearest
from opsin.collection.ask.wording import counted, record, seen_as
from opsin.collection.store.store import Collection, opened
from opsin.images import colour, tensors
from opsin.network.batches import chunks, pooled
from opsin.network.model import Model
from opsin.results.findings import Findings, Shot, Table

PAPER = "Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep CNNs, 2012 (figure 4)"
KNN_PAPER = "Cover, Hart: Nearest Neighbor Pattern Classification, 1967"
MOST_SHOWN = 20  # labels whose accuracy the page lists


def neighbours(
    model: Model,
    collection: Collection | str | Path,
    photos: Float[Tensor, "n 3 h w"],
    *,
    k: int = 10,
    layer: str | None = None,
    metric: Metric = "cosine",
    index: bool = False,
    names: Sequence[str] | None = None,
) -> Findings:
    """The images of a collection nearest to photos in a layer's pooled features f (mean over positions).

    The distance is 1 - cos(f, f') or |f - f'|. The search is exact unless `index` is set, or the features do
    not fit into memory. `layer` defaults to the collection's first. `names` are the photos' headings.

    Raises `InputError` on a collection of another network, layer or preprocessing.
    """
    collection = opened(collection)
    collection.check(model)
    tensors.check(photos)
    at_least(1, k=k)
    layer = collection.about.layers[collection.layer(layer)].name
    titles = headings(names or [f"photo {i}" for i in range(len(photos))])
    if len(titles) != len(photos):
        raise InputError(f"{len(titles)} names for {len(photos)} photos: give one name per photo")
    with noting() as notes:
        nearest_rows = nearest(
            collection, pooled(model, photos, layer), k, layer=layer, metric=metric, index=index
        )
    shots, facts = [], []
    for title, photo, row_indices, distances in zip(
        titles, photos, nearest_rows.rows, nearest_rows.distances, strict=True
    ):
        shots.append(Shot.of(title, "the photo", colour.photo(photo), lead=True))
        valid = row_indices[row_indices >= 0].tolist()
        rows = collection.rows(valid)
        listed = []
        for rank, (row, distance) in enumerate(zip(rows, distances.tolist(), strict=False), 1):
            shots.append(
                Shot(title, f"{distance:.3f}  {row.name}  {seen_as(collection, row)}", row.thumbnail)
            )
            prediction = collection.label(row.classes[0]) if row.classes else None
            listed.append(
                {"rank": rank, "path": row.name, "distance": distance, "label": row.label}
                | {"label_name": collection.named(row.label) if row.label else None, "class": prediction}
            )
        facts.append({"photo": title, "neighbours": listed})
    settings = {"k": k, "layer": layer, "metric": metric, "index": index}
    return Findings(
        f"Nearest to {titles[0]}" if len(titles) == 1 else f"Nearest to {len(titles)} photos",
        f"The nearest of {counted(len(collection), 'image')} by the {metric} distance of their features "
        f"at {layer}.",
        tuple(shots),
        facts={**settings, "photos": facts},
        record=record(collection, "neighbours", PAPER, settings, notes),
    )


def leave_one_out(
    collection: Collection | str | Path, *, k: int = 10, layer: str | None = None, metric: Metric = "cosine"
) -> Findings:
    """How often the most frequent label among an image's k nearest others is its own (leave-one-out k-NN).

    Ties go to the label of the nearest image. Images without a label are left out.

    Raises `InputError` if fewer than two images have a label.
    """
    at_least(1, k=k)
    collection = opened(collection)
    layer = collection.about.layers[collection.layer(layer)].name
    labels, ids = collection.labels(), collection.ids().tolist()
    row_labels = [labels.get(id) for id in ids]
    rows = [row for row, label in enumerate(row_labels) if label is not None]
    if len(rows) < 2:
        raise InputError(
            f"{len(rows)} of {len(row_labels)} images have a label in {collection.folder}: "
            "see `opsin scan --labels`"
        )
    values = torch.from_numpy(collection.features(layer))
    votes = {}
    with noting() as notes:
        for part in chunks(len(rows), QUERIES):
            tell("leave one out", part.start, len(rows))
            for row, members in _others(collection, values, rows[part], row_labels, k, layer, metric).items():
                counts = Counter(row_labels[member] for member in members)
                if members:  # features that hold NaN have no neighbours
                    votes[row] = max(
                        members, key=lambda member: counts[row_labels[member]]
                    )  # ties: the nearest
    right = Counter(
        str(row_labels[row]) for row, chosen in votes.items() if row_labels[chosen] == row_labels[row]
    )
    totals = Counter(str(row_labels[row]) for row in rows)
    accuracy = sum(right.values()) / len(rows)
    worst = sorted(totals, key=lambda label: (right[label] / totals[label], -totals[label], label))[
        :MOST_SHOWN
    ]
    table = Table(
        "The labels that are found worst",
        ("label", "images", "found"),
        tuple(
            (collection.named(label), totals[label], f"{right[label] / totals[label]:.0%}") for label in worst
        ),
    )
    settings = {"k": k, "layer": layer, "metric": metric}
    return Findings(
        f"{accuracy:.1%} of labels are their neighbours'",
        f"Each of {counted(len(rows), 'labelled image')} gets the "
        f"{'label of its nearest other' if k == 1 else f'most frequent label of its {k:,} nearest others'}, "
        f"by the {metric} distance of their features at {layer}.",
        (),
        (table,),
        facts={**settings, "images": len(rows), "accuracy": accuracy},
        record=record(collection, "leave_one_out", KNN_PAPER, settings, notes),
    )


def _others(
    collection: Collection,
    values: Float[Tensor, "n d"],
    rows: Sequence[int],
    labels: Sequence[str | None],
    k: int,
    layer: str,
    metric: Metric,
) -> dict[int, list[int]]:
    """The k nearest labelled others of each row; the search widens until k of them have a label."""
    others: dict[int, list[int]] = {}
    todo, wanted = list(rows), k + 1
    while todo:
        near = nearest(collection, values[todo], wanted, layer=layer, metric=metric).rows.tolist()
        for row, row_indices in zip(todo, near, strict=True):
            others[row] = [p for p in row_indices if p not in (row, -1) and labels[p] is not None][:k]
        todo = [row for row in todo if len(others[row]) < k and wanted < len(labels)]
        wanted *= 2
    return others
