"""The command line: one command per technique, made from the registry."""

import os
import sys
from typing import Any

import click

from opsin.base.errors import OpsinError
from opsin.cli import completion as complete
from opsin.cli import lists
from opsin.cli.collections import COMMANDS
from opsin.cli.explaining import compare, explain
from opsin.cli.fooling import fool
from opsin.cli.from_registry import technique_command
from opsin.cli.inputs import (
    reopen_model,
)
from opsin.cli.options import (
    ANIMATION,
    EVERY,
    WEIGHTS,
    Once,
    check_folder_name,
    model_option,
)
from opsin.cli.output import each, finish, keep_animation, say_not_begun, write
from opsin.cli.robustness import robustness
from opsin.cli.signals import end, exit_code, handling
from opsin.cli.streams import end_output, failed_to_print
from opsin.cli.texturing import textures
from opsin.cli.watch import progress
from opsin.registry import catalogue


class Commands(click.Group):
    """The fixed commands and, from the registry, one per technique; errors are shown without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: D102
        return [*super().list_commands(ctx), *catalogue.existing()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: D102
        name = cmd_name.replace("-", "_")
        return technique_command(name) if name in catalogue.existing() else super().get_command(ctx, cmd_name)

    def _fixed(self, ctx: click.Context) -> list[tuple[str, str]]:
        names = super().list_commands(ctx)
        return [(name, self.commands[name].get_short_help_str(limit=200)) for name in names]

    def shell_complete(self, ctx: click.Context, incomplete: str) -> Any:  # noqa: D102
        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        return complete.described(dict(self._fixed(ctx)) | catalogue.names(), incomplete.replace("-", "_"))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: D102
        fixed = self._fixed(ctx)
        about = catalogue.names()
        sections = {
            title: [(name, about[name]) for name in own] for title, own in catalogue.sections().items()
        }
        for title, rows in {"Commands": fixed, **sections}.items():
            with formatter.section(title):
                formatter.write_dl(rows)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:  # noqa: D102
        known = not args or args[0].startswith("-") or self.get_command(ctx, args[0]) is not None
        if not (known or ctx.resilient_parsing):  # while a shell completes, nothing is wrong yet
            from opsin.base.errors import unknown

            raise unknown("command", args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)


SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    "token_normalize_func": lambda name: name.replace("_", "-"),  # --keep_colours is --keep-colours
}


@click.group(cls=Commands, context_settings=SETTINGS)
@click.version_option(package_name="opsin")
def cli() -> None:
    """Show what a vision network sees.

    Start with: opsin explain photo.jpg
    """


for command in (explain, compare, fool, robustness, textures, *COMMANDS, lists.techniques, lists.models):
    cli.add_command(command)


def main() -> None:
    """The entry point of the `opsin` command: bad input ends with exit code 2, as does a full disk."""
    if complete.VARIABLE in os.environ:
        from opsin.cli import shells  # noqa: F401 (makes them known to click)
    try:
        with handling(end):
            cli.main(complete_var=complete.VARIABLE, standalone_mode=False)
            end_output()
    except OpsinError as error:
        click.echo(f"opsin: {error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt) as error:
        click.echo("opsin: cancelled; nothing was written", err=True)
        sys.exit(exit_code(error.__cause__ or error))  # click makes an Abort of an interrupt
    except OSError as error:
        if not failed_to_print(error):
            raise
        end_output(error)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands, networks, layers and classes in SHELL.

    \b
    bash:  echo 'eval "$(opsin completion bash)"' >> ~/.bashrc
    zsh:   echo 'eval "$(opsin completion zsh)"' >> ~/.zshrc
    fish:  opsin completion fish > ~/.config/fish/completions/opsin.fish
    """
    from opsin.cli.shells import script

    click.echo(script(cli, shell), nl=False)


@cli.command()
@click.option(
    "--out",
    "-o",
    "folder",
    cls=Once,
    default="gallery",
    show_default=True,
    callback=check_folder_name,
    help="Output folder.",
    shell_complete=complete.folders,
)
def gallery(folder: str) -> None:
    """Make one page with a picture of every technique, on sample photos."""
    from opsin.pages.gallery import gallery as run

    with progress(iterative=False):
        click.echo(run(folder))


@cli.command()
@click.argument("result", type=click.Path())
@model_option(None, "By default the result's own.")
@WEIGHTS
@click.option(
    "--steps",
    cls=Once,
    type=click.IntRange(1),
    default=None,
    help="Total number of steps; finished stages stay as they are. By default as at first.",
)
@EVERY
@ANIMATION
@click.option(
    "--out",
    "-o",
    "folder",
    cls=Once,
    default=None,
    callback=check_folder_name,
    help="Output folder; by default the result's own.",
    shell_complete=complete.folders,
)
def resume(
    result: str,
    model_name: str | None,
    weights: str | None,
    steps: int | None,
    every: int | None,
    animation: str,
    folder: str | None,
) -> None:
    """Resume pictures that were stopped, or give them more steps: RESULT is their folder.

    RESULT may also be the output folder of a command that was killed, or of one with several photos.
    """
    from opsin.base.folders import writing
    from opsin.base.resuming import not_begun, parts
    from opsin.registry.resuming import resume as go_on
    from opsin.results.result import Result

    stored = parts(result)
    loaded = {name: Result.load(part) for name, part in stored.items()}
    first = next(iter(loaded.values()))
    if first.record is None:
        raise click.UsageError(f"{result} does not say how it was made")
    if catalogue.declared(first.record.technique).takes_model:
        model = reopen_model(first.record.model, model_name, weights, result)
    elif model_name is None and weights is None:
        model = None
    else:
        raise click.UsageError(f"{first.record.technique} takes no network: leave out --model and --weights")
    place, absent = folder or result, not_begun(result)
    with writing(place) as fresh, progress(every) as watch:
        for name, inner in each(loaded, fresh, watch, absent):
            write(go_on(loaded[name], model, steps=steps), watch.frames, inner, animation)
            keep_animation(stored[name], inner)
    if watch.ended_by is None:
        say_not_begun(absent)
    finish(place, watch)
