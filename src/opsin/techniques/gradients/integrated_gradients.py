from itertools import pairwise
from math import isfinite
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.job import CAUTION, note, tell
from opsin.gradients.derivatives import scores_and_gradient
from opsin.network.batches import chunks, gradient_batch
from opsin.network.model import Model
from opsin.objectives.objective import Objective
from opsin.objectives.units import PREDICTED, each
from opsin.registry.kinds import Arg, Target
from opsin.registry.technique import technique
from opsin.results.heatmap import Heatmap

FIRST = 17  # points at equal distances, before any part of the path is halved
WHOLE = 0.01  # of the score's rise: the largest error of the sum
PARTS = 0.1  # of the score's rise: the largest sum of the errors' sizes, which cancel out in the whole
HALVED = 0.8  # of that sum: the parts of the path that are halved hold so much of it
# Of the path: here the gradient at its beginning is taken. On the baseline itself all pixels are equal, and
# what a max pool passes back hangs on rounding.
NEAR = 1e-4
FAR = 8  # roundings of the network's numbers: at least so far along it is (1/16 of the path in bfloat16)
NARROWEST = 1e-6  # of the path: a score that jumps within a part as short has no gradient to account for it
ROUNDING = 1e-5  # of the largest score, in single precision: errors below are rounding


@technique(
    paper="Sundararajan, Taly, Yan: Axiomatic Attribution for Deep Networks, 2017 (arXiv:1703.01365), eq. 1",
    reading="Each pixel's share of the score's rise from a plain grey picture to the photo.",
    cost=150,
    expensive=True,
)
def integrated_gradients(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    target: Target = PREDICTED,
    samples: Annotated[
        int, Arg("largest number of points on the path from the baseline", least=2, most=10_000)
    ] = 256,
    baseline: Annotated[float, Arg("grey level of the baseline", least=0, most=1)] = 0.0,
) -> Heatmap:
    """The gradient along the straight path from a baseline to the image, times their difference.

    IG = (x - x') · ∫₀¹ ∂S/∂x (x' + α (x - x')) dα. Signed, in units of the score: the sum over pixels is
    S(x) - S(x') up to `extras["error"]`, (n,). `extras["points"]`, (n,), is the number of points at which
    the gradient was taken. The predicted class is the one of the image itself.

    The integral is a sum of trapezoids. What a part of the path should add to the sum is known from the
    scores at its ends, so its error is too. The path begins with 17 points at equal distances; then the
    parts with the largest errors are halved, until the sum is off by at most 1 % of S(x) - S(x') and the
    parts by at most 10 % together, or there are `samples` points: a caution names the error that is left.
    Every point is used. Images are worked on one after the other; each holds a gradient a point in memory.
    On the baseline itself, where all pixels are equal, max pooling has no definite gradient: that at the
    beginning is taken 1/10,000 of the way along.

    Departs from the paper, which takes 20 to 300 points at equal distances: a score often rises within a
    small part of the path, where these are too few.
    """
    whole = model.run(images, target.layers)
    size = gradient_batch(model, images)
    batches = -(-samples // size)  # of each image, if it takes all points
    values, errors, points = [], [], []
    for index, image in enumerate(images.split(1)):
        path = _Path(model, image, torch.full_like(image, baseline), target.for_image(whole, index))
        reported, wanted = 0, path.first(samples)
        while wanted:
            for part in chunks(len(wanted), size):
                while reported < min(batches, len(path.points) // size + 1):
                    tell("integrated_gradients", index * batches + reported, len(images) * batches)
                    reported += 1
                path.measure(wanted[part])
            wanted = path.next(samples - len(path.points))
        for batch in range(reported, batches):
            tell("integrated_gradients", index * batches + batch, len(images) * batches)
        if path.unfinished():
            note(f"{CAUTION}image {index}: {path.unfinished()}; more samples may help")
        values.append(path.integral())
        errors.append(sum(path.errors().values()))
        points.append(len(path.points))
    tell("integrated_gradients", len(images) * batches, len(images) * batches)
    extras = {"error": torch.tensor(errors, dtype=images.dtype), "points": torch.tensor(points)}
    return Heatmap(torch.cat(values), images, signed=True, overlay=False, summed=True, extras=extras)


class _Point(NamedTuple):
    """What was measured at one point of a path; `slope` is the derivative of the score along the path."""

    score: float
    slope: float
    gradient: Float[Tensor, "1 3 h w"]


class _Path:
    """The straight path from a baseline to one image, and the points on it by their share of the way."""

    def __init__(
        self,
        model: Model,
        image: Float[Tensor, "1 3 h w"],
        start: Float[Tensor, "1 3 h w"],
        target: Objective,
    ) -> None:
        self.model, self.start, self.way, self.target = model, start, image - start, target
        self.points: dict[float, _Point] = {}

    def first(self, most: int) -> list[float]:
        """The points to begin with: at equal distances, both ends among them."""
        count = min(FIRST, most)
        return [number / (count - 1) for number in range(count)]

    def measure(self, shares: list[float]) -> None:
        """Take the score and its gradient at some points, in one forward and one backward."""
        near = max(NEAR, FAR * torch.finfo(self.model.dtype).eps)
        share = torch.tensor([value or near for value in shares], dtype=torch.float64)
        share = share.to(self.way).view(-1, 1, 1, 1)
        target = each([self.target] * len(shares))
        scores, gradients = scores_and_gradient(self.model, self.start + share * self.way, target)
        slopes = (gradients * self.way).double().sum((1, 2, 3))
        for number, value in enumerate(shares):
            gradient = gradients[number : number + 1]
            score = float(scores[number]) if value else self._first_score()
            self.points[value] = _Point(score, float(slopes[number]), gradient)

    def _first_score(self) -> float:
        return float(self.target.score(self.model.run(self.start, self.target.layers)))

    def errors(self) -> dict[tuple[float, float], float]:
        """What each part's trapezoid is off by from the rise of the score along it."""
        return {
            (a, b): (b - a) * (self.points[a].slope + self.points[b].slope) / 2
            - (self.points[b].score - self.points[a].score)
            for a, b in pairwise(sorted(self.points))
        }

    def next(self, most: int) -> list[float]:
        """The points to measure next, at most so many: the middles of the parts with the largest errors."""
        if most <= 0 or not self.unfinished():
            return []
        errors = self.errors()
        left = HALVED * sum(map(abs, errors.values()))
        middles: list[float] = []
        for a, b in sorted(errors, key=lambda part: -abs(errors[part])):
            if left <= 0 or len(middles) == most:
                break
            left -= abs(errors[a, b])
            if b - a > NARROWEST:
                middles.append((a + b) / 2)
        return middles

    def unfinished(self) -> str:
        """By how much the integral is off, where that is too much to stop; empty where it is not."""
        errors = list(self.errors().values())
        whole, parts = abs(sum(errors)), sum(map(abs, errors))
        rise = self.points[1.0].score - self.points[0.0].score
        precision = max(ROUNDING, torch.finfo(self.model.dtype).eps)
        rounding = precision * max(abs(point.score) for point in self.points.values())
        if not isfinite(parts) or (
            whole <= max(WHOLE * abs(rise), rounding)
            and parts <= max(PARTS * abs(rise), rounding * len(errors))
        ):
            return ""
        off, together = (f"{e / abs(rise):.1%}" if rise else f"{e:.3g}" for e in (whole, parts))
        return (
            f"after {len(self.points)} points the values sum to {rise + sum(errors):.3g}, the score rises by "
            f"{rise:.3g} (off by {off}, parts of the path by {together} together)"
        )

    def integral(self) -> Float[Tensor, "1 3 h w"]:
        """Each pixel's share: the trapezoids' sum, times the way."""
        total = torch.zeros_like(self.way)
        for a, b in pairwise(sorted(self.points)):
            total += (b - a) / 2 * (self.points[a].gradient + self.points[b].gradient)
        return self.way * total
