"""The commands that ask something of a collection: neighbours, units, map, mistakes."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from opsin.cli.inputs import open_collection, open_photos, reopen_model
from opsin.cli.options import COLLECTION, JSON, OUT, WEIGHTS, given_settings, model_option
from opsin.cli.scanning import export, scan
from opsin.cli.tables import of_findings, of_neighbours, of_units, print_json, print_tables
from opsin.cli.watch import progress

if TYPE_CHECKING:
    from opsin.collection.store.store import Collection
    from opsin.network.model import Model
    from opsin.results.findings import Table

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
@JSON
def neighbours(
    collection: str,
    photos: tuple[str, ...],
    model_name: str | None,
    weights: str | None,
    index: bool,
    folder: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """The images of COLLECTION nearest to PHOTOS in feature space; without photos, leave-one-out accuracy.

    Leave-one-out gives each labelled image the label that most of its k nearest neighbours have.
    """
    from opsin.collection.ask.neighbours import leave_one_out
    from opsin.collection.ask.neighbours import neighbours as run

    if not photos:
        if weights or given_settings():
            raise click.UsageError(
                "weights go with photos: leave-one-out accuracy, without them, takes the features that the "
                "collection holds"
            )
        if index:
            raise click.UsageError(
                "--index goes with photos: leave-one-out accuracy, without them, is always exact"
            )
        place = folder or "neighbours"
        _find(collection, place, lambda opened: leave_one_out(opened, **settings), of_findings, as_json)
        return
    given = open_photos(photos)

    def find(opened: "Collection") -> Any:
        import torch

        from opsin.images.tensors import fit

        model = _model(opened, model_name, weights)
        images = torch.stack([fit(photo(), model) for _, photo in given])
        return run(model, opened, images, names=[name for name, _ in given], index=index, **settings)

    _find(collection, folder or "neighbours", find, of_neighbours, as_json)


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
@click.option(
    "--inside",
    is_flag=True,
    help="Leave out positions that see beyond the picture's edge; this runs the network again.",
)
@OUT
@JSON
def units(
    collection: str,
    model_name: str | None,
    weights: str | None,
    channels: tuple[int, ...],
    folder: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """The patches of COLLECTION where each channel of a layer fires most, and what in them made it fire."""
    from opsin.collection.ask.units import units as run

    def find(opened: "Collection") -> Any:
        return run(_model(opened, model_name, weights), opened, channels=channels or None, **settings)

    _find(collection, folder or "units", find, of_units, as_json)


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
@JSON
def mistakes(
    collection: str,
    model_name: str | None,
    weights: str | None,
    folder: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Where the network goes wrong on COLLECTION's labels: confusions, and its most confident errors."""
    from opsin.collection.ask.mistakes import mistakes as run

    def find(opened: "Collection") -> Any:
        return run(_model(opened, model_name, weights), opened, **settings)

    _find(collection, folder or "mistakes", find, of_findings, as_json)


COMMANDS = (scan, neighbours, units, map, mistakes, export)


def _model(collection: "Collection", name: str | None, weights: str | None) -> "Model":
    return reopen_model(collection.about.model, name, weights, str(collection.folder))


def _find(
    collection: str,
    place: str,
    find: "Callable[[Collection], Any]",
    tables: "Callable[[Any], Iterable[Table]] | None" = None,
    as_json: bool = False,
) -> None:
    """Write what is found in a collection; print its tables and where its page is, or its facts alone."""
    from opsin.base.folders import PAGE, writing

    opened = open_collection(collection)
    with writing(place) as fresh:
        with progress(iterative=False):
            found = find(opened)
        found.write_into(fresh)
    if as_json:
        print_json(found.facts)
        return
    if tables is not None:
        print_tables(tables(found), place)
    click.echo(Path(place) / PAGE)
