"""The commands for folders of photos: scan, neighbours, units, map, mistakes."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from opsin.cli.inputs import open_collection, open_model, open_photos, reopen_model
from opsin.cli.options import DEFAULT_MODEL, OUT, WEIGHTS, check_folder_name, model_option
from opsin.cli.signals import exit_code
from opsin.cli.watch import progress

if TYPE_CHECKING:
    from opsin.collection.store.store import Collection
    from opsin.network.model import Model

MOST_TOLD = 20  # files that could not be read
COLLECTION = click.argument("collection", type=click.Path())
LAYER = click.option("--layer", "-l", default=None, help="Of the collection; by default its first.")
METRIC = click.option(
    "--metric",
    type=click.Choice(["cosine", "euclidean"]),
    default="cosine",
    show_default=True,
    help="Distance.",
)
OWN_MODEL = model_option(None, "By default the collection's own.")


@click.command()
@click.argument("folder", type=click.Path())
@model_option(DEFAULT_MODEL, "")
@WEIGHTS
@click.option(
    "--layer", "-l", "layers", multiple=True, help="May be repeated; by default the classifier's input."
)
@click.option(
    "--labels",
    type=click.Path(),
    default=None,
    help="CSV with the columns path and label, or the word folders, whose names are labels at first; "
    "by default those of the last scan.",
)
@click.option("--top", type=click.IntRange(1), default=9, show_default=True, help="Images kept a channel.")
@click.option(
    "--workers", type=click.IntRange(0), default=None, help="Processes that decode; with ray, networks."
)
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--address", default=None, help="Of a Ray cluster; by default one of this machine is started.")
@click.option(
    "--out",
    "-o",
    "folder_out",
    default="collection",
    show_default=True,
    callback=check_folder_name,
    help="The collection.",
)
def scan(
    folder: str,
    model_name: str,
    weights: str | None,
    layers: tuple[str, ...],
    folder_out: str,
    **settings: Any,
) -> None:
    """Run the network once over every photo below FOLDER and keep what it saw, in a collection.

    FOLDER may be an address that fsspec knows, as s3://bucket/photos. Stopped, the same command goes on;
    run again, it takes in what is new or has changed.
    """
    from opsin.collection.files.source import Source
    from opsin.collection.scan.scanning import scan as run

    Source(folder)  # a wrong one is told before a network is built
    model = open_model(model_name, weights)
    if not model.weigh().finite:
        click.echo("opsin: the network's weights hold NaN or infinite numbers: so may what is kept", err=True)
    try:
        with progress():
            made = run(folder, model, folder_out, layers=layers or None, **settings)
    except KeyboardInterrupt as interrupt:
        click.echo(
            f"opsin: stopped; {len(open_collection(folder_out)):,} images are kept, the same command goes on",
            err=True,
        )
        sys.exit(exit_code(interrupt))
    unread = made.unread()
    for why in list(unread.values())[:MOST_TOLD]:
        click.echo(f"not read: {why}", err=True)
    if len(unread) > MOST_TOLD:
        click.echo(f"and {len(unread) - MOST_TOLD} more, in {made.folder / 'unread.json'}", err=True)
    found = {"labelled": made.labelled(), "not read": len(unread)}
    said = "".join(f", {count:,} {name}" for name, count in found.items() if count)
    click.echo(f"{len(made):,} images in {made.folder}{said}")


@click.command()
@COLLECTION
@click.argument("photos", nargs=-1, type=click.Path())
@OWN_MODEL
@WEIGHTS
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="How many.")
@LAYER
@METRIC
@click.option(
    "--index", is_flag=True, help="Build an index and ask it: faster beyond some millions, not always exact."
)
@OUT
def neighbours(
    collection: str,
    photos: tuple[str, ...],
    model_name: str | None,
    weights: str | None,
    index: bool,
    folder: str | None,
    **settings: Any,
) -> None:
    """The images of COLLECTION nearest to PHOTOS in feature space; without photos, leave-one-out accuracy.

    Without photos each labelled image is given the label that most of its k nearest others have.
    """
    from opsin.collection.ask.neighbours import leave_one_out
    from opsin.collection.ask.neighbours import neighbours as run

    if not photos:
        if index:
            raise click.UsageError("leave-one-out accuracy is exact: --index goes with photos")
        _find(collection, folder or "neighbours", lambda opened: leave_one_out(opened, **settings))
        return
    given = open_photos(photos)

    def find(opened: "Collection") -> Any:
        import torch

        from opsin.images.tensors import fit

        model = _model(opened, model_name, weights)
        images = torch.stack([fit(photo(), model) for _, photo in given])
        return run(model, opened, images, names=[name for name, _ in given], index=index, **settings)

    _find(collection, folder or "neighbours", find)


@click.command()
@COLLECTION
@OWN_MODEL
@WEIGHTS
@LAYER
@click.option(
    "--unit",
    "-u",
    "channels",
    type=click.IntRange(0),
    multiple=True,
    help="A channel; may be repeated. By default all.",
)
@click.option(
    "--projection",
    type=click.Choice(["auto", "deconvnet", "guided", "gradient", "none"]),
    default="auto",
    show_default=True,
    help="How an activation is carried back to the pixels.",
)
@OUT
def units(
    collection: str,
    model_name: str | None,
    weights: str | None,
    channels: tuple[int, ...],
    folder: str | None,
    **settings: Any,
) -> None:
    """The patches of COLLECTION where each channel of a layer fires most, and what in them made it fire."""
    from opsin.collection.ask.units import units as run

    def find(opened: "Collection") -> Any:
        return run(_model(opened, model_name, weights), opened, channels=channels or None, **settings)

    _find(collection, folder or "units", find)


@click.command()
@COLLECTION
@LAYER
@click.option("--method", type=click.Choice(["tsne", "pca"]), default="tsne", show_default=True)
@click.option("--most", type=click.IntRange(2), default=2000, show_default=True, help="Of more, a sample.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@OUT
def map(collection: str, folder: str | None, **settings: Any) -> None:
    """Lay COLLECTION out in two dimensions: a picture of thumbnails, and a page to wander in."""
    from opsin.collection.ask.map import map as run

    _find(collection, folder or "map", lambda opened: run(opened, **settings))


@click.command()
@COLLECTION
@OWN_MODEL
@WEIGHTS
@click.option("--count", type=click.IntRange(0), default=12, show_default=True, help="Errors to show.")
@LAYER
@OUT
def mistakes(
    collection: str, model_name: str | None, weights: str | None, folder: str | None, **settings: Any
) -> None:
    """Where the network goes wrong on COLLECTION's labels: confusions, and the errors it is surest of."""
    from opsin.collection.ask.mistakes import mistakes as run

    def find(opened: "Collection") -> Any:
        return run(_model(opened, model_name, weights), opened, **settings)

    _find(collection, folder or "mistakes", find)


COMMANDS = (scan, neighbours, units, map, mistakes)


def _model(collection: "Collection", name: str | None, weights: str | None) -> "Model":
    return reopen_model(collection.about.model, name, weights, str(collection.folder))


def _find(collection: str, place: str, find: "Callable[[Collection], Any]") -> None:
    """Write what is found in a collection, and tell where its page is."""
    from opsin.base.folders import PAGE, writing

    opened = open_collection(collection)
    with writing(place) as fresh:
        with progress(iterative=False):
            found = find(opened)
        found.write_into(fresh)
    click.echo(Path(place) / PAGE)
