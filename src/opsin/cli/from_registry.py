"""A command for each technique."""

from collections.abc import Callable
from typing import Any, get_args

import click
from click.core import ParameterSource

from opsin.cli import completion
from opsin.cli.inputs import batches, default_model, open_photos, whole_photos
from opsin.cli.lists import is_model, print_layers
from opsin.cli.options import (
    ANIMATION,
    EVERY,
    JSON,
    OUT,
    PREVIEW,
    PREVIEW_SHARE,
    WEIGHTS,
    Once,
    model_option,
    sentence,
)
from opsin.cli.output import each, finish, say_resumable, write
from opsin.cli.watch import progress
from opsin.registry import catalogue
from opsin.registry.kinds import Parameter, Technique


def technique_command(name: str) -> click.Command:
    """The command of a technique: its photos, its settings as options, its output folder."""
    technique = catalogue.declared(name)

    def run(
        folder: str | None,
        model_name: str = "",
        weights: str | None = None,
        photos: tuple[str, ...] = (),
        every: int | None = None,
        animation: str = "webp",
        preview: bool = False,
        as_json: bool = False,
        **settings: Any,
    ) -> None:
        if name == "layers" and is_model(photos):
            _list_layers(photos[0], weights, as_json)
            return
        if as_json:
            raise click.UsageError("--json lists the layers of a MODEL: leave it out for pictures of photos")
        from opsin.base.folders import interrupted, writing
        from opsin.base.headings import headings
        from opsin.objectives.parsing import one_each

        place = folder or name
        settings |= {"steps": max(1, settings["steps"] // PREVIEW_SHARE)} if preview else {}
        for key, parameter in technique.parameters.items():
            if parameter.arg.role == "images":
                settings[key] = whole_photos(settings[key])
        if technique.iterative and interrupted(place):
            say_resumable(place)
        with writing(place) as fresh, progress(every, iterative=technique.iterative) as watch:
            # fail on bad paths before loading the network
            opened = open_photos(photos, settings.get("target"))
            model = default_model(model_name, weights, photos) if technique.takes_model else None
            pieces = batches(opened, model, technique.photos) if technique.takes_images else [None]
            asked = [k for k, p in technique.parameters.items() if p.arg.role in ("target", "classes")]
            goals = {
                key: one_each(settings[key], model, len(pieces))
                for key in asked
                if model is not None and len(pieces) > 1 and settings[key] is not None
            }
            names = headings([name for name, _ in opened]) if len(pieces) > 1 else ["."]
            for heading, inner in each(names, fresh, watch):
                number = names.index(heading)
                own = {key: several[number] for key, several in goals.items()}
                given = technique.inputs(model, pieces[number])
                result = catalogue.get(name).run(*given, **{**settings, **own})
                write(result, watch.frames, inner, animation)
        finish(place, watch)

    about = f"{technique.summary}\n\n{technique.reading}\n\n{technique.paper}"
    command: click.Command = click.Command(name, callback=run, help=about, short_help=technique.summary)
    if name == "layers":
        command.epilog = (
            "Given a MODEL in place of photos, it lists the network's layers: opsin layers timm:resnet18"
        )
    for decorate in _arguments(technique):
        decorate(command)
    place = int(technique.takes_model)  # behind the network, where there is one
    command.params[place:place] = [_option(parameter) for parameter in technique.parameters.values()]
    return command


def _list_layers(model_name: str, weights: str | None, as_json: bool) -> None:
    """The layers of a model in place of pictures; no option but these goes with that."""
    context = click.get_current_context()
    given = {p for p in context.params if context.get_parameter_source(p) is ParameterSource.COMMANDLINE}
    if unused := given - {"photos", "weights", "as_json"}:
        options = ", ".join(f"--{one.removesuffix('_name')}" for one in sorted(unused))
        raise click.UsageError(f"listing the layers of a model takes no {options}")
    print_layers(model_name, weights, as_json)


def _arguments(technique: Technique) -> list[Callable[[Any], Any]]:
    """The decorators for what is no setting: the network, the output folder, photos."""
    arguments: list[Callable[[Any], Any]] = [OUT]
    if technique.takes_model:
        network = model_option(technique.network, *([] if technique.takes_images else [""]))
        arguments = [network, WEIGHTS, OUT]
    if technique.iterative:
        arguments += [EVERY, ANIMATION, *([PREVIEW] if "steps" in technique.parameters else [])]
    if technique.takes_images:
        metavar, offered = None, None  # by click itself: PHOTOS..., and files
        if technique.name == "layers":
            metavar, offered = "MODEL | PHOTOS...", completion.models_or_files
            arguments.append(JSON)
        arguments.append(
            click.argument(
                "photos",
                nargs=-1,
                required=True,
                type=click.Path(),
                metavar=metavar,
                shell_complete=offered,
            )
        )
    return arguments


OFFERED = {  # behind TAB, and how several values are given, by the role of a setting
    "target": (
        completion.targets,
        "several photos take one target each in one value, with semicolons between them; several targets of "
        "one photo are shown by `opsin explain`",
    ),
    "layers": (completion.several_layers, "several layers are one value, separated by commas"),
    "layer": (completion.layers, ""),
    "classes": (completion.targets, "several photos take one class each in one value, with semicolons"),
}


def _option(parameter: Parameter) -> click.Option:
    flag = parameter.name.replace("_", "-")
    names = [f"--{flag}"]
    kind = parameter.type
    role = parameter.arg.role
    offered, hint = OFFERED.get(role, (None, ""))
    if offered:
        names.append(f"-{parameter.name[0]}")
        kind = str
    elif role == "images":
        kind = click.Path()
    elif role == "epsilon":
        kind = str
    elif type(None) in get_args(kind):
        kind = next(one for one in get_args(kind) if one is not type(None))
    elif kind is bool:
        names = [f"--{flag}/--no-{flag}"]
    default = {} if parameter.required or role == "images" else {"default": parameter.default}
    settings: dict[str, Any] = {
        "type": click.Choice(parameter.choices) if parameter.choices else kind,
        "required": parameter.required,
        "show_default": default.get("default") is not None,
        "help": sentence(parameter.arg.help),
        "shell_complete": offered,
        **default,
    }
    return (
        click.Option(names, multiple=True, **settings)
        if role == "images"
        else Once(names, hint=hint, **settings)
    )
