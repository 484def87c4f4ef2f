"""The commands that make a collection of photos, and that write one into files for other programs."""

import sys
from typing import Any

import click

from opsin.base.choices import DEFAULT_NETWORK
from opsin.cli.inputs import open_collection, open_model
from opsin.cli.options import COLLECTION, JSON, check_folder_name, model_option, weights_options
from opsin.cli.signals import exit_code
from opsin.cli.tables import print_json
from opsin.cli.watch import progress

MOST_TOLD = 20  # files that could not be read


@click.command()
@click.argument("folder", type=click.Path())
@model_option(DEFAULT_NETWORK, "")
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
@JSON
def scan(
    folder: str,
    model_name: str,
    weights: str | None,
    layers: tuple[str, ...],
    folder_out: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Run the network once over every photo below FOLDER and keep what it saw, in a collection.

    FOLDER may be an address that fsspec knows, such as s3://bucket/photos. Run the same command again to
    resume a scan that was stopped, or to add new and changed files.
    """
    from opsin.collection.ask.wording import counted
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
        is_kept = f"{counted(kept, 'image')} {'is' if kept == 1 else 'are'} kept"
        click.echo(f"opsin: stopped; {is_kept}; run the command again to go on", err=True)
        sys.exit(exit_code(interrupt))
    unread = made.unread()
    for why in list(unread.values())[:MOST_TOLD]:
        click.echo(f"not read: {why}", err=True)
    if len(unread) > MOST_TOLD:
        click.echo(f"and {len(unread) - MOST_TOLD} more, in {made.folder / 'unread.json'}", err=True)
    counts = {"labelled": made.labelled(), "not read": len(unread)}
    if as_json:
        facts = {"collection": str(made.folder), "images": len(made), "labelled": counts["labelled"]}
        print_json({**facts, "unread": unread})
        return
    said = "".join(f", {count:,} {name}" for name, count in counts.items() if count)
    click.echo(f"{counted(len(made), 'image')} in {made.folder}{said}")


@click.command()
@COLLECTION
@click.argument("out", type=click.Path())
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@JSON
def export(collection: str, out: str, overwrite: bool, as_json: bool) -> None:
    """Write COLLECTION into OUT, for other programs: its suffix is .parquet, .csv or .npz.

    One row per image: path, width, height, sha256; label, with label_class and label_name, the class that it
    names; class_1 to class_5, class_name_1 to class_name_5 and probability_1 to probability_5, the most
    probable classes; features/LAYER, the features (in a CSV a column per channel, features/LAYER:CHANNEL).

    The tallies are in a second file (OUT-tallies), one row per place where a channel fires most: layer,
    channel, mean, deviation, sparsity; rank, value, path, row, column. An .npz holds both, as arrays.

    In a CSV, text that a spreadsheet may take for a formula (it begins with = + - @, a tab or a line's end)
    begins with an apostrophe.
    """
    opened = open_collection(collection)
    with progress(iterative=False):
        written = opened.export(out, overwrite=overwrite)
    if as_json:
        print_json({"files": [str(path) for path in written], "images": len(opened)})
        return
    for path in written:
        click.echo(path)
