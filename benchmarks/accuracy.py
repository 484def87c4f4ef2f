"""How often a network's first class, and one of its first five, is right: the figures of docs/networks.md.

python benchmarks/accuracy.py googlenet labels.csv photos/     # CSV: columns file and label (a class index)

For GoogLeNet, also with the other ways to cut a photo that docs/networks.md compares.
"""

import argparse
import csv
from pathlib import Path

import torch

import opsin

CUTS = {  # crop, squash
    "shorter side, centre": (1.0, False),
    "7/8 of that": (0.875, False),
    "squashed to a square, whole": (1.0, True),
    "squashed, 7/8 of that": (0.875, True),
}
BATCH = 8


def accuracy(model: opsin.Model, labels: dict[Path, int]) -> tuple[float, float]:
    """The shares of photos whose label is the first class, and among the first five."""
    ranks = []
    paths = list(labels)
    for start in range(0, len(paths), BATCH):
        part = paths[start : start + BATCH]
        best = model.run(opsin.read(part, model))["output"].topk(5).indices
        ranks.append(best == torch.tensor([[labels[path]] for path in part]))
    right = torch.cat(ranks).float()
    return float(right[:, 0].mean()), float(right.sum(1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("labels", type=Path)
    parser.add_argument("photos", type=Path)
    given = parser.parse_args()
    with given.labels.open(encoding="utf-8") as file:
        labels = {given.photos / row["file"]: int(row["label"]) for row in csv.DictReader(file)}
    model = opsin.load(given.model)
    cuts = CUTS if given.model == "googlenet" else {"as published": (model.crop, model.squash)}
    for name, (model.crop, model.squash) in cuts.items():
        first, five = accuracy(model, labels)
        print(f"{name:30} top-1 {100 * first:.1f} %, top-5 {100 * five:.1f} % of {len(labels)} photos")


if __name__ == "__main__":
    main()
