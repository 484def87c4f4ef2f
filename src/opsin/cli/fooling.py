"""The command that fools a network on photos."""

import sys
from pathlib import Path

import click

from opsin.base.choices import DEFAULT_NETWORK
from opsin.cli import completion as complete
from opsin.cli.from_registry import OFFERED
from opsin.cli.inputs import default_model, open_photos
from opsin.cli.options import OUT, PHOTOS, WEIGHTS, Once, model_option
from opsin.cli.watch import progress

CLASSES, SEVERAL = OFFERED["classes"]  # behind TAB, and how several are given


@click.command()
@PHOTOS
@model_option(DEFAULT_NETWORK)
@WEIGHTS
@click.option(
    "--epsilon",
    cls=Once,
    default="4/255",
    show_default=True,
    help="Largest change of a colour value: a number from 0 to 1, or such as 8/255.",
)
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    help="Attack to make; may be repeated. By default all that take single photos.",
    shell_complete=complete.techniques,
)
@click.option(
    "--label",
    "-l",
    cls=Once,
    hint=SEVERAL,
    default=None,
    help="True class, by default what the network sees.",
    shell_complete=CLASSES,
)
@click.option(
    "--towards",
    "-t",
    cls=Once,
    hint=SEVERAL,
    default=None,
    help="Class that the photo shall be taken for, by default any other.",
    shell_complete=CLASSES,
)
@click.option(
    "--maps",
    cls=Once,
    default="",
    help="Techniques whose maps are shown before and after, with commas: grad_cam,guided_backprop.",
    shell_complete=complete.techniques,
)
@OUT
def fool(
    photos: tuple[str, ...],
    model_name: str,
    weights: str | None,
    epsilon: str,
    attacks: tuple[str, ...],
    label: str | None,
    towards: str | None,
    maps: str,
    folder: str | None,
) -> None:
    """Fool the network on photos, on one page: every attack beside noise of the same size.

    PHOTOS are files, folders and collections; - is a photo on the standard input.
    """
    from opsin.base.folders import PAGE, writing
    from opsin.pages.fooling import fool as run

    place, asked = folder or "fool", [name.replace("-", "_") for name in attacks]
    with writing(place) as fresh, progress(iterative=False):
        found = open_photos(photos)
        model = default_model(model_name, weights, photos)
        given = {"epsilon": epsilon, "attacks": asked or None, "label": label, "towards": towards}
        pictures = [photo() for _, photo in found]
        report = run(model, pictures, maps=maps or (), names=[name for name, _ in found], **given)  # type: ignore[arg-type]
        report.write_into(fresh)
    click.echo(Path(place) / PAGE)
    for name, why in report.left_out:
        click.echo(f"opsin: left out: {name}: {why}", err=True)
    if any(name in asked for name, _ in report.left_out):
        sys.exit(1)
