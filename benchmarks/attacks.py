"""What attacks find: on photos, beside noise of their size, and beside foolbox and torchattacks.

    python benchmarks/attacks.py                        # about 40 minutes on two cores
    python benchmarks/attacks.py --parts universal      # this part anew, the rest as it was measured
    python benchmarks/attacks.py --quick                # a smoke test, its numbers mean nothing

The photos are those of `../shared/data`; a part that needs them says so where they are missing. Times: the
contenders take turns, and a ratio is the median of the rounds' own ratios.
"""

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import opsin

OUTPUT = Path(__file__).with_suffix(".md")
PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "images" / "imagenet-samples-dev200"
EPSILONS = (1, 2, 4, 8)  # 255ths
MANY, TOGETHER = 50, 10  # photos, and how many at once
# attacks of the first table, with what makes them quick
ATTACKS: dict[str, dict[str, Any]] = {
    "random_noise": {"samples": 1},
    "fgsm": {},
    "pgd": {"steps": 10, "stop": True},
    "apgd": {"steps": 10},
    "square": {"steps": 25},
}
# with so few photos DeepFool's own steps would not fill the ball
UNIVERSAL: dict[str, Any] = {"passes": 3, "candidates": 3, "steps": 3, "overshoot": 30.0}
Raw = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A table of the page: how it is measured, and shown."""

    title: str
    measure: Callable[[bool], Raw]
    show: Callable[[Raw], str]


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def photos(model: opsin.Model, first: int, last: int) -> tuple[Tensor, list[int]]:
    """Some of the photos in the order of their names, every fourth first, with their labels."""
    with (PHOTOS / "labels.csv").open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["file"])
    mixed = [row for offset in range(4) for row in rows[offset::4]][first:last]
    return opsin.read([PHOTOS / row["file"] for row in mixed], model), [int(row["label"]) for row in mixed]


# --- success on photos


def success(quick: bool) -> Raw:
    model = opsin.load("googlenet")
    many = 4 if quick else MANY
    images, labels = photos(model, 0, many)
    found: Raw = {"photos": many, "right": 0, "attacks": {}, "deepfool": {}}
    parts = [slice(i, i + TOGETHER) for i in range(0, many, TOGETHER)]
    for name, given in ATTACKS.items():
        for epsilon in EPSILONS:
            row = {"success": 0, "rounded": 0, "right": 0}
            for part in parts:
                attack = getattr(opsin, name)(
                    model, images[part], epsilon=f"{epsilon}/255", label=labels[part], **given
                )
                row["success"] += sum(attack.success)
                row["rounded"] += sum(outcome.survives for outcome in attack.outcomes)
                row["right"] += sum(outcome.right for outcome in attack.outcomes)
            found["attacks"].setdefault(name, {})[str(epsilon)] = row
            print(name, epsilon, row, file=sys.stderr, flush=True)
    lengths, rhos = [], []
    for part in parts:
        attack = opsin.deepfool(model, images[part], label=labels[part])
        right = [outcome.right for outcome in attack.outcomes]
        lengths += [float(v) for v, ok in zip(attack.length, right, strict=True) if ok]
        rhos += [float(v) for v, ok in zip(attack.numbers["rho"], right, strict=True) if ok]
        noise = opsin.random_noise(model, images[part], l2=5.0, samples=1, label=labels[part])
        found["deepfool"]["noise"] = found["deepfool"].get("noise", 0) + sum(noise.success)
    found["right"] = len(lengths)
    found["deepfool"] |= {"median_l2": median(lengths), "median_rho": median(rhos)}
    return found


def show_success(raw: Raw) -> str:
    rows = []
    for name, by_epsilon in raw["attacks"].items():
        cells = [f"{row['success']} ({row['rounded']})" for row in by_epsilon.values()]
        settings = ", ".join(f"{key}={value}" for key, value in ATTACKS[name].items())
        rows.append([f"{name} {settings}".strip(), *cells])
    heads = ["attack", *(f"ε = {epsilon}/255" for epsilon in EPSILONS)]
    return (
        f"GoogLeNet, {raw['photos']} photos of dev200 with their labels, of which it sees {raw['right']} "
        "rightly: how many of these are\nfooled, in brackets those that still are when rounded to 8 bits.\n\n"
        f"{table(heads, rows)}\n\n"
        f"DeepFool: median L2 {raw['deepfool']['median_l2']:.3g}, median ρ = ‖r‖/‖x‖ "
        f"{raw['deepfool']['median_rho']:.2g}. Random noise of L2 5.0 fools on "
        f"{raw['deepfool']['noise']}."
    )


# --- one change for all photos


def one_for_all(quick: bool) -> Raw:
    model = opsin.load("googlenet")
    made, _ = photos(model, 0, 4 if quick else MANY)
    tried, _ = photos(model, MANY, MANY + (4 if quick else 150))
    attack = opsin.universal(model, made, epsilon="10/255", held=0.0, rate=0.95, **UNIVERSAL)
    change = attack.shared["change"]
    noise = change.abs().max() * torch.randn(change.shape, generator=torch.Generator().manual_seed(0)).sign()
    found = {"made": len(made), "made_fooled": sum(attack.success), "tried": len(tried)}
    for name, moved in (("change", change), ("noise", noise)):
        found[name] = sum(
            int((top(model, part) != top(model, (part + moved).clamp(0, 1))).sum())
            for part in tried.split(TOGETHER)
        )
    return found


def top(model: opsin.Model, images: Tensor) -> Tensor:
    return model.run(images)["output"].argmax(1)


def show_universal(raw: Raw) -> str:
    return (
        f"GoogLeNet, ε = 10/255, made on {raw['made']} photos with an overshoot of 30. It fools on "
        f"{raw['made_fooled']} of these, and on {raw['change']} of {raw['tried']} other photos\n"
        f"({100 * raw['change'] / raw['tried']:.1f} %); random signs of the same size change the class of "
        f"{raw['noise']} of them "
        f"({100 * raw['noise'] / raw['tried']:.1f} %)."
    )


# --- the cost of a step


class Normalised(nn.Module):
    """The network with its normalisation inside, as foolbox and torchattacks take it."""

    def __init__(self, model: opsin.Model) -> None:
        super().__init__()
        self.net = model.network
        self.mean, self.std = model.statistics()

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


def cost(quick: bool) -> Raw:
    import foolbox

    model = opsin.load("googlenet")
    net = Normalised(model).eval().requires_grad_(False)
    images = torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    labels = net(images).argmax(1)
    few, many = 2, (3 if quick else 8)
    bounded = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")

    def floor(steps: int) -> None:
        for _ in range(steps):
            x = images.clone().requires_grad_()
            torch.autograd.grad(nn.functional.cross_entropy(net(x), labels, reduction="sum"), x)

    def ours(steps: int) -> None:
        ball = {"epsilon": 0.03, "steps": steps, "rate": 0.01}
        opsin.pgd(model, images, **ball, random_start=False, label=labels.tolist())

    def fools(steps: int) -> None:
        attack = foolbox.attacks.LinfPGD(abs_stepsize=0.01, steps=steps, random_start=False)
        attack.run(bounded, images, foolbox.criteria.Misclassification(labels), epsilon=0.03)

    def torchs(steps: int) -> None:
        import torchattacks

        torchattacks.PGD(net, eps=0.03, alpha=0.01, steps=steps, random_start=False)(images, labels)

    contenders = {"floor": floor, "opsin": ours, "foolbox": fools}
    if find_spec("torchattacks"):  # which asks for an old version of requests
        contenders["torchattacks"] = torchs
    rounds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(2 if quick else 5):
        for name, run in contenders.items():
            seconds = []
            for steps in (few, many):
                begun = time.process_time()
                run(steps)
                seconds.append(time.process_time() - begun)
            if number:  # the first warms up
                rounds[name].append((seconds[1] - seconds[0]) / (many - few))
    return rounds


def show_cost(raw: Raw) -> str:
    rows = []
    for name, seconds in raw.items():
        ratios = [own / base for own, base in zip(seconds, raw["floor"], strict=True)]
        rows.append([name, f"{1000 * median(seconds):.0f}", f"{median(ratios):.2f}"])
    return (
        "Processor time of one more step of PGD, GoogLeNet, 4 photos of 224 pixels, one thread. The floor is "
        "one forward and\none backward pass to the input with frozen weights.\n\n"
        + table(["", "ms a step", "÷ floor"], rows)
    )


# --- success beside the peers


def peers(quick: bool) -> Raw:
    import foolbox

    model = opsin.load("googlenet")
    images, labels = photos(model, 0, 4 if quick else MANY)
    net = Normalised(model).eval().requires_grad_(False)
    bounded = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    epsilon, steps = 0.25 / 255, 5
    rate = epsilon / 4
    found = {"steps": steps, "right": 0, "opsin": 0, "foolbox": 0}
    for first in range(0, len(images), TOGETHER):
        part, own = images[first : first + TOGETHER], torch.tensor(labels[first : first + TOGETHER])
        given = {"epsilon": epsilon, "steps": steps, "rate": rate, "random_start": False}
        attack = opsin.pgd(model, part, **given, label=own.tolist())
        right = torch.tensor([outcome.right for outcome in attack.outcomes])
        found["right"] += int(right.sum())
        found["opsin"] += sum(attack.success)
        linf = foolbox.attacks.LinfPGD(abs_stepsize=rate, steps=steps, random_start=False)
        goal = foolbox.criteria.Misclassification(own)
        others = {"foolbox": linf.run(bounded, part, goal, epsilon=epsilon)}
        if find_spec("torchattacks"):
            import torchattacks

            pgd = torchattacks.PGD(net, eps=epsilon, alpha=rate, steps=steps, random_start=False)
            others["torchattacks"] = pgd(part, own)
        for name, moved in others.items():
            found[name] = found.get(name, 0) + int(((net(moved).argmax(1) != own) & right).sum())
    return found


def show_peers(raw: Raw) -> str:
    names = [name for name in ("opsin", "foolbox", "torchattacks") if name in raw]
    return (
        f"GoogLeNet, ε = 0.25/255, {raw['steps']} steps of ε/4 from the photo, of {raw['right']} photos that "
        "are seen rightly:\n" + ", ".join(f"{name} fools on {raw[name]}" for name in names) + "."
    )


PARTS = {
    "success": Part("Success on photos", success, show_success),
    "universal": Part("One change for all photos", one_for_all, show_universal),
    "peers": Part("Success beside the peers", peers, show_peers),
    "cost": Part("The cost of a step", cost, show_cost),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="few photos, into the temporary folder")
    options = parser.parse_args()
    output = Path(tempfile.gettempdir()) / OUTPUT.name if options.quick else OUTPUT
    kept = output.with_suffix(".json")
    stored = json.loads(kept.read_text("utf-8")) if kept.exists() and not options.quick else {}
    torch.set_num_threads(1)
    for name in options.parts:
        begun = time.perf_counter()
        stored[name] = PARTS[name].measure(options.quick)
        sections = [f"## {p.title}\n\n{p.show(stored[n])}\n" for n, p in PARTS.items() if n in stored]
        head = f"# Attacks\n\ntorch {torch.__version__}, CPU, float32. Made by `benchmarks/attacks.py`.\n"
        output.write_text("\n".join([head, *sections]), "utf-8")
        kept.write_text(json.dumps(stored) + "\n", "utf-8")
        print(f"{time.perf_counter() - begun:6.0f} s  {name}", file=sys.stderr)


if __name__ == "__main__":
    main()
