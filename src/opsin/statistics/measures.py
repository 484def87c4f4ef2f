"""How far a texture is from its sample, by several measures, some of which a technique minimises."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from opsin.statistics.cooccurrence import RULES, Offset, matrices
from opsin.statistics.haralick import NAMES, SIGNED, features_of
from opsin.statistics.levels import Levels, channels
from opsin.statistics.pyramids import CORRELATED, Statistics, multiple, scales_of
from opsin.statistics.spectrum import radial_power

LEVELS = 16  # grey levels, of equal width from black to white
DISTANCES = (1, 4)  # pixels, in four directions each
LEAST = 1e-6  # a feature or a power below it counts as this
BANDS = 16  # of the spectrum
SCALES, ORIENTATIONS = 4, 4  # of the wavelets, fewer of a small picture
PATCH = 8  # pixels along the side of a patch that may be a copy
BYTES = 255


def cooccurrence_distance(one: Float[Tensor, "1 3 h w"], other: Float[Tensor, "1 3 H W"]) -> float:
    """The mean |log ratio| of the features of co-occurrence matrices that have no sign.

    Brightness in 16 levels; features of the matrix of each offset at distances 1 and 4 in four directions.
    """
    logs = [_features(image) for image in (one, other)]
    return float((logs[0] - logs[1]).abs().mean())


def _features(image: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "offsets features"]:
    """The logarithms of the features that have no sign, so that their ratios are differences."""
    grey = channels(image, colour=False)[0, 0]
    levels = Levels(LEVELS).of(grey, torch.ones_like(grey, dtype=torch.bool))
    offsets: list[Offset] = [
        (down * distance, right * distance)
        for distance in DISTANCES
        for down, right in ((0, 1), (-1, 1), (-1, 0), (-1, -1))
    ]
    counts = matrices(levels[None], offsets, LEVELS, symmetric=True)[0]
    shares = counts / counts.sum((-1, -2), keepdim=True)
    names = tuple(name for name in NAMES if name not in SIGNED)
    return features_of(shares, RULES["ibsi"], names).clamp(min=LEAST).log()


def spectrum_distance(one: Float[Tensor, "1 3 h w"], other: Float[Tensor, "1 3 H W"]) -> float:
    """The mean |log ratio| of the power in 16 rings of frequencies, over the three colours."""
    logs = [radial_power(image, BANDS).clamp(min=LEAST).log() for image in (one, other)]
    return float((logs[0] - logs[1]).abs().mean())


def wavelet_distance(one: Float[Tensor, "1 3 h w"], other: Float[Tensor, "1 3 H W"]) -> float:
    """|w (φ(one) - φ(other))|, φ the statistics of Portilla and Simoncelli, of the brightness.

    Needs the extra `opsin[texture]`. NaN where a picture of one colour has none.
    """
    sizes = [(image.shape[2], image.shape[3]) for image in (one, other)]
    scales = scales_of(sizes, SCALES, CORRELATED)
    found = []
    for image, size in zip((one, other), sizes, strict=True):
        height, width = multiple(size, scales, up=False)
        grey = channels(image, colour=False)[..., :height, :width].float()
        found.append(Statistics((height, width), scales, ORIENTATIONS, grey).of(grey))
    return float((found[0] - found[1]).square().sum().sqrt())


def copied(made: Float[Tensor, "1 3 h w"], sample: Float[Tensor, "1 3 H W"]) -> float:
    """The share of the 8 x 8 patches of a texture that are in the sample pixel for pixel, as bytes."""
    found, known = (_signatures(image) for image in (made, sample))
    return float(np.isin(found, known).mean())


def _signatures(image: Float[Tensor, "1 3 h w"]) -> Int[np.ndarray, " patches"]:
    """A number for the bytes of every patch: a random sum of them, which differs where the patches do."""
    values = (image[0] * BYTES).round().long().cpu()
    draw = torch.Generator().manual_seed(0)
    weights = torch.randint(-(2**62), 2**62, (3, PATCH, PATCH), generator=draw)
    patches = values.unfold(1, PATCH, 1).unfold(2, PATCH, 1)  # (3, rows, columns, patch, patch), a view
    total = torch.zeros(patches.shape[1:3], dtype=torch.int64)
    for colour in range(3):
        for row in range(PATCH):
            for column in range(PATCH):
                total += patches[colour, :, :, row, column] * weights[colour, row, column]
    signatures: Int[np.ndarray, " patches"] = total.flatten().numpy()
    return signatures


def halves(sample: Float[Tensor, "1 3 h w"]) -> Sequence[Float[Tensor, "1 3 h half"]]:
    """The left and the right half of a sample: how far a texture is from itself."""
    middle = sample.shape[3] // 2
    return sample[..., :middle], sample[..., sample.shape[3] - middle :]
