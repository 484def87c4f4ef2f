"""Steerable pyramids and the statistics of their bands, by plenoptic, an extra."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.errors import InputError
from opsin.base.extras import extra

CORRELATED = 7  # pixels, the width of the neighbourhood whose correlations Portilla and Simoncelli take
HIGHPASS = 100  # the weight of the highpass residual, as plenoptic's study of the optimisation found it
SMALL = 1e-10


def scales_of(sizes: list[tuple[int, int]], most: int, least: int) -> int:
    """How many scales pictures of these sizes have, so that the coarsest is at least so many pixels wide.

    Raises `InputError` where there is none.
    """
    side = min(min(size) for size in sizes)
    found = min(most, int(math.log2(side / least)) if side >= least else 0, int(math.log2(side)) - 2)
    if found < 1:
        raise InputError(
            f"a side of {side} pixels is too short for a pyramid: at least {2 * least} are needed"
        )
    return found


def multiple(size: tuple[int, int], scales: int, *, up: bool) -> tuple[int, int]:
    """The nearest size, not smaller or not larger, that can be halved so many times."""
    unit = 2**scales
    height, width = (math.ceil(side / unit) * unit if up else side // unit * unit for side in size)
    return height, width


def steerable(size: tuple[int, int], scales: int, orientations: int, like: Tensor, **settings: Any) -> Any:
    """plenoptic's steerable pyramid (Simoncelli, Freeman 1995) for pictures of this size."""
    with extra("texture"):
        from plenoptic.process import SteerablePyramidFreq  # noqa: PLC0415 (an extra, and slow)
    with _generator_left_alone():
        return SteerablePyramidFreq(size, scales, orientations - 1, **settings).to(like)


def quantiles(values: Float[Tensor, " m"], count: int) -> Float[Tensor, " count"]:
    """The (k + ½)/count quantiles of values, linear between these, which stand at (k + ½)/m."""
    place = (torch.arange(count, device=values.device, dtype=torch.float64) + 0.5) / count
    position = (place * len(values) - 0.5).clamp(0, len(values) - 1)
    below = position.long()
    above = (below + 1).clamp(max=len(values) - 1)
    ordered = values.sort().values
    return ordered[below] + (position - below).to(values) * (ordered[above] - ordered[below])


def by_rank(values: Float[Tensor, " n"], ordered: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The k-th of some ordered numbers in the place of the k-th smallest value."""
    found = torch.empty_like(ordered)
    found[values.argsort(stable=True)] = ordered
    return found


def principal(
    images: Float[Tensor, "1 3 h w"],
) -> tuple[Float[Tensor, "3 k"], Float[Tensor, "1 3 1 1"]]:
    """The principal directions of an image's colours, the strongest first, and the mean colour.

    Further directions without any variance are left out: a grey image has one.
    """
    mean = images.mean((2, 3), keepdim=True)
    flat = (images - mean)[0].flatten(1).double()
    variances, directions = torch.linalg.eigh(flat @ flat.T / flat.shape[1])
    kept = variances.flip(0) > SMALL
    kept[0] = True
    ordered = directions.flip(1)[:, kept]
    signs = ordered.sum(0).sign() + (ordered.sum(0) == 0)
    return (ordered * signs).to(images), mean


class Statistics:
    """The statistics of Portilla and Simoncelli, weighted as plenoptic's study of their synthesis found best.

    Channels have theirs each; every two channels also have the correlations of their magnitudes and of their
    real parts at every scale, which the paper, on grey photos, does without.
    """

    def __init__(self, size: tuple[int, int], scales: int, orientations: int, like: Tensor) -> None:
        with extra("texture"):
            from plenoptic.models import PortillaSimoncelli  # noqa: PLC0415 (an extra, and slow)
        self.scales = scales
        with _generator_left_alone():
            self.model = PortillaSimoncelli(size, scales, orientations, CORRELATED).to(like)
        self.pyramid = steerable(size, scales, orientations, like, is_complex=True)
        named = self.model.convert_to_dict(torch.ones(1, 1, len(self.model._necessary_stats_mask)).to(like))
        named["pixel_statistics"][..., -2:] = 0  # least and greatest value: no gradient but of two pixels
        named["var_highpass_residual"] *= HIGHPASS
        self.weights = self.model.convert_to_tensor(named)[0]  # (1, statistics)

    def of(self, channels: Float[Tensor, "1 k h w"]) -> Float[Tensor, " statistics"]:
        """The weighted statistics in one row."""
        own: Tensor = (self.model(channels)[0] * self.weights).flatten()
        count = channels.shape[1]
        if count == 1:
            return own
        bands = self.pyramid(channels)
        parts: list[Tensor] = [own]
        for scale in range(self.scales):
            values = bands[scale][0].flatten(2)  # (k, orientations, h w), complex
            for kind in (values.abs(), values.real):
                parts.append(_across(kind))
        return torch.cat(parts)


@contextmanager
def one_thread() -> Iterator[None]:
    """A block in which torch works with one thread: several wait for each other over many small bands."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _generator_left_alone() -> Iterator[None]:
    """A block that may draw NumPy's random numbers, as plenoptic does to find the shapes of its bands."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)


def _across(values: Float[Tensor, "k o n"]) -> Float[Tensor, " pairs"]:
    """The correlations of every orientation of a channel with every one of another."""
    k, orientations, _ = values.shape
    centred = (values - values.mean(2, keepdim=True)).flatten(0, 1)
    scaled = centred / (centred.square().sum(1, keepdim=True) + SMALL).sqrt()
    together = (scaled @ scaled.T).reshape(k, orientations, k, orientations)
    one, other = torch.triu_indices(k, k, 1)
    pairs: Tensor = together[one, :, other].flatten()
    return pairs
