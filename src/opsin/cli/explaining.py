"""The commands that make pages of photos: explain and compare."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from opsin.base.choices import DEFAULT_NETWORK
from opsin.base.errors import InputError, unknown
from opsin.cli import completion as complete
from opsin.cli.inputs import default_model, open_collection, open_model, open_photos
from opsin.cli.options import MODEL_HELP, OUT, PHOTOS, WEIGHTS, Once, model_option
from opsin.cli.watch import progress
from opsin.registry import catalogue
from opsin.registry.kinds import Parameter, checked

if TYPE_CHECKING:
    from opsin.pages.report import Report

SEVERAL = "may be repeated, or hold several between semicolons, which are shown side by side"
TARGET = click.option(
    "--target",
    "-t",
    "targets",
    multiple=True,
    help=f"Class name or index, layer:channel, layer:channel@row,column, or a sum; {SEVERAL}. By default the "
    "predicted class and the next one of another kind.",
    shell_complete=complete.targets,
)
TECHNIQUE = click.option(
    "--technique",
    "techniques",
    multiple=True,
    help="Technique to run; may be repeated. By default all inexpensive ones.",
    shell_complete=complete.techniques,
)
SET = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="TECHNIQUE.SETTING=VALUE",
    help="Setting of one technique, such as occlusion.patch=8; may be repeated.",
)
VALUES = click.option(
    "--values", is_flag=True, help="Write the raw arrays beside the pictures, some 10 MB for each photo."
)


@click.command()
@PHOTOS
@model_option(DEFAULT_NETWORK)
@WEIGHTS
@TARGET
@click.option(
    "--layer",
    "-l",
    cls=Once,
    hint="to see several layers side by side use `opsin compare`",
    default=None,
    help="Layer, for the techniques that take one.",
    shell_complete=complete.layers,
)
@TECHNIQUE
@SET
@click.option(
    "--collection",
    cls=Once,
    type=click.Path(),
    default=None,
    help="Collection to show similar images from: see `opsin scan`.",
)
@VALUES
@OUT
def explain(
    photos: tuple[str, ...],
    model_name: str,
    weights: str | None,
    targets: tuple[str, ...],
    layer: str | None,
    techniques: tuple[str, ...],
    settings: tuple[str, ...],
    collection: str | None,
    values: bool,
    folder: str | None,
) -> None:
    """Explain photos on one page: the classes, where the network looks, which details, what is inside.

    PHOTOS are files, folders and collections; - is a photo on the standard input.
    """

    def run(opened: dict[str, Any], given: dict[str, Any]) -> "Report":
        from opsin.pages.explain import explain as run

        model = default_model(model_name, weights, (collection, *photos))
        if collection:
            given["collection"] = open_collection(collection)
        return run(model, list(opened.values()), layer=layer, names=list(opened), **given)

    _page(run, photos, targets, techniques, settings, values, folder or "explain")


@click.command()
@PHOTOS
@click.option(
    "--model",
    "-m",
    "model_names",
    multiple=True,
    default=[DEFAULT_NETWORK],
    show_default=True,
    help=f"{MODEL_HELP} May be repeated.",
    shell_complete=complete.models,
)
@TARGET
@click.option(
    "--layer",
    "-l",
    "layers",
    multiple=True,
    help="Layer, for the techniques that take one; may be repeated.",
    shell_complete=complete.layers,
)
@TECHNIQUE
@SET
@VALUES
@OUT
def compare(
    photos: tuple[str, ...],
    model_names: tuple[str, ...],
    targets: tuple[str, ...],
    layers: tuple[str, ...],
    techniques: tuple[str, ...],
    settings: tuple[str, ...],
    values: bool,
    folder: str | None,
) -> None:
    """Compare networks, layers or targets on photos, side by side on one page."""

    def run(opened: dict[str, Any], given: dict[str, Any]) -> "Report":
        from opsin.pages.explain import compare as run

        models = [open_model(name, None) for name in dict.fromkeys(model_names)]
        return run(models, list(opened.values()), layers=layers or None, names=list(opened), **given)

    _page(run, photos, targets, techniques, settings, values, folder or "compare")


def _page(
    run: "Callable[[dict[str, Any], dict[str, Any]], Report]",
    photos: tuple[str, ...],
    targets: tuple[str, ...],
    techniques: tuple[str, ...],
    settings: tuple[str, ...],
    values: bool,
    folder: str,
) -> None:
    """Make the page of the photos that can be read; say what could not be done, with exit code 1."""
    for name in techniques:
        catalogue.declared(name.replace("-", "_"))
    given: dict[str, Any] = {
        "target": list(targets) or None,
        "techniques": [name.replace("-", "_") for name in techniques] or None,
        "settings": read_settings(settings),
    }
    from opsin.base.folders import writing
    from opsin.base.headings import headings

    failures: list[str] = []
    with writing(folder) as fresh:
        found = open_photos(photos, targets[0] if len(targets) == 1 else None, failures)
        opened = dict(
            zip(headings([name for name, _ in found]), [photo() for _, photo in found], strict=True)
        )
        with progress(iterative=False):
            report = run(opened, given)
            report.write_into(fresh, values=values)
    click.echo(Path(folder) / "index.html")
    failures += [f"{name}: {why}" for name, why in report.left_out if name in report.asked]
    for failure in failures:
        click.echo(f"opsin: left out: {failure}", err=True)
    if failures:
        sys.exit(1)


def read_settings(texts: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Settings by technique. Raises `InputError` on an unknown one, and on a value of another type."""
    settings: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        technique, dot, key = name.partition(".")
        technique, key = technique.replace("-", "_"), key.replace("-", "_")
        if not equals or not dot:
            raise InputError(f"--set {text!r} is not TECHNIQUE.SETTING=VALUE, such as occlusion.patch=8")
        parameters = catalogue.declared(technique).parameters
        if key not in parameters:
            raise unknown(f"setting of {technique}", key, parameters)
        settings.setdefault(technique, {})[key] = _value(technique, parameters[key], value)
    return settings


def _value(technique: str, parameter: Parameter, text: str) -> Any:
    """A setting's value from its text."""
    if parameter.arg.role != "value":
        return text
    kinds = [kind for kind in (get_args(parameter.type) or (parameter.type,)) if isinstance(kind, type)]
    if bool in kinds:
        if text.lower() not in ("true", "false", "yes", "no"):
            raise InputError(f"{technique}: {parameter.name} must be true or false, not {text!r}")
        return text.lower() in ("true", "yes")
    for kind in (int, float):
        if kind in kinds:
            try:
                return checked(technique, parameter, kind(text))
            except ValueError as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(f"{technique}: {parameter.name} is a number, not {text!r}") from error
    return checked(technique, parameter, text)
