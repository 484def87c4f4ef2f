"""The command line: one command a technique, made from the registry."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource

from opsin import registry
from opsin.collection.commands import COMMANDS
from opsin.errors import NetworkError, OpsinError
from opsin.output import ANIMATIONS, each, finish, keep_animation, say_not_begun, say_resumable, write
from opsin.registry import Parameter
from opsin.signals import end, exit_code, handling
from opsin.terminal import (
    DEFAULT_MODEL,
    OUT,
    PHOTOS,
    WEIGHTS,
    batches,
    check_folder_name,
    default_model,
    model_option,
    open_collection,
    open_model,
    open_photos,
    reopen_model,
    whole_photos,
)
from opsin.watch import progress


class Commands(click.Group):
    """The fixed commands and, from the registry, one a technique; errors are told without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: D102
        return [*super().list_commands(ctx), *registry.names()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: D102
        fixed = super().get_command(ctx, cmd_name)
        if fixed is not None or cmd_name not in registry.names():
            return fixed
        return _technique_command(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: D102
        fixed = [
            (name, self.commands[name].get_short_help_str(limit=200)) for name in super().list_commands(ctx)
        ]
        for title, rows in (("Commands", fixed), ("Techniques", list(registry.names().items()))):
            with formatter.section(title):
                formatter.write_dl(rows)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:  # noqa: D102
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from opsin.errors import unknown

            raise unknown("command", args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="opsin")
def cli() -> None:
    """Show what a vision network sees.

    Start with: opsin explain photo.jpg
    """


for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """The entry point of the `opsin` command: what is wrong with the input ends with exit code 2."""
    try:
        with handling(end):
            cli.main(standalone_mode=False)
    except OpsinError as error:
        click.echo(f"opsin: {error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt) as error:
        click.echo("opsin: cancelled, nothing was written", err=True)
        sys.exit(exit_code(error.__cause__ or error))  # click makes an Abort of an interrupt


@cli.command()
@PHOTOS
@model_option(DEFAULT_MODEL)
@WEIGHTS
@click.option(
    "--target",
    "-t",
    default=None,
    help="Class name or index, layer:channel, layer:channel@row,column, or a sum.",
)
@click.option("--layer", "-l", default=None, help="Layer for the techniques that take one.")
@click.option(
    "--technique",
    "techniques",
    multiple=True,
    help="Run this one (may be repeated) in place of all that cost little.",
)
@click.option(
    "--collection", type=click.Path(), default=None, help="Show what looks alike in it: see `opsin scan`."
)
@OUT
def explain(
    photos: tuple[str, ...],
    model_name: str,
    weights: str | None,
    target: str | None,
    layer: str | None,
    techniques: tuple[str, ...],
    collection: str | None,
    folder: str | None,
) -> None:
    """Explain photos on one page: the top classes, then every technique side by side."""
    for name in techniques:
        registry.get(name)
    from opsin.folders import writing
    from opsin.report import explain as run

    place = folder or "explain"
    with writing(place) as fresh:
        alike = open_collection(collection) if collection else None
        opened = open_photos(photos, target)  # a wrong one is told before a network is built
        model = default_model(model_name, weights, (collection, *photos))
        ((images,),) = batches(opened, model, "together")
        names = [name for name, _ in opened]
        with progress(climbs=False):
            report = run(
                model,
                images,
                target=target,
                layer=layer,
                techniques=list(dict.fromkeys(techniques)) or None,
                names=names,
                collection=alike,
            )
            report.write_into(fresh)
    click.echo(Path(place) / "index.html")


@cli.command()
def techniques() -> None:
    """List every technique with its paper and its cost."""
    from rich.console import Console
    from rich.table import Table

    table = Table("technique", "passes", "what it is", "paper", box=None, pad_edge=False)
    for technique in registry.techniques().values():
        table.add_row(technique.name, str(technique.cost), technique.summary, technique.paper)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@cli.command()
@click.argument("family", required=False, type=click.Choice(["timm", "torchvision"]))
def models(family: str | None) -> None:
    """List the zoo; with FAMILY, every network that timm or torchvision has by name."""
    from opsin import zoo

    if family is not None:
        click.echo("\n".join(f"{family}:{name}" for name in zoo.available(family)))
        return
    for name, entry in zoo.ZOO.items():
        click.echo(f"{name:24} {entry.about}")
    for form, about in zoo.FORMS.items():
        click.echo(f"{form:24} {about}")


@cli.command()
@click.option(
    "--out",
    "-o",
    "folder",
    default="gallery",
    show_default=True,
    callback=check_folder_name,
    help="Output folder.",
)
def gallery(folder: str) -> None:
    """Make one page with a picture of every technique, on sample photos."""
    from opsin.gallery import gallery as run

    with progress(climbs=False):
        click.echo(run(folder))


EVERY = click.option(
    "--every",
    type=click.IntRange(1),
    default=None,
    help="Keep every so many steps' picture, as an animation.",
)
ANIMATION = click.option(
    "--animation",
    type=click.Choice(ANIMATIONS),
    default="webp",
    show_default=True,
    help="Kind of the animation.",
)


@cli.command()
@click.argument("result", type=click.Path())
@model_option(None, "By default the result's own.")
@WEIGHTS
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=None,
    help="Of each climb, in all; those that were finished stay. By default as at first.",
)
@EVERY
@ANIMATION
@click.option(
    "--out",
    "-o",
    "folder",
    default=None,
    callback=check_folder_name,
    help="Output folder; by default the result's own.",
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
    """Go on with pictures that were stopped, or climb further: RESULT is their folder.

    It may be the output folder of a command that was killed, or of one that made pictures of several photos.
    """
    from opsin.folders import writing
    from opsin.results import Result
    from opsin.resuming import not_begun, parts

    stored = parts(result)
    loaded = {name: Result.load(part) for name, part in stored.items()}
    first = next(iter(loaded.values()))
    if first.record is None:
        raise click.UsageError(f"{result} does not say how it was made")
    model = reopen_model(first.record.model, model_name, weights, result)
    place, absent = folder or result, not_begun(result)
    with writing(place) as fresh, progress(every) as watch:
        for name, inner in each(loaded, fresh, watch, absent):
            write(registry.resume(loaded[name], model, steps=steps), watch.frames, inner, animation)
            keep_animation(stored[name], inner)
    if watch.ended_by is None:
        say_not_begun(absent)
    finish(place, watch)


def _technique_command(name: str) -> click.Command:
    technique = registry.get(name)

    def run(
        model_name: str,
        weights: str | None,
        folder: str | None,
        photos: tuple[str, ...] = (),
        every: int | None = None,
        animation: str = "webp",
        **settings: Any,
    ) -> None:
        if name == "layers" and _is_model(photos):
            context = click.get_current_context()
            given = {
                p for p in context.params if context.get_parameter_source(p) is ParameterSource.COMMANDLINE
            }
            if unused := given - {"photos", "weights"}:
                options = ", ".join(f"--{one.removesuffix('_name')}" for one in sorted(unused))
                raise click.UsageError(f"listing the layers of a model takes no {options}")
            _print_tree(photos[0], weights)
            return
        from opsin.folders import interrupted, writing
        from opsin.parsing import one_each
        from opsin.report import headings

        place = folder or name
        for key, parameter in technique.parameters.items():
            if parameter.arg.role == "images":
                settings[key] = whole_photos(settings[key])
        if technique.climbs and interrupted(place):
            say_resumable(place)
        with writing(place) as fresh, progress(every, climbs=technique.climbs) as watch:
            opened = open_photos(photos, settings.get("target"))  # a wrong one is told first
            model = default_model(model_name, weights, photos)
            pieces = batches(opened, model, technique.photos) if technique.takes_images else [()]
            goals = one_each(settings.get("target"), model, len(pieces)) if len(pieces) > 1 else []
            names = headings([name for name, _ in opened]) if len(pieces) > 1 else ["."]
            for heading, inner in each(names, fresh, watch):
                number = names.index(heading)
                if goals and "target" in settings:
                    settings["target"] = goals[number]
                result = technique.run(model, *pieces[number], **settings)
                write(result, watch.frames, inner, animation)
        finish(place, watch)

    about = f"{technique.summary}\n\n{technique.reading}\n\n{technique.paper}"
    command: click.Command = click.Command(name, callback=run, help=about, short_help=technique.summary)
    if name == "layers":
        command.epilog = (
            "Given a MODEL in place of photos, it lists the network's layers: opsin layers timm:resnet18"
        )
    network = model_option(technique.network, *([] if technique.takes_images else [""]))
    arguments: list[Callable[[Any], Any]] = [network, WEIGHTS, OUT]
    if technique.climbs:
        arguments += [EVERY, ANIMATION]
    if technique.takes_images:
        metavar = "MODEL | PHOTOS..." if name == "layers" else None
        arguments.append(
            click.argument("photos", nargs=-1, required=True, type=click.Path(), metavar=metavar)
        )
    for decorate in arguments:
        decorate(command)
    command.params[1:1] = [_option(parameter) for parameter in technique.parameters.values()]
    return command


def _option(parameter: Parameter) -> click.Option:
    flag = parameter.name.replace("_", "-")
    names = [f"--{flag}"]
    kind = parameter.type
    several = parameter.arg.role == "images"
    if parameter.arg.role in ("target", "layer", "layers"):
        names.append(f"-{parameter.name[0]}")
        kind = str
    elif several:
        kind = click.Path()
    elif type(None) in get_args(kind):
        kind = next(one for one in get_args(kind) if one is not type(None))
    elif kind is bool:
        names = [f"--{flag}/--no-{flag}"]
    default = {} if parameter.required or several else {"default": parameter.default}
    shown = default.get("default") is not None
    return click.Option(
        names,
        type=click.Choice(parameter.choices) if parameter.choices else kind,
        required=parameter.required,
        multiple=several,
        show_default=shown,
        help=f"{parameter.arg.help[0].upper()}{parameter.arg.help[1:]}.",
        **default,
    )


def _is_model(things: tuple[str, ...]) -> bool:
    from opsin.photos import SUFFIXES

    return (
        len(things) == 1 and not Path(things[0]).exists() and Path(things[0]).suffix.lower() not in SUFFIXES
    )


def _print_tree(name: str, weights: str | None) -> None:
    """The network's layers with output shape, parameters and receptive field."""
    from rich.console import Console
    from rich.table import Table

    from opsin.regions import receptive_fields

    model = open_model(name, weights)
    with progress(climbs=False):
        fields = receptive_fields(model)
    table = Table("layer", "kind", "output", "parameters", "sees", box=None, pad_edge=False)
    order = {layer: place for place, (layer, _) in enumerate(model.network.named_modules())}
    for call in sorted(model.calls.values(), key=lambda call: (order[call.layer], call.index)):
        count = sum(p.numel() for p in model.network.get_submodule(call.layer).parameters())
        field = fields[call.name].size if call.name in fields else None
        sees = "" if field is None else "whole image" if field == model.size else f"{field[0]}×{field[1]}"
        table.add_row(
            "  " * call.layer.count(".") + call.name,
            call.kind,
            "×".join(map(str, call.shape[1:])),
            f"{count:,}" if count else "",
            sees,
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    try:
        default = model.default_layer
    except NetworkError as error:
        default = f"none ({error})"
    click.echo(f"default layer for maps: {default}")
