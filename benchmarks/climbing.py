"""What the climbing techniques cost and reach: steps beside their floor, pictures, errors, memory.

    python benchmarks/climbing.py                        # about 30 minutes on two cores
    python benchmarks/climbing.py --parts cost memory    # these parts anew, the rest as it was measured
    python benchmarks/climbing.py --quick                # a smoke test, its numbers mean nothing

Contenders take turns (A, B, C, A, B, C, ...), so that whatever else the machine does meets all of
them alike. Times are medians over the rounds; a ratio is the median of the rounds' own ratios.
"""

import argparse
import csv
import ctypes
import gc
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from attribution import Rounds, high_water, hold_on_to_memory, table
from contenders import STRIDE, Case, make_case
from PIL import Image
from safetensors.torch import load_file
from skimage import data
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

import opsin
from opsin.base.job import Step
from opsin.images.photos import open_photo
from opsin.images.tensors import longest, resized
from opsin.network.shortcuts.pooling import AveragePooling
from opsin.objectives.objective import Objective
from opsin.optimise.textures import first_activations, likeness, noise
from opsin.techniques.texture.style_transfer import wish

OUTPUT = Path(__file__).with_suffix(".md")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
STUBS = SHARED / "images" / "imagenet-stubs"
LABELLED = SHARED / "images" / "imagenet-val-boxes-dev300"
GOOGLENET = SHARED / "weights" / "bvlc_googlenet_fp16.safetensors"
PACKAGES = ("torch", "torchvision", "timm", "torch-lucent")
CLASSIFIER, VGG = "efficientnet_lite0", "vgg16_features"
SIDE, DREAM_SIDE, STYLE_SIDE = 224, 512, 256  # pixels
FIRST, EARLY, MIDDLE, LAST, DREAMT, STYLED = (
    "conv_stem",
    "blocks.1",
    "blocks.3",
    "classifier",
    "blocks.4",
    "relu5_1",
)
SEVERAL = 16  # channels at once
SKIPPED = 3  # steps before the clock starts: they allocate, and L-BFGS has no memory yet
TIMED = 5  # steps of a round
COST_LIMIT, SURE, SHARE_LIMIT = 1.15, 0.99, 0.01  # goals
CLASSES = tuple(range(7, 1000, 50))
AT_ONCE = 10  # classes, or photos
DEPTHS = "conv_stem, blocks.1, blocks.2, blocks.3, blocks.4, blocks.5, classifier"  # ends of blocks
CHECKED = 100  # labelled photos
TEXTURES = ("brick", "grass", "gravel")
RATIO = 1e-2  # of content to style, the default
MARKS = (1, 10, 20, 50, 100, 200)  # steps at which the loss of a style transfer is told
PEAKS = (
    ("style_transfer", 256),
    ("style_transfer", 512),
    ("style_transfer", 1024),
    ("deepdream", 1024),
    ("deepdream", 2048),
)
TINY = 64  # pixels: what warms a process up
FEW = 2  # steps of a smoke test

Raw = Any  # what JSON holds


def say(text: str) -> None:
    """A line of progress."""
    print(f"        {text}", file=sys.stderr, flush=True)


def picture(name: str, *size: int) -> Tensor:
    """A sample photo of scikit-image or scikit-learn (1, 3, h, w), at `size` (h, w) if given."""
    array = load_sample_image(name) if name.endswith(".jpg") else getattr(data, name)()
    photo = Image.fromarray(array).convert("RGB")
    photo = photo.resize(size[::-1], Image.Resampling.LANCZOS) if size else photo
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float() / 255  # (h, w, 3) -> (1, 3, h, w)


# The cost of a step


@dataclass(frozen=True)
class Subject:
    """One row: Opsin's call of so many steps, and the layer and images of its floor."""

    case: Case
    climb: Callable[[int], object]
    peer: bool = False  # lucent has the technique

    def network(self) -> nn.Module:
        """A frozen twin, its pools averaging where Opsin averages."""
        network = self.case.network()
        for name, module in network.named_children():
            if self.case.model.name == VGG and isinstance(module, nn.MaxPool2d):
                setattr(network, name, nn.AvgPool2d(2))
        return network


def visualised(layer: str, batch: int) -> Subject:
    """The first channels of a layer, or of the classifier the first classes, by feature visualisation."""
    case = make_case(CLASSIFIER, batch)
    targets = [i if layer == LAST else f"{layer}:{i}" for i in range(batch)]
    call = partial(opsin.feature_visualization, case.model, targets)
    return Subject(Case(case.model, case.images, [], layer, STRIDE), lambda n: call(steps=n), peer=True)


def dreamt() -> Subject:
    """DeepDream's last octave."""
    model, photo = opsin.load(CLASSIFIER), picture("astronaut", DREAM_SIDE, DREAM_SIDE)
    call = partial(opsin.deepdream, model, photo, layers=DREAMT, octaves=1)
    return Subject(Case(model, photo, [], DREAMT, STRIDE), lambda n: call(steps=n))


def inverted() -> Subject:
    """A middle layer, inverted."""
    case = make_case(CLASSIFIER, 1)
    call = partial(opsin.inversion, case.model, case.images, layers=MIDDLE)
    return Subject(Case(case.model, case.images, [], MIDDLE, STRIDE), lambda n: call(steps=n))


def styled(optimiser: str) -> Subject:
    """Style transfer at its first scale."""
    model, photo = opsin.load(VGG), picture("astronaut", STYLE_SIDE, STYLE_SIDE)
    style = picture("flower.jpg", STYLE_SIDE, STYLE_SIDE)
    call = partial(opsin.style_transfer, model, photo, [style], size=STYLE_SIDE, optimiser=optimiser)
    return Subject(Case(model, photo, [], STYLED, STRIDE), lambda n: call(steps=n))


VISUALISED = {
    f"feature_visualization, {layer}, {batch} at once": partial(visualised, layer, batch)
    for batch in (1, SEVERAL)
    for layer in (FIRST, EARLY, MIDDLE, LAST)
}
SUBJECTS: dict[str, Callable[[], Subject]] = {
    **VISUALISED,
    f"deepdream, {DREAMT}, {DREAM_SIDE} px": dreamt,
    f"inversion, {MIDDLE}": inverted,
    f"style_transfer, Adam, {STYLE_SIDE} px": partial(styled, "adam"),
    f"style_transfer, L-BFGS, {STYLE_SIDE} px": partial(styled, "lbfgs"),
}


@dataclass(frozen=True)
class Cost:
    """Seconds a step, by contender and round; forwards a step of Opsin's."""

    name: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    forwards: list[float] = field(default_factory=list)
    error: str = ""  # lucent's

    def ratio(self, rival: str = "floor", *, per_forward: bool = False) -> float:
        """Opsin's time as a share of the rival's."""
        parts = self.forwards if per_forward else [1.0] * len(self.forwards)
        rounds = zip(self.seconds["Opsin"], self.seconds[rival], parts, strict=True)
        return median(own / other / part for own, other, part in rounds)


def watched(
    model: opsin.Model, run: Callable[[], object], marks: tuple[int, ...] = ()
) -> tuple[list[tuple[float, int]], dict[int, Tensor]]:
    """When each step of a climb ended, after how many forwards; the pictures after the marked steps."""
    forwards, seen, kept = [0], [], {}

    def count(*_: object) -> None:
        forwards[0] += 1

    def listen(step: Step) -> None:
        if step.done in marks and step.images:
            kept[step.done] = step.images()
        seen.append((time.perf_counter(), forwards[0]))

    handle = model.network.register_forward_pre_hook(count)
    try:
        with opsin.listening(listen):
            run()
    finally:
        handle.remove()
    return seen, kept


def opsin_step(subject: Subject, steps: int) -> tuple[float, float]:
    """Seconds and forwards of a step of Opsin's technique, between its first steps and its end."""
    seen, _ = watched(subject.case.model, lambda: subject.climb(SKIPPED + steps))
    (begun, before), (ended, after) = seen[SKIPPED - 1], seen[-1]
    return (ended - begun) / steps, (after - before) / steps


class Reached(Exception):  # noqa: N818 (no error)
    """Ends a forward behind the wanted layer."""


def floor(subject: Subject) -> Callable[[], Tensor]:
    """One forward up to the layer, one backward to the input."""
    network, x, kept = subject.network(), subject.case.inputs.requires_grad_(), []

    def stop(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept.append(output)
        raise Reached

    network.get_submodule(subject.case.layer).register_forward_hook(stop)

    def run() -> Tensor:
        with suppress(Reached):
            network(x)
        return torch.autograd.grad(kept.pop().square().sum(), x)[0]

    return run


def floor_step(run: Callable[[], Tensor], steps: int) -> float:
    """Seconds of a forward and a backward."""
    begun = time.perf_counter()
    for _ in range(steps):
        run()
    return (time.perf_counter() - begun) / steps


class Stamped(torch.optim.Adam):
    """Adam that notes when each of its steps ended."""

    def __init__(self, parameters: list[Tensor], ended: list[float]) -> None:
        super().__init__(parameters, lr=0.05)
        self.ended = ended

    def step(self, closure: Any = None) -> Any:
        """A step, and its end."""
        loss = super().step(closure)
        self.ended.append(time.perf_counter())
        return loss


def lucent_step(subject: Subject, steps: int) -> float:
    """Seconds of a step of torch-lucent's `render_vis` on the same channels, with its own transforms."""
    from lucent.optvis import objectives, param, render, transform

    case, ended = subject.case, []
    name, batch = case.layer.replace(".", "_"), len(case.images)
    centre, spread = case.model.statistics()
    render.render_vis(
        case.network(trainable=True),
        objectives.Objective.sum([objectives.channel(name, i, batch=i) for i in range(batch)]),
        lambda: param.image(SIDE, batch=batch),
        optimizer=lambda parameters: Stamped(parameters, ended),
        transforms=[*transform.standard_transforms, lambda images: (images - centre) / spread],
        thresholds=(SKIPPED + steps,),
        preprocess=False,
        progress=False,
        show_image=False,
    )
    return (ended[-1] - ended[SKIPPED - 1]) / steps


def cost(name: str, quick: bool) -> Cost:
    """Time one row."""
    subject, found = SUBJECTS[name](), Cost(name)
    run, steps = floor(subject), 1 if quick else TIMED

    def opsin_timed() -> float:
        seconds, forwards = opsin_step(subject, steps)
        found.forwards.append(forwards)
        return seconds

    contenders = {"floor": partial(floor_step, run, steps), "Opsin": opsin_timed}
    if subject.peer:
        try:
            lucent_step(subject, 1)
            contenders["torch-lucent"] = partial(lucent_step, subject, steps)
        except Exception as error:  # whatever it does not get along with here
            found = Cost(name, error=f"{type(error).__name__}: {error}".splitlines()[0])
    begun = time.perf_counter()
    for one in contenders.values():  # warms up
        one()
    found.forwards.clear()
    rounds = Rounds(1, 1, 0) if quick else Rounds(3, 12, 20)
    found.seconds.update({who: [] for who in contenders})
    for _ in rounds.fitting(time.perf_counter() - begun):
        gc.collect()
        for who, one in contenders.items():
            found.seconds[who].append(one())
    return found


def measure_cost(quick: bool) -> Raw:
    """All rows; of a smoke test every third."""
    rows = []
    for name in list(SUBJECTS)[:: 3 if quick else 1]:
        rows.append(cost(name, quick))
        say(f"{name}: {rows[-1].ratio():.2f} of the floor")
    return [asdict(row) for row in rows]


def show_cost(raw: Raw) -> str:
    """The tables of the costs."""
    lines = []
    for row in (Cost(**one) for one in raw):
        times = [f"{1000 * median(row.seconds[who]):,.1f}" for who in ("floor", "Opsin")]
        peer = row.seconds.get("torch-lucent")
        theirs = [f"{1000 * median(peer):,.1f}", f"{row.ratio('torch-lucent'):.2f}"] if peer else ["", ""]
        ratios = [f"{row.ratio():.2f}", f"{mean(row.forwards):.2f}", f"{row.ratio(per_forward=True):.2f}"]
        lines.append([row.name, *times, *ratios, *theirs, str(len(row.forwards))])
    head = ["climb", "floor, ms", "Opsin, ms", "÷ floor", "forwards a step", "÷ that many floors"]
    failed = {one["error"] for one in raw if one["error"]}
    notes = [f"\ntorch-lucent does not run here: {error}\n" for error in sorted(failed)]
    return (
        COST + "\n" + table([*head, "torch-lucent, ms", "÷ torch-lucent", "rounds"], lines) + "".join(notes)
    )


COST = f"""\
Seconds between the steps of the technique as a user calls it, the first {SKIPPED} left out, {TIMED} a round;
all else it does before and after is not counted. The floor is plain torch, contiguous, images normalised,
weights frozen: one forward that ends behind the last wanted layer, one backward from the sum of its squares
to the input. Pools average where Opsin's do. {CLASSIFIER} at {SIDE} px, {VGG} for style_transfer. An L-BFGS
step may evaluate several times in its line search. torch-lucent has the same channels and size, its own
transforms, and the network as loaded.
"""


# Pictures of classes


class GoogLeNet(nn.Module):
    """BVLC's GoogLeNet, its weights under Caffe's names; takes images in [0, 1]."""

    mean = (104.0, 117.0, 123.0)  # blue, green, red in 0..255

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.weights = {name: value.float() for name, value in load_file(path).items()}

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        """A convolution that keeps the size, and its rectifier."""
        weight = self.weights[f"{name}.weight"]
        padding = weight.shape[-1] // 2
        return F.conv2d(x, weight, self.weights[f"{name}.bias"], stride, padding).relu()

    def inception(self, name: str, x: Tensor) -> Tensor:
        """The four branches of a module."""
        branches = [
            self.conv(f"{name}/1x1", x),
            self.conv(f"{name}/3x3", self.conv(f"{name}/3x3_reduce", x)),
            self.conv(f"{name}/5x5", self.conv(f"{name}/5x5_reduce", x)),
            self.conv(f"{name}/pool_proj", F.max_pool2d(x, 3, 1, 1)),
        ]
        return torch.cat(branches, 1)

    def forward(self, images: Tensor) -> Tensor:
        """The probabilities (n, 1000)."""
        x = 255 * images.flip(1) - images.new_tensor(self.mean).view(-1, 1, 1)
        x = F.max_pool2d(self.conv("conv1/7x7_s2", x, 2), 3, 2, ceil_mode=True)
        x = self.conv("conv2/3x3_reduce", F.local_response_norm(x, 5, 1e-4, 0.75))
        x = F.local_response_norm(self.conv("conv2/3x3", x), 5, 1e-4, 0.75)
        for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
            x = F.max_pool2d(x, 3, 2, ceil_mode=True) if name in ("3a", "4a", "5a") else x
            x = self.inception(f"inception_{name}", x)
        classifier = (self.weights[f"loss3/classifier.{kind}"] for kind in ("weight", "bias"))
        return F.linear(x.mean((2, 3)), *classifier).softmax(1)


def labelled(n: int) -> tuple[Tensor, Tensor]:
    """The first labelled photos, cropped to 224, and their classes."""
    with (LABELLED / "boxes.csv").open(encoding="utf-8") as file:
        classes = {row["file"]: int(row["label"]) for row in csv.DictReader(file)}
    files = list(classes)[:n]
    photos = [np.array(open_photo(LABELLED / "images" / name)) for name in files]
    images = (
        torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).float() / 255
    )  # (n, h, w, 3) -> (n, 3, h, w)
    edge = (images.shape[-1] - SIDE) // 2
    return images[..., edge : edge + SIDE, edge : edge + SIDE], torch.tensor(
        [classes[name] for name in files]
    )


@torch.no_grad()
def accuracy(network: nn.Module, n: int) -> float:
    """How often the network's first guess is right."""
    images, classes = labelled(n)
    guesses = torch.cat([network(part).argmax(1) for part in images.split(AT_ONCE)])
    return float((guesses == classes).float().mean())


@torch.no_grad()
def seen_by(network: nn.Module, images: Tensor, classes: list[int]) -> list[tuple[int, float]]:
    """The rank that the network gives each image's class, from 1, and its probability."""
    found = network(images)
    own = found.gather(1, torch.tensor(classes)[:, None])
    ranks = (found > own).sum(1) + 1
    return list(zip(ranks.tolist(), own[:, 0].tolist(), strict=True))


def measure_classes(quick: bool) -> Raw:
    """A picture of every class, as its network and another see it."""
    model, lines, begun = opsin.load(CLASSIFIER), [], time.perf_counter()
    there = GOOGLENET.is_file() and LABELLED.is_dir()
    other = GoogLeNet(GOOGLENET) if there else None
    checked = accuracy(other, AT_ONCE if quick else CHECKED) if other else None
    wanted = CLASSES[:FEW] if quick else CLASSES
    settings = {"steps": FEW} if quick else {}
    for at in range(0, len(wanted), AT_ONCE):
        classes = list(wanted[at : at + AT_ONCE])
        made = opsin.feature_visualization(model, classes, **settings)
        images = torch.stack([panel.image for panel in made.panels])
        own = model.probabilities(model.run(images)["output"])
        control = seen_by(other, images, classes) if other else [(None, None)] * len(classes)
        for row, index, (rank, p) in zip(own, classes, control, strict=True):
            lines.append([index, model.label(index), float(row[index]), rank, p])
        say(f"{len(lines)} classes, the least sure {min(line[2] for line in lines):.4f}")
    return {"lines": lines, "accuracy": checked, "seconds": time.perf_counter() - begun}


def show_classes(raw: Raw) -> str:
    """The table of the classes."""
    lines = [
        [f"{index} {label.split(',')[0]}", f"{p:.4f}", *([str(rank), f"{other:.4f}"] if rank else ["", ""])]
        for index, label, p, rank, other in raw["lines"]
    ]
    ranks = [line[3] for line in raw["lines"] if line[3]]
    first, five = (sum(rank <= k for rank in ranks) for k in (1, 5))
    control = (
        "The control is a network that the pictures were not made for, BVLC's GoogLeNet (its first guess "
        f"is right on {100 * raw['accuracy']:.0f} % of labelled photos). The wanted class is its first guess "
        f"for {first} of {len(ranks)}, among its first five for {five}, by chance for "
        f"{len(ranks) * 0.005:.1f}."
        if ranks
        else "The control, another network's guesses, was skipped: `../shared/data` is not here."
    )
    about = (
        f"feature_visualization of {CLASSIFIER} with its default settings, {AT_ONCE} classes at once; in all"
    )
    head = ["class", "probability", "rank for GoogLeNet", "probability for GoogLeNet"]
    return f"{about} {raw['seconds']:.0f} s.\n{control}\n\n" + table(head, lines)


# Inversions


def measure_inversion(quick: bool) -> Raw:
    """The mean errors of each layer."""
    model, begun = opsin.load(CLASSIFIER), time.perf_counter()
    files = sorted(STUBS.glob("*.jpg"))[: 1 if quick else AT_ONCE]
    photos = opsin.read(files, model) if files else make_case(CLASSIFIER, AT_ONCE).images
    settings = {"steps": FEW} if quick else {}
    numbers = opsin.inversion(model, photos, layers=DEPTHS, **settings).numbers
    errors: dict[str, dict[str, float]] = {}
    for name, values in numbers.items():
        layer, kind, _ = name.rsplit(" ", 2)
        errors.setdefault(layer, {})[kind] = float(values.mean())
    say("image errors " + ", ".join(f"{one['image']:.2f}" for one in errors.values()))
    return {"errors": errors, "photos": len(photos), "seconds": time.perf_counter() - begun}


def show_inversion(raw: Raw) -> str:
    """The table of the errors."""
    lines = [[layer, f"{e['feature']:.4f}", f"{e['image']:.3f}"] for layer, e in raw["errors"].items()]
    about = (
        f"inversion of {CLASSIFIER} at the ends of blocks, with its default settings, means over "
        f"{raw['photos']} photos; in all {raw['seconds']:.0f} s. Feature error: "
        "‖Φ - Φ₀‖²/‖Φ₀‖². Image error: ‖x - x₀‖/‖x₀‖ of the image less the mean colour.\n\n"
    )
    return about + table(["layer", "feature error", "image error"], lines)


# Textures and styles


def measure_texture(quick: bool) -> Raw:
    """What is left of the textures' loss, and how style transfer's falls."""
    model = opsin.load(VGG)
    settings = {"steps": FEW, "size": TINY, "source": TINY} if quick else {}
    shares = {}
    for name in TEXTURES[: 1 if quick else None]:
        photo = picture(name)
        made = opsin.texture(model, photo, **settings).images
        shares[name] = texture_share(model, resized(photo, longest(photo, settings.get("source", 256))), made)
        say(f"texture of {name}: {100 * shares[name]:.2f} % of the noise's loss")
    return {"shares": shares, "styles": [descent(model, name, quick) for name in ("lbfgs", "adam")]}


def texture_share(model: opsin.Model, photo: Tensor, made: Tensor) -> float:
    """The Gram loss of what was made as a share of that of the noise it was made from."""
    begun = noise(photo, (made.shape[2], made.shape[3]), 0)
    with AveragePooling():
        target = likeness(model, photo, first_activations(model))
        return loss_of(model, target, made) / loss_of(model, target, begun)


@torch.no_grad()
def loss_of(model: opsin.Model, target: Objective, image: Tensor) -> float:
    """What a target takes off for an image."""
    return -float(target.score(model.run(image, target.layers)))


def descent(model: opsin.Model, optimiser: str, quick: bool) -> Raw:
    """Losses of the pictures at the marks, forwards and seconds of one optimiser's style transfer."""
    size, marks = (TINY, MARKS[:2]) if quick else (STYLE_SIDE, MARKS)
    style = picture("flower.jpg")
    photo = resized(picture("china.jpg"), longest(picture("china.jpg"), size))
    transfer = partial(opsin.style_transfer, model, photo, [style], size=size, optimiser=optimiser)
    seen, pictures = watched(model, lambda: transfer(steps=marks[-1]), marks)
    with AveragePooling():
        target = wish(model, photo, [style], [1.0], (), None, None, RATIO)
        losses = [loss_of(model, target, one) for one in (photo, *pictures.values())]
    (begun, before), (ended, after) = seen[0], seen[-1]
    say(f"style_transfer with {optimiser}: {losses[0]:.4g} to {losses[-1]:.4g}")
    return {
        "optimiser": optimiser,
        "start": losses[0],
        "losses": losses[1:],
        "forwards": (after - before) / (len(seen) - 1),
        "seconds": (ended - begun) / (len(seen) - 1),
    }


def show_texture(raw: Raw) -> str:
    """The tables of textures and styles."""
    shares = [[name, f"{100 * share:.3f}"] for name, share in raw["shares"].items()]
    styles = [
        [
            one["optimiser"],
            *(f"{loss:.4g}" for loss in (one["start"], *one["losses"])),
            f"{one['forwards']:.2f}",
            f"{1000 * one['seconds']:,.0f}",
        ]
        for one in raw["styles"]
    ]
    marks = [f"after {mark}" for mark in MARKS[: len(raw["styles"][0]["losses"])]]
    return (
        "texture with its default settings, photos of scikit-image. All losses are measured anew on the\n"
        "finished pictures, clipped to [0, 1].\n\n"
        + table(["texture", "loss, % of the noise's"], shares)
        + f"\nThe loss of style_transfer at {STYLE_SIDE} px by steps, from the photo (scikit-learn's china, "
        "in the style of its flower).\n\n"
        + table(["optimiser", "start", *marks, "forwards a step", "ms a step"], styles)
    )


# Memory


def peaking(technique: str) -> Callable[[int], object]:
    """A call of a few steps, by the picture's side."""
    if technique == "deepdream":
        model = opsin.load(CLASSIFIER)
        dream = partial(opsin.deepdream, model, layers=DREAMT, octaves=1, steps=FEW, tile=DREAM_SIDE)
        return lambda side: dream(picture("astronaut", side, side))
    model = opsin.load(VGG)
    transfer = partial(opsin.style_transfer, model, steps=2 * FEW)  # half as many at finer scales
    return lambda side: transfer(picture("astronaut", side, side), [picture("coffee", side, side)], size=side)


def peak(technique: str, side: int) -> float:
    """Peak resident memory of one call above what this process held before, in MiB."""
    run = peaking(technique)
    run(TINY)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = high_water()
    run(side)
    return high_water() - before


def measure_memory(quick: bool) -> Raw:
    """The peaks, each in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    found = []
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        for technique, side in PEAKS[:1] if quick else PEAKS:
            found.append([technique, side, pool.submit(peak, technique, side).result()])
            say(f"{technique} at {side} px: {found[-1][2]:,.0f} MiB")
    return found


def show_memory(raw: Raw) -> str:
    """The table of the peaks."""
    about = (
        "Peak resident memory of one call of a few steps above what the process held before it: the "
        f"network and a call at {TINY} px. Each in a process of its own. deepdream in one octave, in "
        f"tiles of {DREAM_SIDE} px. In a longer climb L-BFGS remembers 20 pairs, each twice the picture: "
        "40 × 12 bytes a pixel, 480 MiB at 1024 px.\n\n"
    )
    return about + table(
        ["technique", "px", "MiB"], [[name, str(px), f"{mib:,.0f}"] for name, px, mib in raw]
    )


# The page


@dataclass(frozen=True)
class Part:
    """A section of the page: what measures it, and what draws what was measured."""

    title: str
    measure: Callable[[bool], Raw]
    show: Callable[[Raw], str]


PARTS = {
    "cost": Part("The cost of a step", measure_cost, show_cost),
    "classes": Part("Pictures of classes", measure_classes, show_classes),
    "inversion": Part("Inversion by depth", measure_inversion, show_inversion),
    "texture": Part("Textures and styles", measure_texture, show_texture),
    "memory": Part("Memory", measure_memory, show_memory),
}


def goals(stored: dict[str, Raw]) -> Iterator[list[str]]:
    """What was promised, what came out, and whether it is met."""

    def verdict(text: str, found: str, met: bool) -> list[str]:
        return [text, found, "met" if met else "**not met**"]

    if raw := stored.get("cost"):
        rows = [Cost(**one) for one in raw]
        ratio, where = max((row.ratio(per_forward=True), row.name) for row in rows)
        text = f"a step: at most {COST_LIMIT} of its forwards' floors"
        yield verdict(text, f"{ratio:.2f} ({where})", round(ratio, 2) <= COST_LIMIT)
    if raw := stored.get("classes"):
        sure = sum(line[2] > SURE for line in raw["lines"])
        n = len(raw["lines"])
        yield verdict(f"classes: probability above {SURE} for all", f"{sure} of {n}", sure == n)
    if raw := stored.get("inversion"):
        errors = [one["image"] for one in raw["errors"].values()]
        found = ", ".join(f"{error:.2f}" for error in errors)
        yield verdict("inversion: the image error grows with depth", found, errors == sorted(errors))
    if raw := stored.get("texture"):
        share, name = max((share, name) for name, share in raw["shares"].items())
        text = f"texture: below {100 * SHARE_LIMIT:.0f} % of the noise's loss"
        yield verdict(text, f"{100 * share:.2f} % ({name})", share < SHARE_LIMIT)


def report(stored: dict[str, Raw], quick: bool) -> str:
    """The page."""
    machine = f"{torch.get_num_threads()} threads on {os.cpu_count()} cores"
    simd = torch.backends.cpu.get_cpu_capability()
    packages = ", ".join(f"{name} {installed(name)}" for name in PACKAGES)
    sections = [f"## {part.title}\n\n{part.show(stored[n])}" for n, part in PARTS.items() if n in stored]
    parts = [
        "# Climbing: what a step costs, and what the pictures reach\n",
        *(["**A smoke test: these numbers mean nothing.**\n"] if quick else []),
        f"CPU, {machine}, {simd}, float32. {packages}. Made by `benchmarks/climbing.py`.\n",
        "Contenders take turns; times are medians, ratios the median of each round's. The allocator keeps",
        "what is freed, but where memory is measured. Each part was measured in one run.\n",
        "## Goals\n",
        table(["goal", "worst case", ""], list(goals(stored))),
        *sections,
    ]
    return "\n".join(parts)


def installed(package: str) -> str:
    """Its version, if it is here."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def main() -> None:
    """Measure what the options ask for; the page is written anew after every part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="a few steps, into the temporary folder")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    output = options.output or (Path(tempfile.gettempdir()) / OUTPUT.name if options.quick else OUTPUT)
    kept = output.with_suffix(".json")
    stored = json.loads(kept.read_text("utf-8")) if kept.exists() and not options.quick else {}
    hold_on_to_memory()
    for name in options.parts:
        begun = time.perf_counter()
        stored[name] = PARTS[name].measure(options.quick)
        output.write_text(report(stored, options.quick), "utf-8")
        kept.write_text(json.dumps(stored) + "\n", "utf-8")
        print(f"{time.perf_counter() - begun:6.0f} s  {name}", file=sys.stderr)


if __name__ == "__main__":
    main()
