"""Textures of nine samples by every technique: time, distances, and how much is copied pixel for pixel.

    python benchmarks/textures.py                     # about an hour on two cores
    python benchmarks/textures.py --pictures FOLDER   # and a page for each sample there
    python benchmarks/textures.py --quick             # a smoke test on one sample, its numbers mean nothing

The samples are in `../shared/data/images/textures`; without that folder the script says so and ends.
"""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

import opsin
from opsin.pages.textures import WAYS

OUTPUT = Path(__file__).with_suffix(".md")
SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "data" / "images" / "textures"
MEASURES = ("co-occurrence", "spectrum", "wavelets", "Gram")
SIZE = 96
SETTINGS: dict[str, dict[str, Any]] = {"texture": {"steps": 50}, "portilla_simoncelli": {"steps": 20}}
REGULAR = "texture, spectrum=10"  # the term of Liu, Gousseau, Xia (2016) beside the plain Gram matrices
SPECTRUM = 10.0
ROWS = ("sample itself", *WAYS, REGULAR)


def measured(
    path: Path, model: opsin.Model, folder: Path | None, size: int, settings: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    found = opsin.textures(path, model, size=size, source=size, settings=settings)
    if folder is not None:
        found.save(folder / path.stem)
    rows = {way["way"]: way for way in found.facts["ways"]} | {"sample itself": found.facts["sample itself"]}
    return rows | {REGULAR: regular(path, model, folder, size, settings)}


def regular(
    path: Path, model: opsin.Model, folder: Path | None, size: int, settings: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The row of `texture` with the spectrum."""
    given = {"texture": settings["texture"] | {"spectrum": SPECTRUM}}
    found = opsin.textures(path, model, size=size, source=size, ways="texture", settings=given)
    if folder is not None:
        found.save(folder / f"{path.stem} with spectrum")
    (row,) = found.facts["ways"]
    return row


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        f"| | s | {' | '.join(MEASURES)} | copied |",
        f"| --- | ---: | {' | '.join(['---:'] * len(MEASURES))} | ---: |",
    ]
    for name in ROWS:
        row = rows.get(name, {})
        copied = f"{100 * row['copied']:.0f} %" if "copied" in row else ""
        cells = [number(row.get("seconds")), *(number(row.get(key)) for key in MEASURES), copied]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def page(samples: dict[str, dict[str, Any]], size: int) -> str:
    keys = ("seconds", *MEASURES, "copied")
    medians = {
        name: {
            key: median(values)
            for key in keys
            if (values := [rows[name][key] for rows in samples.values() if key in rows.get(name, {})])
        }
        for name in ROWS
    }
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "plenoptic"))
    text = [
        "# Textures: every way on the same samples",
        "",
        f"CPU, {torch.get_num_threads()} threads. {packages}. Made by `benchmarks/textures.py`.",
        "",
        f"{len(samples)} samples, reduced to {size} pixels, new textures of {size} x {size}, seed 0.",
        f"Settings other than the defaults: {SETTINGS}.",
        "Distances are from the sample; its own row compares its left half with its right half. No technique",
        "minimises the distance of co-occurrence; `random_phase` has the sample's spectrum by construction,",
        "`portilla_simoncelli` minimises the wavelets' (in colours; measured is the brightness),",
        "`texture` the Gram matrices'.",
        "Copied is the share of 8 x 8 patches that are in the sample pixel for pixel.",
        "",
        "## Medians",
        "",
        *table(medians),
        "",
        "## Nearest by each measure",
        "",
        "| sample | " + " | ".join(MEASURES) + " |",
        "| --- | " + " | ".join(["---"] * len(MEASURES)) + " |",
    ]
    for name, rows in samples.items():
        best = [
            min(known, key=known.__getitem__)
            if (known := {way: rows[way][key] for way in WAYS if key in rows.get(way, {})})
            else ""
            for key in MEASURES
        ]
        text.append(f"| {name} | {' | '.join(best)} |")
    for name, rows in samples.items():
        text += ["", f"## {name}", "", *table(rows)]
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--pictures", type=Path)
    given = parser.parse_args()
    if not SAMPLES.is_dir():
        sys.exit(f"skipped: there are no samples in {SAMPLES}")
    paths, size, settings = sorted(SAMPLES.iterdir()), SIZE, SETTINGS
    if given.quick:
        paths, size, settings = paths[:1], 48, {name: {"steps": 1} for name in SETTINGS}
    model = opsin.load("vgg16_features")
    samples: dict[str, dict[str, Any]] = {}
    for path in paths:
        samples[path.stem] = measured(path, model, given.pictures, size, settings)
        print("\n".join([path.stem, *table(samples[path.stem])]), flush=True)
        if not given.quick:
            OUTPUT.write_text(page(samples, size), "utf-8")
            OUTPUT.with_suffix(".json").write_text(json.dumps(samples, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
