"""The command that measures how accuracy falls under attack."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from typing_extensions import TypedDict

from opsin.base.errors import InputError
from opsin.cli import completion as complete
from opsin.cli.inputs import is_collection, open_collection, open_model
from opsin.cli.options import JSON, OUT, Once, weights_options
from opsin.cli.tables import print_json
from opsin.cli.watch import progress

if TYPE_CHECKING:
    from torch import Tensor

    from opsin.network.model import Model

PART = ".part.json"  # behind the name of the output folder: what is done so far


class Part(TypedDict):
    """What is done so far of an evaluation, and of which."""

    fingerprint: str
    cells: dict[str, list[bool]]


@click.command()
@click.argument("model_name", metavar="MODEL", shell_complete=complete.models)
@click.argument("photos", type=click.Path())
@weights_options("labels")
@click.option(
    "--labels",
    "table",
    cls=Once,
    type=click.Path(),
    default=None,
    help="CSV file with the columns path and label; by default the names of the photos' folders, of a "
    "collection its own labels.",
)
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    help="Attack to make; may be repeated. By default random_noise, fgsm, pgd and square.",
)
@click.option(
    "--epsilon",
    "epsilons",
    multiple=True,
    help="Largest change of a colour value; may be repeated. By default 1/255, 2/255, 4/255 and 8/255.",
)
@click.option(
    "--defence",
    "defences",
    multiple=True,
    metavar="DEFENCE",
    help="Defence on the input; may be repeated: blur, median, jpeg or total_variation, noise=0.1,samples=8, "
    "or both with commas, with strength=N.",
)
@click.option(
    "--steps",
    cls=Once,
    type=click.IntRange(1),
    default=None,
    help="Steps of every attack that takes some; by default each attack's own number.",
)
@click.option(
    "--count",
    cls=Once,
    type=click.IntRange(1),
    default=None,
    help="At most so many photos, spread evenly; by default all.",
)
@JSON
@OUT
def robustness(
    model_name: str,
    photos: str,
    weights: str | None,
    table: str | None,
    attacks: tuple[str, ...],
    epsilons: tuple[str, ...],
    defences: tuple[str, ...],
    steps: int | None,
    count: int | None,
    as_json: bool,
    folder: str | None,
) -> None:
    """Measure how the accuracy of MODEL on PHOTOS falls under attacks, with and without defences.

    PHOTOS is a folder with one folder for each class, or a collection. The same command goes on where it was
    ended.
    """
    import torch

    from opsin.base.folders import PAGE, writing
    from opsin.pages.protocol import DEFAULT
    from opsin.pages.robustness import RADII, fingerprint
    from opsin.pages.robustness import robustness as run

    place = folder or "robustness"
    with writing(place) as fresh, progress(iterative=False):
        model = open_model(model_name, weights)
        pictures, labels = _labelled(model, photos, table, count)
        images = torch.stack(pictures)
        own = fingerprint(model, images, labels, steps)
        part = Path(f"{place.rstrip('/')}{PART}")
        report = run(
            model,
            images,
            labels,
            attacks=attacks or DEFAULT,
            epsilons=epsilons or RADII,
            defences=defences,
            steps_each=steps,
            known=_known(part, own),
            keep=lambda cells: _keep(part, own, cells),
        )
        report.write_into(fresh)
    part.unlink(missing_ok=True)
    if as_json:
        print_json(report.facts())
        return
    for name, cells in report.rows():
        click.echo(f"{name}: {', '.join(cells)}")
    for text in report.cautions:
        click.echo(f"opsin: caution: {text}", err=True)
    click.echo(Path(place) / PAGE)


def _known(part: Path, own: str) -> Mapping[str, Sequence[bool]]:
    """What an earlier command of the same evaluation has done; nothing of another one."""
    from opsin.base.records import read_json

    if not part.exists():
        return {}
    found = read_json(part, Part)
    if found["fingerprint"] != own:
        click.echo(f"opsin: {part} belongs to another evaluation and is replaced", err=True)
        return {}
    return found["cells"]


def _keep(part: Path, own: str, cells: dict[str, list[bool]]) -> None:
    from opsin.base.records import as_json
    from opsin.base.replacing import replacing

    with replacing([part], overwrite=True) as (fresh,):
        fresh.write_text(as_json({"fingerprint": own, "cells": cells}), "utf-8")


def _labelled(
    model: "Model", photos: str, table: str | None, count: int | None
) -> "tuple[list[Tensor], list[int]]":
    """The photos whose label names a class, and the classes.

    Raises `InputError` if there are none.
    """
    from opsin.results.gallery import spread

    if is_collection(photos):
        from opsin.collection.ask.mistakes import truths

        if table is not None:
            raise click.UsageError("a collection has its own labels: give --labels to `opsin scan`")
        collection = open_collection(photos)
        classes = truths(collection, model)
        rows = list(collection.with_ids(sorted(classes)).values())
        chosen = spread(rows, count or len(rows))
        return [collection.photo(row, model) for row in chosen], [classes[row.id] for row in chosen]

    from opsin.collection.files.labels import label, read_labels
    from opsin.collection.files.source import Source
    from opsin.collection.store.truth import truth
    from opsin.images.photos import decoded
    from opsin.images.tensors import fit

    source = Source(photos)
    named = None if table is None else read_labels(Path(table), source.root)
    texts = {entry.path: label(entry, named) for entry in source.entries()}
    found = {path: truth(text, model.labels or ()) for path, text in texts.items() if text}
    known = [path for path, index in found.items() if index is not None]
    if not known:
        told = ", ".join(map(repr, list(dict.fromkeys(t for t in texts.values() if t))[:5])) or "none"
        raise InputError(
            f"no photo of {photos} has a label that is a class of {model.name} (labels: {told}): "
            "put photos into folders named after their classes, or give --labels FILE.csv"
        )
    if len(known) < len(texts):
        click.echo(f"opsin: {len(texts) - len(known)} photos without a label are left out", err=True)
    chosen_paths = spread(known, count or len(known))
    pictures = [fit(decoded(source.read(path), path), model) for path in chosen_paths]
    return pictures, [index for path in chosen_paths if (index := found[path]) is not None]
