"""What defences are worth: a network on scikit-learn's digits, each defence under an attack that knows it.

    python benchmarks/digits.py            # about 15 minutes on one core: five seeds
    python benchmarks/digits.py --quick    # a smoke test, its numbers mean nothing

Writes digits.md and digits.json beside this file.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import opsin
from opsin.training.losses import adversarial_loss, noisy_loss, plain_loss, stability_loss

OUTPUT = Path(__file__).with_suffix(".md")
EPSILON, NOISE, BATCH, EPOCHS, SEEDS = 0.15, 0.2, 100, 30, 5
TRIED = 300  # digits that were not trained on
Loss = Callable[[opsin.Model, Tensor, Tensor, torch.Generator], Tensor]
LOSSES: dict[str, Loss] = {
    "none": lambda m, x, y, _: plain_loss(m, x, y),
    "noise in training": lambda m, x, y, draw: noisy_loss(m, x, y, noise=NOISE, draw=draw),
    "stability, output": lambda m, x, y, draw: stability_loss(m, x, y, noise=NOISE, weight=1.0, draw=draw),
    "stability, a layer": lambda m, x, y, draw: stability_loss(
        m, x, y, noise=NOISE, weight=0.1, layers=("6",), draw=draw
    ),
    "adversarial training": lambda m, x, y, draw: adversarial_loss(
        m, x, y, epsilon=EPSILON, steps=7, draw=draw
    ),
}
WARNING = "**A smoke test: these numbers mean nothing.**"
COLUMNS = ("clean", "noise", "FGSM", "PGD-20", "adaptive PGD-20")


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1).contiguous()
    return images, torch.tensor(data.target)


def model_of(net: nn.Module) -> opsin.Model:
    return opsin.Model(net, mean=[0.5], std=[0.5], size=8, labels=[f"digit {k}" for k in range(10)])


def trained(loss: Loss, images: Tensor, labels: Tensor, seed: int, epochs: int) -> opsin.Model:
    torch.manual_seed(seed)
    net, draw = network(), torch.Generator().manual_seed(seed)
    model = model_of(net)
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=draw).split(BATCH):
            optimiser.zero_grad()
            loss(model, images[rows], labels[rows], draw).backward()
            optimiser.step()
    return model


def linear(images: Tensor, labels: Tensor) -> opsin.Model:
    """scikit-learn's softmax classifier, as a network."""
    flat = images[:, 0].flatten(1).numpy()
    fitted = LogisticRegression(max_iter=2000).fit(flat, labels.numpy())
    head = nn.Linear(64, 10)
    head.weight.data, head.bias.data = (
        torch.tensor(v, dtype=torch.float32) for v in (fitted.coef_, fitted.intercept_)
    )
    net = nn.Sequential(nn.Flatten(), head)
    return opsin.Model(net, mean=[0.0], std=[1.0], size=8)


def accuracy(model: opsin.Model, images: Tensor, labels: Tensor) -> float:
    return float((model.run(images)["output"].argmax(1) == labels).float().mean())


def row(model: opsin.Model, images: Tensor, labels: Tensor, plain: opsin.Model | None = None) -> list[float]:
    """The accuracy under each attack; with a `plain` model, the attacks but the last are made on that one."""
    attacked = model if plain is None else plain
    given = {"epsilon": EPSILON, "label": labels.tolist()}
    pgd = {**given, "steps": 20}
    found = [accuracy(model, images, labels)]
    noise = opsin.random_noise(attacked, images, **given, samples=1)
    for attack in (noise, opsin.fgsm(attacked, images, **given), opsin.pgd(attacked, images, **pgd)):
        found.append(accuracy(model, attack.attacked, labels))
    return [*found, accuracy(model, opsin.pgd(model, images, **pgd).attacked, labels)]


def measured(quick: bool) -> dict[str, list[list[float]]]:
    images, labels = digits()
    found: dict[str, list[list[float]]] = {}
    for seed in range(2 if quick else SEEDS):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        out, into = order[:TRIED], order[TRIED:]
        test = (images[out], labels[out])
        models = {}
        for name, loss in LOSSES.items():
            begun = time.process_time()
            models[name] = trained(loss, images[into], labels[into], seed, 1 if quick else EPOCHS)
            found.setdefault(name, []).append(row(models[name], *test))
            print(seed, name, found[name][-1], f"{time.process_time() - begun:.0f} s", file=sys.stderr)
        plain = models["none"]
        for name, defended in {
            "blur on the input": opsin.defended(plain, smooth="blur", strength=0.7),
            "median on the input": opsin.defended(plain, smooth="median"),
            "JPEG on the input": opsin.defended(plain, smooth="jpeg"),
            "noise on the input, 8 samples": opsin.defended(plain, noise=NOISE, samples=8, seed=seed),
        }.items():
            found.setdefault(name, []).append(row(defended, *test, plain=plain))
            print(seed, name, found[name][-1], file=sys.stderr)
        softmax = linear(images[into], labels[into])
        found.setdefault("a linear softmax classifier", []).append(row(softmax, *test))
    return found


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def claims(found: dict[str, list[list[float]]]) -> list[tuple[str, bool]]:
    """What the papers claim, and whether it is seen in the means."""
    at = {name: [mean(v) for v in zip(*rows, strict=True)] for name, rows in found.items()}
    under = {name: values[4] for name, values in at.items()}
    trained_on = under["adversarial training"]
    smoothed = [name for name in under if "on the input" in name]
    return [
        (
            "PGD leaves less than FGSM, FGSM less than noise, of the plain network",
            at["none"][3] < at["none"][2] < at["none"][1],
        ),
        (
            "adversarial training leaves most under the adaptive attack",
            all(trained_on >= value for value in under.values()),
        ),
        ("noise in training leaves more than none", under["noise in training"] > under["none"]),
        (
            "stability training leaves more than none",
            max(under["stability, output"], under["stability, a layer"]) > under["none"],
        ),
        (
            "every defence on the input leaves less under the attack that knows it",
            all(at[name][4] < at[name][3] for name in smoothed),
        ),
        (
            "the linear classifier is fooled by FGSM, and not by noise of that size",
            at["a linear softmax classifier"][2] < 0.5 < at["a linear softmax classifier"][1],
        ),
    ]


def report(found: dict[str, list[list[float]]], quick: bool) -> str:
    rows = []
    for name, runs in found.items():
        columns = list(zip(*runs, strict=True))
        rows.append([name, *(f"{100 * mean(c):.1f} ± {100 * stdev(c):.1f}" for c in columns)])
    seen = "\n".join(f"- {claim}: {'seen' if ok else '**not seen**'}" for claim, ok in claims(found))
    seeds = len(next(iter(found.values())))
    about = (
        f"Accuracy in per cent on {TRIED} of scikit-learn's digits that were not trained on, mean and "
        f"deviation\nof {seeds} seeds. Attacks and random signs change no value by more than "
        f"ε = {EPSILON} of [0, 1]. Two\nconvolutions and two linear layers, {EPOCHS} epochs; noise of "
        f"deviation {NOISE}. Made by `benchmarks/digits.py`.\n\n"
        "In rows of defences on the input, FGSM and PGD-20 are made on the undefended network: the attack\n"
        "does not know the defence. In the last column it does (EOT over 8 samples, BPDA through JPEG)."
    )
    parts = ["# What defences are worth, on digits", *([WARNING] if quick else []), about]
    parts += [table(["defence", *COLUMNS], rows), "What the papers claim:", seen]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="one epoch, two seeds, into the temporary folder"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    output = Path(tempfile.gettempdir()) / OUTPUT.name if options.quick else OUTPUT
    found: dict[str, Any] = measured(options.quick)
    output.write_text(report(found, options.quick), "utf-8")
    output.with_suffix(".json").write_text(json.dumps(found) + "\n", "utf-8")


if __name__ == "__main__":
    main()
