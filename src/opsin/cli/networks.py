"""Networks and their layers, listed."""

import sys
from pathlib import Path

import click

from opsin.base.errors import NetworkError
from opsin.cli.inputs import STDIN, open_model
from opsin.cli.watch import progress


def is_model(things: tuple[str, ...]) -> bool:
    """Whether the only argument names a network, not a photo."""
    from opsin.images.photos import SUFFIXES

    return (
        len(things) == 1
        and things[0] != STDIN
        and not Path(things[0]).exists()
        and Path(things[0]).suffix.lower() not in SUFFIXES
    )


def print_layers(name: str, weights: str | None) -> None:
    """The network's layers with output shape, parameters and receptive field."""
    from rich.console import Console
    from rich.table import Table

    from opsin.network.regions import receptive_fields

    model = open_model(name, weights)
    with progress(iterative=False):
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
