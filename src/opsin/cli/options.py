"""Options that several commands have."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from opsin.cli import completion
from opsin.cli.output import ANIMATIONS


class Once(click.Option):
    """An option that may be given once: a second value is an error, not a silent replacement of the first.

    `hint` says how several values are given, where the one value may hold them.
    """

    def __init__(self, *names: Any, hint: str = "", **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.hint = hint

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Let the parser collect every value that is given."""
        self.multiple = True
        try:
            super().add_to_parser(parser, ctx)
        finally:
            self.multiple = False

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, ParameterSource]:
        """The only value. Raises `UsageError` if there are several, but not while a shell completes."""
        values = opts.get(self.name or "")
        if not isinstance(values, list):
            return super().consume_value(ctx, opts)
        if len(values) > 1 and not ctx.resilient_parsing:
            shown = "" if self.is_flag else f" ({', '.join(map(repr, values))})"
            flag = "/".join([*self.opts, *self.secondary_opts])
            hint = self.hint or "give it once"
            raise click.UsageError(f"{flag} is given {len(values)} times{shown}: {hint}", ctx)
        return super().consume_value(ctx, {**opts, self.name or "": values[-1]})


EVERY = click.option(
    "--every",
    cls=Once,
    type=click.IntRange(1),
    default=None,
    help="Save an animation with one frame every N steps.",
)
ANIMATION = click.option(
    "--animation",
    cls=Once,
    type=click.Choice(ANIMATIONS),
    default="webp",
    show_default=True,
    help="File format of animations.",
)
JSON = click.option("--json", "as_json", cls=Once, is_flag=True, help="Print JSON in place of a table.")


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
WEIGHTS_HELP = "Checkpoint to load in place of the published weights, or 'random'."
WEIGHTS = click.option(
    "--weights", cls=Once, default=None, help=WEIGHTS_HELP, shell_complete=completion.files
)


def check_folder_name(_context: click.Context, _parameter: click.Parameter, folder: str | None) -> str | None:
    """The name of an output folder. Raises `BadParameter` on an empty one, as an unset variable gives."""
    if folder is not None and not folder.strip():
        raise click.BadParameter("the name of the output folder is empty")
    return folder


OUT = click.option(
    "--out",
    "-o",
    "folder",
    cls=Once,
    default=None,
    callback=check_folder_name,
    help="Output folder; by default named after the command.",
    shell_complete=completion.folders,
)


def model_option(
    default: str | None, also: str = "For the images of a collection, its own network by default."
) -> Callable[[Command], Command]:
    """The option that names a network."""
    shown = default is not None
    about = f"{MODEL_HELP} {also}".strip()
    return click.option(
        "--model",
        "-m",
        "model_name",
        cls=Once,
        default=default,
        show_default=shown,
        help=about,
        shell_complete=completion.models,
    )
