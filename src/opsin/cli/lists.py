"""What is printed as a table or as JSON: techniques, networks, a network's layers."""

import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from opsin.cli.options import JSON
from opsin.cli.tables import print_json
from opsin.registry import catalogue

if TYPE_CHECKING:
    from opsin.network.model import Model

WIDTH = 160  # characters of a table where the output is no terminal


@click.command()
@JSON
def techniques(as_json: bool) -> None:
    """List every technique with its paper and its cost in forward passes; - where it runs no network."""
    declared = [catalogue.declared(name) for name in catalogue.names()]
    if as_json:
        rows = [{"name": t.name, "passes": t.cost, "summary": t.summary, "paper": t.paper} for t in declared]
        print_json(rows)
        return
    _print_table(
        ("technique", "passes", "what it is", "paper"),
        ((t.name, str(t.cost) if t.takes_model else "-", t.summary, t.paper) for t in declared),
    )


@click.command()
@click.argument("family", required=False, type=click.Choice(["timm", "torchvision"]))
@JSON
def models(family: str | None, as_json: bool) -> None:
    """List the networks of the zoo; with FAMILY, every network of timm or torchvision."""
    from opsin.zoo.entries import ENTRIES, FORMS

    if family is not None:
        from opsin.zoo.building import available

        names = [f"{family}:{name}" for name in available(family)]
        if as_json:
            print_json({"networks": [{"name": name} for name in names]})
        else:
            click.echo("\n".join(names))
        return
    if as_json:
        networks = [{"name": name, "about": about} for name, about in ENTRIES.items()]
        print_json({"networks": networks, "forms": [{"form": f, "about": a} for f, a in FORMS.items()]})
        return
    for name, about in (ENTRIES | FORMS).items():
        click.echo(f"{name:24} {about}")


def is_model(things: tuple[str, ...]) -> bool:
    """Whether the only argument names a network, not a photo."""
    from opsin.cli.inputs import STDIN
    from opsin.images.photos import SUFFIXES

    return (
        len(things) == 1
        and things[0] != STDIN
        and not Path(things[0]).exists()
        and Path(things[0]).suffix.lower() not in SUFFIXES
    )


def print_layers(name: str, weights: str | None, as_json: bool) -> None:
    """The network's layers with output shape, parameters and receptive field."""
    from opsin.base.errors import NetworkError
    from opsin.cli.inputs import open_model

    with redirect_stdout(sys.stderr):  # a file of the user's own may print
        model = open_model(name, weights)
        layers = _layers(model)
        try:
            default, why = model.default_layer, ""
        except NetworkError as error:
            default, why = None, str(error)
    if as_json:
        print_json({"network": model.name, "default_layer": default, "layers": layers})
        return
    rows = []
    for layer in layers:
        height, width = layer["sees"] or (0, 0)
        sees = "whole image" if (height, width) == model.size else f"{height}×{width}" if height else ""
        shape, count = "×".join(map(str, layer["output"])), layer["parameters"]
        indent = "  " * layer["name"].count(".")
        rows.append((indent + layer["name"], layer["kind"], shape, f"{count:,}" if count else "", sees))
    _print_table(("layer", "kind", "output", "parameters", "sees"), rows)
    click.echo(f"default layer for maps: {f'none ({why})' if default is None else default}")


def _layers(model: "Model") -> list[dict[str, Any]]:
    """The network's calls in the order of its modules; `sees` is `None` where there is no receptive field."""
    from opsin.cli.watch import progress
    from opsin.network.regions import receptive_fields

    with progress(iterative=False):
        fields = receptive_fields(model)
    order = {layer: number for number, (layer, _) in enumerate(model.network.named_modules())}
    return [
        {
            "name": call.name,
            "kind": call.kind,
            "output": list(call.shape[1:]),
            "parameters": sum(p.numel() for p in model.network.get_submodule(call.layer).parameters()),
            "sees": fields[call.name].size if call.name in fields else None,
        }
        for call in sorted(model.calls.values(), key=lambda call: (order[call.layer], call.index))
    ]


def _print_table(heads: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*heads, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    Console(width=None if on_terminal else WIDTH).print(table)
