"""A scan's speed beside the bare network's on the same images, and its memory as the collection grows.

    python benchmarks/scanning.py               # about 20 minutes on two cores
    python benchmarks/scanning.py --quick       # a smoke test, its numbers mean little
    python benchmarks/scanning.py --photos DIR  # on photos of your own
    python benchmarks/scanning.py --parts speed # this part anew, the rest as it was measured

Scan and bare network take turns; a ratio is the median of the rounds' own ratios.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_images

import opsin
from opsin.collection.files.decoding import Cut, Decoded, decoding
from opsin.collection.files.source import Source
from opsin.network.batches import CPU_BATCH

GOAL = 0.9
COPIES = 40  # crops of each sample photo, where no folder is given
ROUNDS = 5
SIZES = (1000, 10000, 20000)
SIDE = 96  # pixels of the synthetic images
WORKERS = min(8, os.cpu_count() or 1)
PARTS = ("speed", "busy", "memory")
BUSY = 8  # processes that compute beside a scan
FEW = 6  # crops of each sample photo that are scanned beside them


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--photos", type=Path, help="folder; by default crops of scikit-image's and -learn's samples"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    if given.memory:
        print(peak_of_a_scan(given.memory))
        return
    kept = given.output.with_suffix(".json")
    found = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
    if "speed" in given.parts:
        with tempfile.TemporaryDirectory() as folder:
            photos = given.photos or samples(Path(folder) / "photos", 2 if given.quick else COPIES)
            found["speed"] = measured(photos, Path(folder), 1 if given.quick else ROUNDS)
            found["own"] = given.photos is not None
    if "busy" in given.parts:
        with tempfile.TemporaryDirectory() as folder, busy(BUSY):
            photos = given.photos or samples(Path(folder) / "photos", 1 if given.quick else FEW)
            found["busy"] = by_workers(photos, Path(folder), 1 if given.quick else ROUNDS)
    if "memory" in given.parts:
        found["memory"] = [[size, grown(size)] for size in ((50, 200) if given.quick else SIZES)]
    kept.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    if found.keys() >= set(PARTS):
        given.output.write_text(page(found), "utf-8")
        print(given.output.read_text("utf-8"))


def samples(folder: Path, copies: int) -> Path:
    """JPEGs of usual photo size: crops of the sample photos that come with the install."""
    draw = np.random.default_rng(0)
    folder.mkdir()
    found = [data.astronaut(), data.cat(), data.coffee(), data.rocket(), data.retina()]
    for number, photo in enumerate([*found, *load_sample_images().images]):
        whole = Image.fromarray(photo)
        for copy in range(copies):
            share = draw.uniform(0.6, 1)
            w, h = (int(side * share) for side in whole.size)
            left, top = (int(draw.integers(0, a - b + 1)) for a, b in zip(whole.size, (w, h), strict=True))
            crop = whole.crop((left, top, left + w, top + h)).resize((500, 500 * h // w))
            crop.save(folder / f"{number}_{copy:03d}.jpg", quality=92)
    return folder


def measured(photos: Path, folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Images a second of the bare network, of decoding and of the scan, and their ratios."""
    found = {}
    for name in ("efficientnet_lite0", "timm:resnet50"):
        model = opsin.load(name, weights="random" if name.startswith("timm:") else None)
        members = list(decoding(Source(photos), Source(photos).entries(), Cut.of(model), 0))
        pixels = np.stack([one.pixels for one in members if isinstance(one, Decoded)])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous() / 255
        bare, last, scan, decode = [], [], [], []
        for _ in range(rounds):
            bare.append(len(images) / timed(partial(forward, model, images, torch.contiguous_format)))
            scan.append(scanned(photos, model, folder / "collection"))
            last.append(len(images) / timed(partial(forward, model, images, torch.channels_last)))
        for _ in range(min(rounds, 2)):
            decode.append(decoded(photos, model))
        rates = {"bare": bare, "last": last, "scan": scan, "decode": decode}
        rates["ratio"] = [one / other for one, other in zip(scan, bare, strict=True)]
        rates["strict"] = [one / other for one, other in zip(scan, last, strict=True)]
        found[name] = {key: statistics.median(own) for key, own in rates.items()}
        found[name] |= {"images": len(images)}
        print(name, found[name], file=sys.stderr, flush=True)
    return found


def forward(model: opsin.Model, images: torch.Tensor, form: torch.memory_format) -> None:
    """The bare network: plain torch, images decoded."""
    mean, std = model.statistics()
    with torch.inference_mode():
        for part in images.split(CPU_BATCH):
            model.network(((part - mean) / std).contiguous(memory_format=form))


def scanned(photos: Path, model: opsin.Model, place: Path) -> float:
    """Images a second, from the first batch that is done until all is written."""
    seen: list[tuple[int, float]] = []
    with opsin.listening(lambda step: seen.append((step.done, time.perf_counter()))):
        opsin.scan(photos, model, place)
    ended = time.perf_counter()
    shutil.rmtree(place)
    (first, began), (last, _) = seen[0], seen[-1]
    return (last - first) / (ended - began)


def decoded(photos: Path, model: opsin.Model) -> float:
    """Images a second of the decoding processes alone, from the first task on."""
    stream = decoding(Source(photos), Source(photos).entries(), Cut.of(model), WORKERS)
    list(islice(stream, CPU_BATCH))
    began = time.perf_counter()
    count = sum(1 for _ in stream)
    return count / (time.perf_counter() - began)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """A block beside so many processes that compute."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def by_workers(photos: Path, folder: Path, rounds: int) -> list[list[float]]:
    """For each round the seconds of a whole scan without decoding processes, with one, and with the usual."""
    model = opsin.load("efficientnet_lite0")
    scan = partial(opsin.scan, photos, model, folder / "collection")
    scan(workers=0)
    found: list[list[float]] = []
    for _ in range(rounds):
        found.append([])
        for workers in (0, 1, WORKERS):
            shutil.rmtree(folder / "collection")
            found[-1].append(timed(partial(scan, workers=workers)))
        print(found[-1], file=sys.stderr, flush=True)
    return found


def timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def grown(count: int) -> int:
    """The peak memory of a scan of so many synthetic images, in a process of its own."""
    command = [sys.executable, __file__, "--memory", str(count)]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    print(f"{count} images: {made.stdout.strip()} MiB", file=sys.stderr, flush=True)
    return int(made.stdout)


def peak_of_a_scan(count: int) -> int:
    """MiB of this process above what it held when the network was loaded."""
    with tempfile.TemporaryDirectory() as folder:
        draw, photos = np.random.default_rng(0), Path(folder) / "photos"
        photos.mkdir()
        for number in range(count):
            small = draw.integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(small).resize((SIDE, SIDE)).save(photos / f"{number:06d}.jpg")
        model = opsin.load("efficientnet_lite0")
        model.run(torch.rand(CPU_BATCH, 3, *model.size))
        before, peak = resident(), 0

        def look(_: object) -> None:
            nonlocal peak
            peak = max(peak, resident() - before)

        with opsin.listening(look):
            opsin.scan(photos, model, Path(folder) / "collection")
        look(None)
        return peak


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) >> 10


def page(found: dict[str, Any]) -> str:
    speed: dict[str, dict[str, float]] = found["speed"]
    worst, strict = (min(one[key] for one in speed.values()) for key in ("ratio", "strict"))
    one, usual = (statistics.median(round[i] / round[0] for round in found["busy"]) for i in (1, 2))
    what = "photos of the given folder" if found["own"] else "crops of sample photos, JPEG, 500 pixels wide"
    lines = [
        "# Scanning: beside the bare network, and as the collection grows",
        "",
        f"CPU, {torch.get_num_threads()} threads on {os.cpu_count()} cores, torch "
        f"{torch.__version__.split('+')[0]}. Made by `benchmarks/scanning.py`.",
        "",
        f"{next(iter(speed.values()))['images']:.0f} {what}, in batches of {CPU_BATCH}. The bare network is",
        "plain torch on the same images, decoded before, as loaded and in channels_last.",
        "A scan reads, hashes, decodes, cuts",
        "the files, keeps thumbnails, classes, features and the top images of each channel, and writes them;",
        "counted from its first batch until all is written; some 50 images may be decoded then. Decoding",
        f"alone is that of {WORKERS} processes. Scan and network take turns.",
        "",
        "| goal | worst case |  |",
        "| --- | ---: | ---: |",
        f"| at least {GOAL} of the bare network's images a second | {worst:.2f} | {said(worst >= GOAL)} |",
        f"| the same, in channels_last | {strict:.2f} | {said(strict >= GOAL)} |",
        f"| beside {BUSY} busy processes, time with 1 decoder ÷ with none | {one:.2f} | {said(one <= 1)} |",
        f"| the same, with {WORKERS} decoders ÷ with none | {usual:.2f} | {said(usual <= 1)} |",
        "",
        "| network | bare, images/s | channels_last | decoding | scan | ÷ bare | ÷ channels_last | slower |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, rates in speed.items():
        slow = "network" if rates["bare"] < rates["decode"] else "decoding"
        cells = [f"{rates[key]:.1f}" for key in ("bare", "last", "decode", "scan")]
        cells += [f"{rates[key]:.2f}" for key in ("ratio", "strict")]
        lines.append(f"| {name} | {' | '.join(cells)} | {slow} |")
    lines += [
        "",
        f"Seconds of a whole scan of a few photos with efficientnet_lite0 beside {BUSY} busy processes,",
        "by the number of decoding processes; the scans take turns:",
        "",
        f"| 0 | 1 | {WORKERS} |",
        "| ---: | ---: | ---: |",
        *(f"| {' | '.join(f'{seconds:.1f}' for seconds in times)} |" for times in found["busy"]),
        "",
        f"Peak memory of a scan above what the process held with its network loaded, {SIDE} pixel JPEGs:",
        "",
        "| images | MiB |",
        "| ---: | ---: |",
        *(f"| {count:,} | {peak:,} |" for count, peak in found["memory"]),
        "",
    ]
    return "\n".join(lines)


def said(good: bool) -> str:
    return "met" if good else "**not met**"


if __name__ == "__main__":
    main()
