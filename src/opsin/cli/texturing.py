"""The command that makes textures of a sample by every technique."""

from pathlib import Path

import click

from opsin.base.choices import MOST_TEXTURE
from opsin.cli.explaining import SET, read_settings
from opsin.cli.inputs import open_model, open_photos
from opsin.cli.options import OUT, Once, model_option, weights_options
from opsin.cli.tables import print_tables
from opsin.cli.watch import progress

PIXELS = click.IntRange(32, MOST_TEXTURE)


@click.command()
@click.argument("sample", type=click.Path())
@click.option(
    "--size", cls=Once, type=PIXELS, default=128, show_default=True, help="Height of the textures, pixels."
)
@click.option(
    "--width",
    cls=Once,
    type=PIXELS,
    default=None,
    help="Width of the textures, pixels; by default the height.",
)
@click.option(
    "--source",
    cls=Once,
    type=PIXELS,
    default=128,
    show_default=True,
    help="Longer side that the sample is reduced to, pixels.",
)
@click.option("--way", "ways", multiple=True, help="Technique to use; may be repeated. By default all.")
@SET
@click.option(
    "--seed",
    cls=Once,
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Random seed of every technique.",
)
@click.option(
    "--no-network", is_flag=True, help="Leave out what needs a network: texture, and the Gram measure."
)
@model_option("vgg16_features", "")
@weights_options("size")
@OUT
def textures(
    sample: str,
    size: int,
    width: int | None,
    source: int,
    ways: tuple[str, ...],
    settings: tuple[str, ...],
    seed: int,
    no_network: bool,
    model_name: str,
    weights: str | None,
    folder: str | None,
) -> None:
    """Make new textures of SAMPLE by every technique, side by side on one page, and measure them."""
    from opsin.base.folders import PAGE, writing
    from opsin.pages.textures import textures as run

    given = read_settings(settings)
    place = folder or "textures"
    with writing(place) as fresh, progress(iterative=False):
        opened = open_photos((sample,))
        if len(opened) != 1:
            raise click.UsageError(f"{sample} holds {len(opened)} photos: name one sample")
        ((_, photo),) = opened
        model = None if no_network else open_model(model_name, weights)
        found = run(
            photo(),
            model,
            size=size,
            width=width,
            source=source,
            ways=[way.replace("-", "_") for way in ways] or None,
            settings=given,
            seed=seed,
        )
        found.write_into(fresh)
    print_tables(found.tables, place)
    click.echo(Path(place) / PAGE)
