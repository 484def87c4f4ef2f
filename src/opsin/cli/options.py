"""Options that several commands have."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from opsin.cli.output import ANIMATIONS

EVERY = click.option(
    "--every",
    type=click.IntRange(1),
    default=None,
    help="Save an animation with one frame every N steps.",
)
ANIMATION = click.option(
    "--animation",
    type=click.Choice(ANIMATIONS),
    default="webp",
    show_default=True,
    help="File format of animations.",
)


Command = TypeVar("Command", bound=Callable[..., Any] | click.Command)
PHOTOS = click.argument("photos", nargs=-1, required=True, type=click.Path())
MODEL_HELP = (
    "Network: a zoo name, timm:NAME, torchvision:NAME, hf:NAME or FILE.py:FACTORY. "
    "FILE.py is run as a program: name only files that you trust."
)
COLLECTION = click.argument("collection", type=click.Path())
JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print the facts as JSON to stdout, and nothing else there."
)
DEFAULT_MODEL = "tf_efficientnet_lite0"
WEIGHTS_HELP = "Checkpoint to load in place of the published weights, or 'random'."
WEIGHTS = click.option("--weights", default=None, help=WEIGHTS_HELP)


def check_folder_name(_context: click.Context, _parameter: click.Parameter, folder: str | None) -> str | None:
    """The name of an output folder. Raises `BadParameter` on an empty one, as an unset variable gives."""
    if folder is not None and not folder.strip():
        raise click.BadParameter("the name of the output folder is empty")
    return folder


OUT = click.option(
    "--out",
    "-o",
    "folder",
    default=None,
    callback=check_folder_name,
    help="Output folder; by default named after the command.",
)


def model_option(
    default: str | None, also: str = "For the images of a collection, its own network by default."
) -> Callable[[Command], Command]:
    """The option that names a network."""
    shown = default is not None
    about = f"{MODEL_HELP} {also}".strip()
    return click.option("--model", "-m", "model_name", default=default, show_default=shown, help=about)
