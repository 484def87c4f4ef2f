"""Measure the magnitudes of photos' spectra, the table in `opsin.optimise.natural`.

python benchmarks/spectrum.py FOLDER...    # of JPEG files; prints a row for each ring of frequencies
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from opsin.optimise.canvas import SPREAD, Fourier

SIDE = 224
DARKEST = 1 / 255  # black and white are so far from 0 and 1, as 8 bits cannot tell
RINGS = 10


def magnitudes(path: Path) -> Tensor:
    """|F(4 C⁻¹ logit x)| of a photo cut to a square."""
    photo = ImageOps.fit(Image.open(path).convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(photo) / 255).permute(2, 0, 1)
    mix = Fourier(SIDE, SIDE).mix(pixels)
    flat = SPREAD * torch.einsum("dc,chw->dhw", mix.inverse(), pixels.logit(DARKEST))
    return torch.fft.rfft2(flat, norm="ortho").abs()


def main() -> None:
    """Print the mean magnitude of every channel in rings of frequencies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    photos = sorted(path for folder in parser.parse_args().folders for path in folder.rglob("*.jpg"))
    mean = torch.stack([magnitudes(path) for path in photos]).mean(0)
    rows, columns = torch.fft.fftfreq(SIDE), torch.fft.rfftfreq(SIDE)
    radius = torch.hypot(rows[:, None], columns[None])
    edges = np.geomspace(0.75 / SIDE, 0.71, RINGS + 1)
    print(f"{len(photos)} photos")
    for low, high in pairwise(edges):
        ring = (radius >= low) & (radius < high)
        print(f"({np.sqrt(low * high):.3g}, {', '.join(f'{float(c[ring].mean()):.3g}' for c in mean)}),")


if __name__ == "__main__":
    main()
