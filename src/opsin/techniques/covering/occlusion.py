from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.errors import InputError
from opsin.base.job import note, steps
from opsin.network.batches import chunks, forward_batch
from opsin.network.model import Model
from opsin.network.shortcuts.detour import detour
from opsin.objectives.units import PREDICTED
from opsin.registry.kinds import Arg, Target
from opsin.registry.technique import technique
from opsin.results.heatmap import Heatmap

SQUARES = 7  # side by side along the shorter side: 32 pixels each in a photo of 224


@technique(
    paper="Zeiler, Fergus: Visualizing and Understanding Convolutional Networks, 2013 (arXiv:1311.2901), 4.2",
    reading="Red: covering this place lowers the score, so the network needs it. Blue: covering it helps.",
    cost=180,
)
def occlusion(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    target: Target = PREDICTED,
    patch: Annotated[
        int | None,
        Arg("side of the grey square, pixels; by default a seventh of the photo's shorter side", least=1),
    ] = None,
    stride: Annotated[
        int | None, Arg("step between squares, pixels; by default half the square's side", least=1)
    ] = None,
    fill: Annotated[float, Arg("grey level of the square", least=0, most=1)] = 0.5,
) -> Heatmap:
    """The drop of the score when a grey square covers a place, averaged over the squares that cover it.

    D(p) = S(x) - S(x with square p filled). `extras["score"]` is S at each position of the square,
    (n, rows, columns), `extras["drop"]` is D, `extras["top_class"]` the most probable class there
    (absent where the output is not (n, classes)). `values` hold, for each pixel, the mean of D over
    the squares on it. Signed, in units of the score.

    On a photo of 224 pixels the square is 32 wide and moves by 16; at least 1 pixel on the smallest.
    The last row and column of squares reach over the edge where the stride does not divide the rest.
    The predicted class is the one of the whole photo. Of equal images, which may have different targets, the
    covered ones run through the network once. Raises `InputError` on a patch larger than the
    image, and on a stride larger than the patch, which would leave pixels unseen.
    """
    height, width = images.shape[-2:]
    patch = max(1, round(min(height, width) / SQUARES)) if patch is None else patch
    stride = max(1, patch // 2) if stride is None else stride
    if patch > min(height, width):
        raise InputError(f"occlusion: a patch of {patch} pixels is larger than the image, {height}x{width}")
    if stride > patch:
        raise InputError(f"occlusion: a stride of {stride} pixels skips pixels between patches of {patch}")
    note(f"squares of {patch} pixels, {stride} apart")
    tops, lefts = _starts(height, patch, stride), _starts(width, patch, stride)
    squares = [(top, left) for top in tops for left in lefts]
    layers = tuple(dict.fromkeys((*target.layers, "output")))
    size = forward_batch(model, images)
    whole = model.run(images, layers)
    base = target.score(whole)
    way = detour(model, images, layers, patch)
    copies = _copies(images)
    batches = [(i, part) for i in copies for part in chunks(len(squares), size)]
    scores = torch.empty(len(images), len(squares), dtype=torch.promote_types(base.dtype, torch.float32))
    classes = torch.zeros(len(images), len(squares), dtype=torch.long)
    for index, part in steps(batches, len(batches), "occlusion"):
        covered = _covered(images[index], squares[part], patch, fill)
        if way and part.start == 0:
            known = model.run(images[index : index + 1], way.layers)
        run = (
            way.run(model, covered, squares[part], patch, layers, known)
            if way
            else model.run(covered, layers)
        )
        for copy in copies[index]:
            scores[copy, part] = target.for_image(whole, copy).score(run).cpu()
        if run["output"].ndim == 2:
            classes[copies[index], part] = run["output"].argmax(1).cpu()
    drop = base.cpu()[:, None] - scores
    grid = (len(images), len(tops), len(lefts))
    extras = {"score": scores.view(grid), "drop": drop.view(grid), "top_class": classes.view(grid)}
    if whole["output"].ndim != 2:
        del extras["top_class"]
    values = _spread(drop, squares, patch, (height, width))
    return Heatmap(values, images, signed=True, overlay=True, extras=extras)


def _copies(images: Float[Tensor, "n 3 h w"]) -> dict[int, list[int]]:
    """For the first of each group of equal images, the whole group."""
    groups: dict[int, list[int]] = {}
    for index, image in enumerate(images):
        first = next((known for known in groups if torch.equal(images[known], image)), index)
        groups.setdefault(first, []).append(index)
    return groups


def _starts(length: int, patch: int, stride: int) -> list[int]:
    """Where the squares begin along one side; the last one reaches the edge or over it."""
    return [step * stride for step in range(-((patch - length) // stride) + 1)]


def _covered(
    image: Float[Tensor, "3 h w"], squares: list[tuple[int, int]], patch: int, fill: float
) -> Float[Tensor, "k 3 h w"]:
    covered = image.expand(len(squares), *image.shape).clone()
    for one, (top, left) in zip(covered, squares, strict=True):
        one[:, top : top + patch, left : left + patch] = fill
    return covered


def _spread(
    drop: Float[Tensor, "n k"], squares: list[tuple[int, int]], patch: int, size: tuple[int, int]
) -> Float[Tensor, "n 1 h w"]:
    """For each pixel the mean drop of the squares that cover it."""
    total, times = torch.zeros(len(drop), *size, dtype=drop.dtype), torch.zeros(size)
    for index, (top, left) in enumerate(squares):
        place = (slice(top, top + patch), slice(left, left + patch))
        total[:, *place] += drop[:, index, None, None]
        times[place] += 1
    return (total / times)[:, None]
