"""The most probable classes of images."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from opsin.base.errors import InputError, NetworkError, shown

TOGETHER = 8  # images in one forward, which takes memory for all of them


class Prediction(NamedTuple):
    """A class that a network sees in an image; the score is the one before the softmax."""

    label: str
    probability: float
    class_index: int
    score: float


def batches(images: object) -> Sequence[Tensor]:
    """The images in batches. Raises `InputError` unless they are a tensor (n, 3, h, w) of at least one."""
    if not isinstance(images, Tensor) or images.ndim != 4 or len(images) == 0:
        given = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"images must be a tensor (n, 3, h, w) in [0, 1], not {given}: see opsin.read")
    parts: Sequence[Tensor] = images.split(TOGETHER)
    return parts


def ranked(
    outputs: Iterable[Tensor],
    probabilities: Callable[[Tensor], Tensor],
    label: Callable[[int], str],
    k: object,
) -> list[list[Prediction]]:
    """The `k` most probable classes in each row of the outputs.

    Raises `InputError` unless these are (n, classes) and `k` is at least 1, `NetworkError` if they are not
    finite.
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise InputError(f"k must be a number of classes, at least 1, not {shown(k)}")
    output = torch.cat(list(outputs))
    if output.ndim != 2:
        raise InputError(
            f"a prediction needs an output of (n, classes), this network gives {tuple(output.shape)}"
        )
    if not output.isfinite().all():
        raise NetworkError("the network's output is NaN or infinite, so it predicts no class")
    best = probabilities(output).topk(min(k, output.shape[1]))
    scores = output.gather(1, best.indices)
    return [
        [Prediction(label(i), share, i, score) for i, share, score in zip(*row, strict=True)]
        for row in zip(best.indices.tolist(), best.values.tolist(), scores.tolist(), strict=True)
    ]
