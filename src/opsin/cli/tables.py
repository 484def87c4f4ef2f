"""What commands print of their findings: tables for readers, or the facts as JSON for programs."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from opsin.results.findings import Findings, Table

MOST_ROWS = 50  # of a table; the others are in the facts
UNLIMITED = 100_000  # columns of text where the output is no terminal, so that no line is cut


def print_json(facts: object) -> None:
    """Print facts as JSON, as `facts.json` holds them."""
    from opsin.base.records import as_json

    click.echo(as_json(facts), nl=False)


def print_tables(tables: "Iterable[Table]", folder: str) -> None:
    """Print tables, of long ones the first rows; the facts in `folder` hold the others."""
    from rich.console import Console
    from rich.table import Table as Columns
    from rich.text import Text

    from opsin.base.folders import FACTS

    console = Console(width=None if sys.stdout.isatty() else UNLIMITED)
    for table in tables:
        rows = Columns(box=None, pad_edge=False)
        for index, name in enumerate(table.columns):
            number = any(isinstance(row[index], int | float) for row in table.rows)
            rows.add_column(name, justify="right" if number else "left", overflow="fold")
        for row in table.rows[:MOST_ROWS]:
            rows.add_row(*(Text(_printable(_cell(value))) for value in row))
        with console.capture() as printed:
            console.print(rows)
        click.echo(_printable(table.title))
        click.echo("\n".join(line.rstrip() for line in printed.get().splitlines()))
        if len(table.rows) > MOST_ROWS:
            click.echo(f"and {len(table.rows) - MOST_ROWS:,} more, in {Path(folder) / FACTS}")
        click.echo()


def of_findings(found: "Findings") -> "Iterable[Table]":
    """The title, and the first table of the page: the later ones are wide."""
    from opsin.results.findings import Table

    first = found.tables[0] if found.tables else Table("", (), ())
    return [Table(f"{found.title}. {first.title}:" if first.rows else found.title, first.columns, first.rows)]


def of_neighbours(found: "Findings") -> "Iterable[Table]":
    """The neighbours of each photo."""
    from opsin.results.findings import Table

    columns = ("rank", "distance", "label", "seen as", "path")
    return [
        Table(
            photo["photo"],
            columns,
            tuple(
                (n["rank"], n["distance"], n["label_name"] or "", n["class"] or "", n["path"])
                for n in photo["neighbours"]
            ),
        )
        for photo in found.facts["photos"]
    ]


def of_units(found: "Findings") -> "Iterable[Table]":
    """The channels, with the image where each one fires most."""
    from opsin.results.findings import Table

    columns = ("channel", "at most", "mean", "deviation", "sparsity", "at the edge", "label", "path")
    rows = []
    for unit in found.facts["units"]:
        first = next(iter(unit["top"]), None)
        name = (first["label_name"] or first["class_name"] or "") if first else ""
        rows.append(
            (
                unit["channel"],
                first["value"] if first else "",
                *(unit[moment] for moment in ("mean", "deviation", "sparsity")),
                "mostly" if unit["mostly_at_edge"] else "",
                name.split(",")[0],
                first["path"] if first else "",
            )
        )
    return [Table(found.title, columns, tuple(rows))]


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def _printable(text: str) -> str:
    """The text with control characters escaped: a file's name must not steer the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
