"""The commands for folders of photos: scan, neighbours, units, map, mistakes."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from opsin.cli.inputs import open_collection, open_model, open_photos, reopen_model
from opsin.cli.options import (
    DEFAULT_MODEL,
    OUT,
    WEIGHTS,
    check_folder_name,
    given_settings,
    model_option,
    weights_options,
)
from opsin.cli.signals import exit_code
from opsin.cli.watch import progress

if TYPE_CHECKING:
    from opsin.collection.store.store import Collection
    from opsin.network.model import Model

MOST_TOLD = 20  # files that could not be read
COLLECTION = click.argument("collection", type=click.Path())
LAYER = click.option("--layer", "-l", default=None, help="Layer of the collection; by default its first one.")
METRIC = click.option(
    "--metric",
    type=click.Choice(["cosine", "euclidean"]),
    default="cosine",
    show_default=True,
    help="Distance between features.",
)
OWN_MODEL = model_option(None, "By default the collection's own network.")


@click.command()
@click.argument("folder", type=click.Path())
@model_option(DEFAULT_MODEL, "")
@weights_options("labels")
@click.option(
    "--layer",
    "-l",
    "layers",
    multiple=True,
    help="Layer to keep features of; may be repeated. By default the classifier's input.",
)
@click.option(
    "--labels",
    type=click.Path(),
    default=None,
    help="CSV file with the columns path and label, or `folders` to use the folders' names. By default the "
    "first scan takes the folders' names; later ones keep the labels they find.",
)
@click.option(
    "--top",
    type=click.IntRange(1),
    default=9,
    show_default=True,
    help="Number of top images to keep per channel.",
)
@click.option(
    "--workers",
    type=click.IntRange(0),
    default=None,
    help="Decoding processes (local), or copies of the network (ray).",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where the network runs.",
)
@click.option(
    "--address", default=None, help="Address of a Ray cluster; by default one is started on this machine."
)
@click.option(
    "--out",
    "-o",
    "folder_out",
    default="collection",
    show_default=True,
    callback=check_folder_name,
    help="Folder of the collection.",
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

    FOLDER may be an address that fsspec knows, such as s3://bucket/photos. Run the same command again to
    resume a scan that was stopped, or to add new and changed files.
    """
    from opsin.collection.files.source import Source
    from opsin.collection.scan.scanning import scan as run

    Source(folder)  # fail on a bad folder before loading the network
    model = open_model(model_name, weights)
    if not model.weigh().finite:
        click.echo(
            "opsin: the network's weights hold NaN or infinite numbers, so the collection may too", err=True
        )
    try:
        with progress():
            made = run(folder, model, folder_out, layers=layers or None, **settings)
    except KeyboardInterrupt as interrupt:
        kept = len(open_collection(folder_out))
        click.echo(f"opsin: stopped; {kept:,} images are kept; run the command again to go on", err=True)
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
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="Number of neighbours.")
@LAYER
@METRIC
@click.option(
    "--index",
    is_flag=True,
    help="Search an approximate index: faster beyond some million images, not always exact.",
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

    Leave-one-out gives each labelled image the label that most of its k nearest neighbours have.
    """
    from opsin.collection.ask.neighbours import leave_one_out
    from opsin.collection.ask.neighbours import neighbours as run

    if not photos:
        if model_name or weights or given_settings():
            raise click.UsageError(
                "a network goes with photos: leave-one-out accuracy, without them, takes the features that "
                "the collection holds"
            )
        if index:
            raise click.UsageError(
                "--index goes with photos: leave-one-out accuracy, without them, is always exact"
            )
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
    help="Channel; may be repeated. By default all channels.",
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
@click.option(
    "--method",
    type=click.Choice(["tsne", "pca"]),
    default="tsne",
    show_default=True,
    help="Projection to the plane.",
)
@click.option(
    "--most",
    type=click.IntRange(2),
    default=2000,
    show_default=True,
    help="Largest number of images; a larger collection is sampled.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Random seed.")
@OUT
def map(collection: str, folder: str | None, **settings: Any) -> None:
    """Lay COLLECTION out in two dimensions: a picture of thumbnails, and a page to explore it."""
    from opsin.collection.ask.map import map as run

    _find(collection, folder or "map", lambda opened: run(opened, **settings))


@click.command()
@COLLECTION
@OWN_MODEL
@WEIGHTS
@click.option(
    "--count", type=click.IntRange(0), default=12, show_default=True, help="Number of errors to show."
)
@LAYER
@OUT
def mistakes(
    collection: str, model_name: str | None, weights: str | None, folder: str | None, **settings: Any
) -> None:
    """Where the network goes wrong on COLLECTION's labels: confusions, and its most confident errors."""
    from opsin.collection.ask.mistakes import mistakes as run

    def find(opened: "Collection") -> Any:
        return run(_model(opened, model_name, weights), opened, **settings)

    _find(collection, folder or "mistakes", find)


COMMANDS = (scan, neighbours, units, map, mistakes)


def _model(collection: "Collection", name: str | None, weights: str | None) -> "Model":
    return reopen_model(collection.about.model, name, weights, str(collection.folder))


def _find(collection: str, place: str, find: "Callable[[Collection], Any]") -> None:
    """Write what is found in a collection, and print where its page is."""
    from opsin.base.folders import PAGE, writing

    opened = open_collection(collection)
    with writing(place) as fresh:
        with progress(iterative=False):
            found = find(opened)
        found.write_into(fresh)
    click.echo(Path(place) / PAGE)
