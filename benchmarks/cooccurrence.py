"""Feature maps of co-occurrence matrices: seconds and agreement beside a loop over scikit-image, and others.

    python benchmarks/cooccurrence.py           # some minutes on two cores
    python benchmarks/cooccurrence.py --quick   # a smoke test, its numbers mean nothing

The photo is scikit-image's gravel, 8 levels of equal width, windows of 21 pixels, the four directions at
distance 1, symmetric and merged. A loop over windows takes long, so it is run on rows from the middle and its
time multiplied; the others are run on the whole photo, in turns, and the median is taken.
"""

import argparse
import json
import logging
import platform
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from skimage import data
from skimage.feature import graycomatrix, graycoprops

from opsin.statistics.cooccurrence import RULES
from opsin.statistics.haralick import HARALICK, NAMES
from opsin.statistics.levels import Levels
from opsin.statistics.windows import Windows

OUTPUT = Path(__file__).with_suffix(".md")
LEVELS, SIDE, ROWS = 8, 21, 4
OFFSETS = ((0, 1), (-1, 1), (-1, 0), (-1, -1))
THEIRS = {
    "contrast": "contrast",
    "dissimilarity": "dissimilarity",
    "inverse_difference_moment": "homogeneity",
    "angular_second_moment": "ASM",
    "correlation": "correlation",
    "joint_average": "mean",
    "joint_variance": "variance",
    "joint_entropy": "entropy",
}
THIRTEEN = tuple(name for name in HARALICK if name != "maximal_correlation")
ALL = tuple(name for name in NAMES if name != "maximal_correlation")


def ours(levels: torch.Tensor, names: tuple[str, ...]) -> np.ndarray:
    return windowed(Windows(names, SIDE, OFFSETS, LEVELS, RULES["scikit-image"]), levels)


def loop(levels: np.ndarray, names: tuple[str, ...], rows: range) -> np.ndarray:
    """scikit-image's matrix and properties of every window of some rows."""
    half, angles = SIDE // 2, [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    found = np.empty((len(names), len(rows), levels.shape[1]))
    for place, row in enumerate(rows):
        for column in range(levels.shape[1]):
            part = levels[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
            counts = graycomatrix(part, [1], angles, levels=LEVELS, symmetric=True).sum(3, keepdims=True)
            shares = counts / counts.sum()
            for index, name in enumerate(names):
                found[index, place, column] = graycoprops(shares, THEIRS[name])[0, 0]
    return found


def others(grey: torch.Tensor, levels: torch.Tensor) -> list[tuple[str, float, float, str]]:
    """Packages that have feature maps, each with its seconds, Opsin's for the same, and what it computes."""
    found = []
    with suppress(ImportError):
        from haralick_torch.core import haralick_batch, precompute_matrices

        known = precompute_matrices(LEVELS, "cpu")
        seconds, _ = timed(lambda: haralick_batch(grey[None, None].float(), SIDE, LEVELS, *known), 3)
        windows = Windows(THIRTEEN, SIDE, OFFSETS[:1], LEVELS, RULES["scikit-image"])
        own, _ = timed(lambda: windowed(windows, levels), 3)
        about = "13 features, one direction; it pairs the last pixel of a row with the first of the next"
        found.append((f"haralick-torch {version('haralick-torch')}", seconds, own, about))
    with suppress(ImportError):
        import flash_radiomics
        import SimpleITK

        logging.getLogger("flash_radiomics").setLevel(logging.ERROR)
        whole = (levels + 1).numpy().astype(np.int16)[None]
        photo = SimpleITK.GetImageFromArray(whole)
        mask = SimpleITK.GetImageFromArray(np.ones_like(whole, dtype=np.uint8))
        for name, theirs, ours_too in (
            ("contrast", ["Contrast"], ("contrast",)),
            ("all features", [], NAMES),
        ):
            extractor = flash_radiomics.featureextractor.RadiomicsFeatureExtractor(
                binWidth=1, kernelRadius=SIDE // 2, force2D=True
            )
            extractor.disableAllFeatures()
            extractor.enableFeaturesByName(glcm=theirs)
            seconds, maps = timed(lambda e=extractor: e.execute(photo, mask, spatialMode=True), 1)
            windows = Windows(ours_too, SIDE, OFFSETS, LEVELS, RULES["ibsi"], over="average")
            own, values = timed(lambda w=windows: windowed(w, levels), 3)
            contrast = SimpleITK.GetArrayFromImage(maps["original_glcm_Contrast"])[0]
            apart = np.abs(contrast - values[ours_too.index("contrast")]).max()
            about = f"{name}, an average over four directions; contrast differs by {apart:.0e}"
            found.append((f"flash-radiomics {version('flash-radiomics')}", seconds, own, about))
    return found


def windowed(windows: Windows, levels: torch.Tensor) -> np.ndarray:
    return torch.cat([windows.band(levels, *rows) for rows in windows.bands(*levels.shape)], 1).numpy()


def timed(work: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    seconds, result = [], None
    for _ in range(rounds):
        begun = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - begun)
    return median(seconds), result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    side, rounds, rows = (96, 1, 1) if quick else (512, 5, ROWS)
    grey = torch.from_numpy(data.gravel()[:side, :side].astype(np.float64) / 255)
    levels = Levels(LEVELS).of(grey, torch.ones_like(grey, dtype=torch.bool))
    middle = range(side // 2, side // 2 + rows)
    lines = []
    for name in THEIRS:
        seconds, found = timed(lambda name=name: ours(levels, (name,)), rounds)
        begun = time.perf_counter()
        expected = loop(levels.numpy().astype(np.uint8), (name,), middle)
        theirs = (time.perf_counter() - begun) * side / rows
        difference = float(np.abs(found[:, middle.start : middle.stop] - expected).max())
        lines.append((name, seconds, theirs, theirs / seconds, difference))
    several, _ = timed(lambda: ours(levels, tuple(THEIRS)), rounds)
    begun = time.perf_counter()
    loop(levels.numpy().astype(np.uint8), tuple(THEIRS), middle)
    theirs = (time.perf_counter() - begun) * side / rows
    all_seconds, _ = timed(lambda: ours(levels, ALL), rounds)
    every, _ = timed(lambda: ours(levels, NAMES), 1)
    small = 48 if quick else 128
    rivals = others(grey[:small, :small], levels[:small, :small])
    growth = []
    for width in (side, 2 * side, 4 * side):
        picture = levels.repeat(width // side, width // side)
        seconds, _ = timed(lambda picture=picture: ours(picture, ALL), 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        growth.append((width, seconds, peak))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scikit-image"))
    threads = torch.get_num_threads()
    text = [
        "# Feature maps of co-occurrence matrices",
        "",
        f"CPU ({platform.processor() or platform.machine()}), {threads} threads. {packages}. Made by "
        "`benchmarks/cooccurrence.py`.",
        "",
        f"scikit-image's gravel, {side} x {side}, {LEVELS} levels, windows of {SIDE} pixels, four directions",
        f"at distance 1, symmetric, merged. The loop over scikit-image ran on {rows} rows; its time is",
        "multiplied.",
        "",
        "| feature | Opsin, s | loop over scikit-image, s | ratio | largest difference |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    text += [f"| {n.replace('_', ' ')} | {a:.2f} | {b:.1f} | {r:.0f} | {d:.1e} |" for n, a, b, r, d in lines]
    text += [
        f"| these {len(THEIRS)} together | {several:.2f} | {theirs:.1f} | {theirs / several:.0f} | |",
        "",
        f"IBSI's 25 features together: {all_seconds:.2f} s. With the maximal correlation, which needs",
        f"singular values of a matrix for every pixel: {every:.1f} s.",
        "",
        f"Other packages with feature maps that could be installed here, on {small} x {small} pixels:",
        "",
        "| package | s | Opsin, s | ratio | what |",
        "| --- | ---: | ---: | ---: | --- |",
        *(f"| {name} | {a:.2f} | {b:.3f} | {a / b:.0f} | {about} |" for name, a, b, about in rivals),
        "",
        "Memory of the 25 features, by size of the photo (the process's peak):",
        "",
        "| side, pixels | s | MiB |",
        "| ---: | ---: | ---: |",
    ]
    text += [f"| {width} | {seconds:.1f} | {peak:.0f} |" for width, seconds, peak in growth]
    if not quick:
        OUTPUT.write_text("\n".join(text) + "\n", "utf-8")
        facts = {
            "features": lines,
            "others": rivals,
            "several": [several, theirs],
            "all": all_seconds,
            "growth": growth,
        }
        OUTPUT.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
