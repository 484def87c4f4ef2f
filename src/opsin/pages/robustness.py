"""How accuracy falls with ε, for attacks and defences, with intervals and the signs of masked gradients."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from opsin.base.errors import InputError
from opsin.base.extras import extra
from opsin.base.folders import FACTS, PAGE, RECORD, storing, writing
from opsin.base.job import steps, within
from opsin.base.records import as_json
from opsin.images import tensors
from opsin.network.model import Model
from opsin.optimise.smoothing import interval
from opsin.pages.protocol import DEFAULT, NONE, Contender, attacked, attacks_of, contenders, warnings
from opsin.registry import catalogue
from opsin.registry.kinds import checked
from opsin.results.attack import size
from opsin.results.html import escaped, page

RADII = ("1/255", "2/255", "4/255", "8/255")
TOGETHER = 16  # photos in one batch
Cells = dict[str, list[bool]]  # "defence|kind|attack|ε": of each photo so far, whether it is still right
CLEAN, NOISE = "clean", "random_noise"


@dataclass(frozen=True)
class Cell:
    """The accuracy of one defence under one attack at one ε, with its 95 % interval."""

    defence: str
    kind: str  # `aware` of the defence, `unaware`, or clean
    attack: str
    epsilon: float
    right: int
    total: int

    @property
    def accuracy(self) -> float:
        """The share of all photos that are still seen rightly."""
        return self.right / self.total

    @property
    def between(self) -> tuple[float, float]:
        """Clopper and Pearson's 95 % interval of the accuracy."""
        return interval(self.right, self.total)


@dataclass(frozen=True, repr=False)
class Robustness:
    """The accuracies of an evaluation, and the warnings of its checks."""

    name: str
    photos: int
    cells: tuple[Cell, ...]
    cautions: tuple[str, ...]

    def __repr__(self) -> str:
        lines = [f"Robustness: {self.name} on {self.photos} photos"]
        lines += [f"  {c.defence}, {c.attack}, ε {size(c.epsilon)}: {c.accuracy:.1%}" for c in self.cells[:8]]
        return "\n".join([*lines, "  .save(folder) writes table, plot and page"])

    def rows(self) -> list[tuple[str, list[str]]]:
        """The table: for each defence, kind and attack the accuracy without one and at every ε."""
        clean = {cell.defence: _written(cell) for cell in self.cells if cell.attack == CLEAN}
        grouped: dict[str, list[str]] = {}
        for cell in self.cells:
            if cell.attack != CLEAN:
                known = "" if cell.kind == "aware" else ", which does not know it"
                name = f"{cell.defence}: {cell.attack}{known}"
                grouped.setdefault(name, [clean[cell.defence]]).append(_written(cell))
        return list(grouped.items())

    def radii(self) -> list[str]:
        """The ε of the table's columns, in 255ths; 0 is without an attack."""
        return ["0", *(size(e) for e in dict.fromkeys(c.epsilon for c in self.cells if c.attack != CLEAN))]

    def facts(self) -> dict[str, Any]:
        """All numbers, and the warnings."""
        cells = [
            {
                "defence": c.defence,
                "knows_the_defence": c.kind == "aware",
                "attack": c.attack,
                "epsilon": c.epsilon,
                "right": c.right,
                "photos": c.total,
                "accuracy": c.accuracy,
                "interval_95": list(c.between),
            }
            for c in self.cells
        ]
        return {"network": self.name, "photos": self.photos, "cells": cells, "cautions": list(self.cautions)}

    def plot(self, ax: Any = None) -> Any:
        """Draw the accuracy over ε with matplotlib, with the intervals as bands; returns the axes."""
        with extra("robustness"):
            import matplotlib.pyplot as plt  # noqa: PLC0415 (an extra)
        if ax is None:
            _, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
        clean = {c.defence: c for c in self.cells if c.attack == CLEAN}
        lines: dict[tuple[str, str, str], list[Cell]] = {}
        for cell in self.cells:
            if cell.attack != CLEAN:
                lines.setdefault((cell.defence, cell.attack, cell.kind), [clean[cell.defence]]).append(cell)
        for (defence, attack, kind), own in lines.items():
            name = attack if defence == NONE else f"{defence}: {attack}"
            style = "-" if kind == "aware" else ":"
            x, y = [255 * c.epsilon for c in own], [100 * c.accuracy for c in own]
            (drawn,) = ax.plot(
                x, y, style, marker="o", markersize=3, label=name + (", unaware" * (style == ":"))
            )
            low, high = zip(*(c.between for c in own), strict=True)
            ax.fill_between(
                x, [100 * v for v in low], [100 * v for v in high], color=drawn.get_color(), alpha=0.1
            )
        ax.set(xlabel="ε, 255ths", ylabel="accuracy, %", ylim=(-3, 103), title=self.name)
        ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
        return ax

    def save(self, folder: str | Path) -> Path:
        """Write the page, `facts.json`, and the plot as `accuracy.svg` and `accuracy.png`.

        Returns the page's path. Raises `InputError` where the folder cannot be written.
        """
        with writing(folder) as place:
            self.write_into(place)
        return Path(folder) / PAGE

    def write_into(self, place: Path) -> None:
        """Write the files of `save` into an existing folder."""
        figure = self._figure()
        with storing():
            figure.savefig(place / "accuracy.svg")
            figure.savefig(place / "accuracy.png", dpi=150)
        with storing():
            svg = (place / "accuracy.svg").read_text("utf-8")
            (place / PAGE).write_text(self.html(svg[svg.index("<svg") :]), "utf-8")
            (place / FACTS).write_text(as_json(self.facts()), "utf-8")
            (place / RECORD).write_text(as_json({"kind": "Robustness page", "network": self.name}), "utf-8")

    def html(self, drawing: str = "") -> str:
        """The page, with the plot as SVG."""
        return page("robustness.html", report=self, drawing=drawing)

    def _figure(self) -> Any:
        with extra("robustness"):
            from matplotlib.figure import Figure  # noqa: PLC0415 (an extra)
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        self.plot(figure.add_subplot())
        return figure

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{escaped(self.html())}" style="width:100%;height:60vh;border:0"></iframe>'


def robustness(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    labels: Sequence[int],
    *,
    attacks: Sequence[str] = DEFAULT,
    epsilons: Sequence[float | str] = RADII,
    defences: Sequence[str] = (),
    steps_each: int | None = None,
    known: Mapping[str, Sequence[bool]] | None = None,
    keep: Callable[[Cells], None] | None = None,
) -> Robustness:
    """The accuracy over ε under attacks, of the model and of the model behind each defence.

    A photo counts as right if the network sees its label, and still does after the attack: the share is of
    all photos. Attacks on a defended model know the defence; beside them stand those made on the plain model
    and tried on the defended one. A defence is a text such as `blur`, `noise=0.1,samples=8` or
    `jpeg,strength=50` (see `defended`). `steps_each` is the number of steps of every attack that takes some.

    `keep` is called after each batch with what is done so far, which `known` takes to go on from there. The
    checks of the honest protocol follow (docs/robustness.md); what fails is among the `cautions`.

    Raises `InputError` on bad settings, and without `opsin[robustness]`.
    """
    tensors.check(images)
    if len(labels) != len(images):
        raise InputError(f"{len(labels)} labels for {len(images)} photos: give one for each")
    if model.classes is None:
        raise InputError(f"{model.name} gives no class, so it has no accuracy")
    chosen = attacks_of(attacks)
    parameter = catalogue.get("fgsm").parameters["epsilon"]
    radii = list(dict.fromkeys(float(checked("robustness", parameter, epsilon)) for epsilon in epsilons))
    sides = contenders(model, defences)
    cells: Cells = {name: list(rows) for name, rows in (known or {}).items()}
    work = [
        (side, kind, attack, epsilon, begin)
        for side in sides
        for kind, attack, epsilon in _kinds(side, chosen, radii)
        for begin in range(0, len(images), TOGETHER)
    ]
    for side, kind, attack, epsilon, begin in steps(work, len(work), "robustness"):
        rows = cells.setdefault(_key(side.name, kind, attack, epsilon), [])
        if len(rows) > begin:
            continue
        part = images[begin : begin + TOGETHER], [int(label) for label in labels[begin : begin + TOGETHER]]
        with within(listener=None):
            if attack == CLEAN:
                rows += _right(side.model, *part)
            else:
                after = _right_after(side, kind, attack, epsilon, *part, steps_each)
                clean = cells[_key(side.name, "aware", CLEAN, 0.0)][begin : begin + TOGETHER]
                rows += [before and now for before, now in zip(clean, after, strict=True)]
        if keep is not None:
            keep(cells)
    cautions: list[str] = []
    found = tuple(
        Cell(side.name, kind, attack, epsilon, sum(rows), len(rows))
        for side in sides
        for kind, attack, epsilon in _kinds(side, chosen, radii)
        for rows in [cells[_key(side.name, kind, attack, epsilon)]]
    )
    few = images[:TOGETHER], [int(label) for label in labels[:TOGETHER]]
    for side in sides:
        own = {(c.kind, c.attack, c.epsilon): c.accuracy for c in found if c.defence == side.name}
        with within(listener=None):
            cautions += warnings(side, own, *few)
    return Robustness(model.name, len(images), found, tuple(cautions))


def fingerprint(model: Model, images: Tensor, labels: Sequence[int], steps_each: int | None) -> str:
    """What the cells of an evaluation depend on besides their own names."""
    digest = hashlib.sha256(model.weigh().fingerprint.encode())
    digest.update(images.detach().cpu().contiguous().numpy().data)
    digest.update(repr((list(labels), steps_each, model.mean, model.std)).encode())
    return digest.hexdigest()


def _kinds(side: Contender, attacks: list[str], radii: list[float]) -> list[tuple[str, str, float]]:
    """What is measured of a contender: kind, attack and ε."""
    unaware = [] if side.name == NONE else [a for a in attacks if a != NOISE]  # which asks no network
    rows = [*(("unaware", attack) for attack in unaware), *(("aware", attack) for attack in attacks)]
    return [("aware", CLEAN, 0.0), *((kind, attack, e) for kind, attack in rows for e in radii)]


def _written(cell: Cell) -> str:
    low, high = cell.between
    return f"{100 * cell.accuracy:.1f} % ({100 * low:.0f} to {100 * high:.0f})"


def _key(defence: str, kind: str, attack: str, epsilon: float) -> str:
    return f"{defence}|{kind}|{attack}|{epsilon!r}"


def _right_after(
    side: Contender,
    kind: str,
    attack: str,
    epsilon: float,
    images: Tensor,
    labels: list[int],
    each: int | None,
) -> list[bool]:
    """Of each photo, whether the contender sees its label after the attack."""
    made_on = side.model if kind == "aware" else side.plain
    result = attacked(attack, made_on, images, labels, epsilon, each)
    return _right(side.model, result.attacked.to(images), labels)


def _right(model: Model, images: Tensor, labels: list[int]) -> list[bool]:
    seen = model.run(images)["output"].argmax(1).tolist()
    return [one == label for one, label in zip(seen, labels, strict=True)]
