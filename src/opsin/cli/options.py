"""Options that several commands have."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from opsin.cli import completion
from opsin.cli.output import ANIMATIONS
from opsin.registry import catalogue


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
PREVIEW = click.option(
    "--preview", is_flag=True, help="Make a tenth of the steps, for a first look in a tenth of the time."
)
PREVIEW_SHARE = 10


Command = TypeVar("Command", bound=Callable[..., Any] | click.Command)
PHOTOS = click.argument("photos", nargs=-1, required=True, type=click.Path())
MODEL_HELP = (
    "Network: a zoo name, timm:NAME, torchvision:NAME, hf:NAME or FILE.py:FACTORY. "
    "FILE.py is run as a program: name only files that you trust."
)
COLLECTION = click.argument("collection", type=click.Path())
JSON = click.option(
    "--json",
    "as_json",
    cls=Once,
    is_flag=True,
    help="Print the facts as JSON to stdout, and nothing else there.",
)
WEIGHTS_HELP = "Checkpoint to load in place of the published weights, or 'random'."
OWN_SETTINGS = "opsin.cli.own_settings"  # in a command's context: what was given to go with own weights


def _numbers(text: str, kind: Callable[[str], float], counts: tuple[int, ...]) -> tuple[float, ...]:
    """Numbers with commas between them. Raises `BadParameter` unless they are as many as `counts` allows."""
    try:
        numbers = tuple(kind(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in counts:
        several = " or ".join(map(str, counts))
        raise click.BadParameter(f"it must be {several} numbers, with commas between them, not {text!r}")
    return numbers


def _colours(text: str) -> tuple[float, ...]:
    return _numbers(text, float, (3,))


def _sides(text: str) -> tuple[float, ...]:
    return _numbers(text, int, (1, 2))


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Keep a setting in the context, where `given_settings` looks."""
    if value is not None and parameter.name is not None:
        context.meta.setdefault(OWN_SETTINGS, {})[parameter.name.removeprefix("own_")] = value


def given_settings() -> dict[str, Any]:
    """The settings that the command was given to go with own weights, as `opsin.load` takes them."""
    context = click.get_current_context(silent=True)
    settings = dict(context.meta.get(OWN_SETTINGS, {})) if context else {}
    if len(settings.get("size", ())) == 1:
        settings["size"] = settings["size"][0]
    return settings


# name in `opsin.load`: (names on the command line, type, value in the help, help); a command with an option
# of its own that is called --labels or --size has the longer name alone
SETTINGS: dict[str, tuple[tuple[str, ...], Any, str, str]] = {
    "classes": (
        ("--classes",),
        click.IntRange(1),
        "N",
        "Number of classes of --weights, if not the published one.",
    ),
    "labels": (
        ("--labels", "--class-names"),
        click.Path(),
        "FILE",
        "Class names in the output's order: a file with one per line, or a JSON list.",
    ),
    "mean": (
        ("--mean",),
        _colours,
        "R,G,B",
        "Mean that --weights were trained with, for images in [0, 1], as 0.485,0.456,0.406.",
    ),
    "std": (
        ("--std",),
        _colours,
        "R,G,B",
        "Standard deviation that --weights were trained with, like --mean.",
    ),
    "size": (
        ("--size", "--input-size"),
        _sides,
        "SIDE",
        "Side of the images that --weights were trained with, in pixels, or HEIGHT,WIDTH.",
    ),
}


def weights_options(*taken: str) -> Callable[[Command], Command]:
    """The options for own weights, without the names that the command has `taken` for its own options."""

    def decorate(command: Command) -> Command:
        technique = command.name if isinstance(command, click.Command) else None
        settings = catalogue.declared(technique).parameters if technique else ()
        options = [
            click.option(
                "--weights", cls=Once, default=None, help=WEIGHTS_HELP, shell_complete=completion.files
            )
        ]
        for setting, (names, kind, value, about) in SETTINGS.items():
            free = [name for name in names if name.removeprefix("--") not in (*taken, *settings)]
            kept = click.option(
                f"own_{setting}",
                *free,
                cls=Once,
                type=kind,
                metavar=value,
                expose_value=False,
                callback=_keep,
                help=about,
                shell_complete=completion.files if setting == "labels" else None,
            )
            options.append(kept)
        for option in options if technique else reversed(options):  # decorators of a function work from below
            option(command)
        return command

    return decorate


WEIGHTS = weights_options()


def sentence(text: str) -> str:
    """A text with a capital at its beginning and a full stop; names, symbols and numbers stay as they are."""
    first = text.split(maxsplit=1)[0].rstrip(",.:;")
    plain = first.isascii() and first.isalpha() and first.islower()
    return f"{text[0].upper()}{text[1:]}." if plain else f"{text}."


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
