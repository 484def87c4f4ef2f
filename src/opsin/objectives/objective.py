"""Objectives: a class, a unit, a channel, features to match, a prior on the image, and sums of these."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.errors import InputError, shown
from opsin.network.activations import Activations

LARGEST = torch.finfo(torch.float32).max  # the largest number in single precision

Combine = Callable[[Tensor, Tensor], Tensor]


class Place(NamedTuple):
    """The rows and columns of a tile in a layer's whole maps, and the size of the whole."""

    rows: slice
    columns: slice
    size: tuple[int, int]


@dataclass(frozen=True)
class Term:
    """A score of a sum over a layer's positions: `score(Σ part(maps, place))` over any tiling of the maps."""

    layer: str
    part: Callable[[Float[Tensor, "n c h w"], Place], Tensor]
    score: Callable[[Tensor], Float[Tensor, " n"]]

    def times(self, weight: float) -> "Term":
        """The term with its score multiplied."""
        return replace(self, score=lambda total: weight * self.score(total))


@dataclass(frozen=True)
class Objective:
    """A score to differentiate or to maximise: `score(activations)` gives one number per image, (n,).

    It declares the `layers` it reads; `"image"` and `"output"` are among the valid ones. Objectives
    add, subtract and scale: `2 * channel("conv1", 3) - logit(281)`. An objective that consists
    of `terms` only can be computed in tiles.
    """

    name: str
    layers: tuple[str, ...]
    score: Callable[[Activations], Float[Tensor, " n"]]
    single: Callable[[Activations, int], "Objective"] | None = None
    count: int = 1  # of images with different targets
    terms: tuple[Term, ...] = ()
    chain: "tuple[tuple[Combine, Objective], ...]" = ()  # the parts of a sum, each with its operation
    class_index: int | None = None  # of an objective that is the score of one class

    def watched(self, see: Callable[[Float[Tensor, " n"]], None]) -> "Objective":
        """The same objective; `see` is called with all of its scores."""

        def score(activations: Activations) -> Tensor:
            scores = self.score(activations)
            see(scores)
            return scores

        def single(activations: Activations, index: int) -> Objective:
            return self.for_image(activations, index).watched(see)

        return replace(self, score=score, single=single, chain=())

    def for_image(self, activations: Activations, index: int) -> "Objective":
        """The objective of image `index` of the run, fixed for any batch made from it.

        The predicted class is then the one predicted here, even if the image changes later.
        """
        return self.single(activations, index) if self.single else self

    def __add__(self, other: "Objective") -> "Objective":
        return self._with(other, " + ", torch.add)

    def __sub__(self, other: "Objective") -> "Objective":
        return self._with(other, " - ", torch.sub)

    def __mul__(self, weight: float) -> "Objective":
        check_finite(weight)
        return Objective(
            f"{written(weight)}*{self._bracketed()}",
            self.layers,
            lambda a: weight * self.score(a),
            lambda a, i: self.for_image(a, i) * weight,
            self.count,
            tuple(term.times(weight) for term in self.terms),
        )

    __rmul__ = __mul__

    def __neg__(self) -> "Objective":
        return -1.0 * self

    def _with(self, other: "Objective", sign: str, combine: Combine) -> "Objective":
        right = other._bracketed() if sign == " - " else other.name
        terms = self.terms + (-1.0 * other if combine is torch.sub else other).terms
        chain = (*(self.chain or ((torch.add, self),)), (combine, other))  # long sums do not recurse deeply

        def score(activations: Activations) -> Tensor:
            total = chain[0][1].score(activations)
            for take_in, part in chain[1:]:
                total = take_in(total, part.score(activations))
            return total

        def single(activations: Activations, index: int) -> Objective:
            total = chain[0][1].for_image(activations, index)
            for take_in, part in chain[1:]:
                single_part = part.for_image(activations, index)
                total = total - single_part if take_in is torch.sub else total + single_part
            return total

        return Objective(
            self.name + sign + right,
            tuple(dict.fromkeys(self.layers + other.layers)),
            score,
            single,
            max(self.count, other.count),
            terms if self.terms and other.terms else (),
            chain,
        )

    def _bracketed(self) -> str:
        return f"({self.name})" if re.search(r" [+-] ", self.name) else self.name


def check_finite(number: float) -> float:
    """The number itself. Raises `InputError` if it is too large for single precision or not finite."""
    if not abs(number) <= LARGEST:
        raise InputError(f"numbers in a target must be finite in single precision: {shown(number)} is not")
    return number


def written(number: float) -> str:
    """The shortest text that reads back as the same number."""
    short = f"{number:g}"
    return short if float(short) == number else repr(float(number))
