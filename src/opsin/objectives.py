"""What is asked of a network: a class, a unit, a channel, features to match, a prior on the image; sums."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import interpolate, normalize

from opsin.activations import Activations, is_distribution
from opsin.errors import InputError, shown
from opsin.results import CAUTION, note

SMALL = 1e-12  # keeps roots differentiable at zero
LARGEST = torch.finfo(torch.float32).max  # of a number: single precision holds no larger one
MOST_EXPONENT = 20  # of a prior: its power of a picture is a number still, and so is the gradient

Combine = Callable[[Tensor, Tensor], Tensor]


class Place(NamedTuple):
    """Which rows and columns of a layer's whole maps some maps are, and how large the whole is."""

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
    """A score to differentiate or to climb: `score(activations)` gives one number an image, (n,).

    It declares the `layers` it reads; `"image"` and `"output"` are among the valid ones. Objectives
    add, subtract and scale: `2 * channel("conv1", 3) - logit(281)`. One that is a sum of `terms` and
    nothing else may be worked in tiles.
    """

    name: str
    layers: tuple[str, ...]
    score: Callable[[Activations], Float[Tensor, " n"]]
    single: Callable[[Activations, int], "Objective"] | None = None
    count: int = 1  # of the images that it asks different things of
    terms: tuple[Term, ...] = ()
    chain: "tuple[tuple[Combine, Objective], ...]" = ()  # the parts of a sum, each with how it is taken in

    def watched(self, see: Callable[[Float[Tensor, " n"]], None]) -> "Objective":
        """The same objective, all of whose scores `see` is shown."""

        def score(activations: Activations) -> Tensor:
            scores = self.score(activations)
            see(scores)
            return scores

        def single(activations: Activations, index: int) -> Objective:
            return self.for_image(activations, index).watched(see)

        return Objective(self.name, self.layers, score, single, self.count, self.terms)

    def for_image(self, activations: Activations, index: int) -> "Objective":
        """What this objective asks of image `index` of the run: the same of any batch made from it.

        The predicted class is then the one predicted here, whatever is done to the image later.
        """
        return self.single(activations, index) if self.single else self

    def __add__(self, other: "Objective") -> "Objective":
        return self._with(other, " + ", torch.add)

    def __sub__(self, other: "Objective") -> "Objective":
        return self._with(other, " - ", torch.sub)

    def __mul__(self, weight: float) -> "Objective":
        _finite(weight)
        return Objective(
            f"{_written(weight)}*{self._bracketed()}",
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
        chain = (*(self.chain or ((torch.add, self),)), (combine, other))  # long sums are no deep recursion

        def score(activations: Activations) -> Tensor:
            total = chain[0][1].score(activations)
            for take_in, part in chain[1:]:
                total = take_in(total, part.score(activations))
            return total

        def single(activations: Activations, index: int) -> Objective:
            total = chain[0][1].for_image(activations, index)
            for take_in, part in chain[1:]:
                own = part.for_image(activations, index)
                total = total - own if take_in is torch.sub else total + own
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


def separated(text: str) -> list[str]:
    """The objectives of several images that a text names, between semicolons that stand in no brackets."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[();]", text):
        if match.group() != ";":
            depth += 1 if match.group() == "(" else -1
        elif depth <= 0:
            parts.append(text[start : match.start()])
            start = match.end()
    return [part.strip() for part in (*parts, text[start:])]


def logit(index: int, name: str | None = None) -> Objective:
    """The score of one class before the softmax."""

    def score(activations: Activations) -> Tensor:
        output = _classes(activations)
        if not 0 <= index < output.shape[1]:
            raise InputError(
                f"class {index} does not exist: the output has classes 0 to {output.shape[1] - 1}"
            )
        return output[:, index]

    return Objective(name or str(index), ("output",), score)


def predicted() -> Objective:
    """The score of each image's most probable class."""
    return Objective(
        "predicted class",
        ("output",),
        lambda a: _classes(a).max(1).values,  # of equal ones the first, as argmax; amax would mix them
        lambda a, i: logit(int(_classes(a)[i].argmax())),
    )


def channel(layer: str, index: int) -> Objective:
    """The mean of one channel of a layer over its positions."""

    def score(activations: Activations) -> Tensor:
        return _channel(activations, layer, index)[:, None].flatten(1).mean(1)  # (n, h, w) or (n,) -> (n,)

    return Objective(f"{layer}:{index}", (layer,), score)


def unit(layer: str, index: int, row: int, column: int) -> Objective:
    """One channel of a layer at one position."""

    def score(activations: Activations) -> Tensor:
        values = _channel(activations, layer, index)
        if values.ndim != 3:
            raise InputError(f"layer {layer!r} has no positions: write {layer}:{index}")
        h, w = values.shape[1:]
        if not (0 <= row < h and 0 <= column < w):
            raise InputError(f"position {row},{column} is outside layer {layer!r}, which is {h}x{w} here")
        return values[:, row, column]

    return Objective(f"{layer}:{index}@{row},{column}", (layer,), score)


def neuron(layer: str, index: int) -> Objective:
    """One channel of a layer at its central position."""

    def score(activations: Activations) -> Tensor:
        values = _channel(activations, layer, index)
        return values[:, values.shape[1] // 2, values.shape[2] // 2] if values.ndim == 3 else values

    return Objective(f"neuron({layer}, {index})", (layer,), score)


def direction(layer: str, vector: Sequence[float]) -> Objective:
    """The mean over positions of a layer's features along a direction: Σ_k v_k A_k."""
    for value in vector:
        _finite(value)
    named = ", ".join(_written(value) for value in vector)

    def score(activations: Activations) -> Tensor:
        values = activations.channels(layer)
        if values.shape[1] != len(vector):
            raise InputError(f"layer {layer!r} has {values.shape[1]} channels, the direction {len(vector)}")
        means = values.reshape(*values.shape[:2], -1).mean(2)  # (n, c, h, w) or (n, c) -> (n, c)
        return means @ means.new_tensor(vector)

    return Objective(f"direction({layer}, {named})", (layer,), score)


def energy(layer: str) -> Objective:
    """Half the mean square of a layer's units: its gradient is the activations themselves (DeepDream).

    Tokens that are no positions (a class token) take no part.
    """
    return Objective(f"energy({layer})", (layer,), lambda a: a.units(layer).square().flatten(1).mean(1) / 2)


def diversity(layer: str) -> Objective:
    """How little the pictures of a batch have in common at a layer.

    Minus the mean cosine of each picture's Gram matrix with the others'; of a single picture zero.
    """

    def score(activations: Activations) -> Tensor:
        grams = normalize(gram(activations.maps(layer)).flatten(1))
        n = len(grams)
        return (1 - (grams @ grams.T).sum(1)) / max(1, n - 1)  # less each one's cosine with itself

    return Objective(f"diversity({layer})", (layer,), score)


def match(layer: str, features: Tensor) -> Objective:
    """Minus the normalised squared distance to given features: -||Φ - Φ₀||² / ||Φ₀||²."""
    wanted = _wide(features)
    size = wanted.flatten(1).square().sum(1)
    if not size.all():
        raise InputError(f"layer {layer!r} is zero everywhere on the picture: there is nothing to match")

    def score(activations: Activations) -> Tensor:
        return -(activations[layer] - wanted).square().flatten(1).sum(1) / size

    return Objective(f"match({layer})", (layer,), score)


def dream_match(layer: str, guide: Float[Tensor, "1 c h w"]) -> Objective:
    """The mean product of each position's features with the guide's that fit best (guided DeepDream)."""
    wanted = guide.flatten(2)[0]  # (1, c, h, w) -> (c, hw)

    def score(activations: Activations) -> Tensor:
        features = activations.maps(layer).flatten(2)  # (n, c, h, w) -> (n, c, k)
        best = (features.detach().transpose(1, 2) @ wanted).argmax(2)  # (n, k)
        return torch.stack([(f * wanted[:, b]).mean() for f, b in zip(features, best, strict=True)])

    return Objective(f"dream_match({layer})", (layer,), score)


def summed(name: str, term: Term) -> Objective:
    """The objective of one term."""

    def score(activations: Activations) -> Tensor:
        maps = activations.maps(term.layer)
        h, w = maps.shape[-2:]
        return term.score(term.part(maps, Place(slice(0, h), slice(0, w), (h, w))))

    return Objective(name, (term.layer,), score, terms=(term,))


def gram(
    maps: Float[Tensor, "n c h w"], place: Place | None = None, weight: Tensor | None = None
) -> Float[Tensor, "n c c"]:
    """The Gram matrix of features over positions, a mean: G_ij = Σ_k F_ik F_jk / Σ_k 1.

    Of maps at a `place` in larger ones, their part of the sum. With a `weight` (1, 1, H, W) of each
    position, at any resolution, the weighted mean.
    """
    flat = _wide(maps).flatten(2)  # (n, c, h, w) -> (n, c, hw)
    h, w = place.size if place else maps.shape[-2:]
    if weight is None:
        products: Tensor = _Products.apply(flat)
        return products / (h * w)
    share = interpolate(weight.to(flat), (h, w), mode="area")
    own = share[..., place.rows, place.columns] if place else share
    return flat * own.flatten(2) @ flat.transpose(1, 2) / share.sum()  # (n, c, hw) (1, 1, hw) (n, hw, c)


class _Products(torch.autograd.Function):
    """F Fᵀ, whose derivative (G + Gᵀ) F is one product and lies in memory as F does."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor) -> Tensor:
        ctx.save_for_backward(flat)
        return flat @ flat.transpose(1, 2)  # (n, c, hw) (n, hw, c)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, signal: Tensor) -> Tensor:
        (flat,) = ctx.saved_tensors
        both = signal + signal.transpose(1, 2)
        last = flat.stride(1) == 1  # channels
        signals: Tensor = (flat.transpose(1, 2) @ both).transpose(1, 2) if last else both @ flat
        return signals


def gram_match(
    layer: str, wanted: Float[Tensor, "1 c c"], weight: Tensor | None = None, scale: float = 1.0
) -> Objective:
    """Minus the distance of Gram matrices: -Σ_ij (G_ij - Ĝ_ij)² / 4c², of features times `scale`."""
    c = wanted.shape[1]
    term = Term(
        layer,
        lambda maps, place: gram(maps, place, weight) * scale**2,
        lambda found: -(found - wanted).square().sum((1, 2)) / (4 * c**2),
    )
    return summed(f"gram_match({layer})", term)


def content_match(layer: str, wanted: Float[Tensor, "1 c h w"], scale: float = 1.0) -> Objective:
    """Minus half the mean squared distance from given maps: -½ mean (F - P)², of features times `scale`."""
    term = Term(
        layer,
        lambda maps, place: (
            _wide(maps * scale - wanted[..., place.rows, place.columns] * scale).square().flatten(1).sum(1)
        ),
        lambda total: -total / (2 * wanted[0].numel()),
    )
    return summed(f"content_match({layer})", term)


def total_variation(beta: float = 2.0) -> Objective:
    """Minus the image's total variation: -Σ ((x(i, j+1) - x(i, j))² + (x(i+1, j) - x(i, j))²)^(β/2)."""
    _check_exponent(beta)

    def score(activations: Activations) -> Tensor:
        x = activations["image"]
        right = x[..., :-1, 1:] - x[..., :-1, :-1]
        down = x[..., 1:, :-1] - x[..., :-1, :-1]
        return -(right.square() + down.square()).clamp(min=SMALL).pow(beta / 2).flatten(1).sum(1)

    return Objective(f"total_variation({_written(beta)})", ("image",), score)


def norm(alpha: float = 2.0, centre: Tensor | float = 0.0, unit: Tensor | float = 1.0) -> Objective:
    """Minus the image's α-norm to the power α: -Σ |(x - centre) / unit|^α."""
    _check_exponent(alpha)
    numbers = [alpha]
    if not isinstance(centre, Tensor) and not isinstance(unit, Tensor) and (centre, unit) != (0, 1):
        numbers += [_finite(centre), _finite(unit)]
        if not unit:
            raise InputError("the unit of a norm is not zero")
    return Objective(
        f"norm({', '.join(map(_written, numbers))})",
        ("image",),
        lambda a: -((a["image"] - centre) / unit).abs().pow(alpha).flatten(1).sum(1),
    )


def each(objectives: Sequence[Objective]) -> Objective:
    """A different objective for every image: the i-th score is the i-th objective's."""
    layers = tuple(dict.fromkeys(layer for o in objectives for layer in o.layers))

    def score(activations: Activations) -> Tensor:
        singles = activations.singles(layers)
        if len(singles) != len(objectives):
            raise InputError(f"{len(objectives)} objectives for {len(singles)} images: give one an image")
        return torch.cat([o.score(single) for o, single in zip(objectives, singles, strict=True)])

    name = "; ".join(o.name for o in objectives)
    return Objective(name, layers, score, lambda a, i: objectives[i].for_image(a, i), len(objectives))


def pinned(target: Objective, run: Activations) -> Objective:
    """The objective that asks of every image of a later batch what `target` asks of it in `run`."""
    return each([target.for_image(run, index) for index in range(len(run["image"]))])


def _wide(values: Tensor) -> Tensor:
    """In single precision where it is half: squares and sums overflow there."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _finite(number: float) -> float:
    """The number. Raises `InputError` where single precision does not hold it."""
    if not abs(number) <= LARGEST:
        raise InputError(f"numbers in a target are finite, in single precision: {shown(number)} is not")
    return number


def _check_exponent(exponent: float) -> None:
    if not 1 <= exponent <= MOST_EXPONENT:
        raise InputError(f"the exponent of a prior is from 1 to {MOST_EXPONENT}, not {shown(exponent)}")


def _written(number: float) -> str:
    """A number as short as it may be written and read again."""
    short = f"{number:g}"
    return short if float(short) == number else repr(float(number))


def _classes(activations: Activations) -> Float[Tensor, "n c"]:
    output = activations["output"]
    if output.ndim != 2:
        raise InputError(f"a class needs an output of (n, classes), this network gives {tuple(output.shape)}")
    if is_distribution(output):
        note(f"{CAUTION}the network's output is probabilities: the score is not the one before the softmax")
    return output


def _channel(activations: Activations, layer: str, index: int) -> Tensor:
    values = activations.channels(layer)
    if not 0 <= index < values.shape[1]:
        raise InputError(f"layer {layer!r} has channels 0 to {values.shape[1] - 1}, not {index}")
    return values[:, index]
