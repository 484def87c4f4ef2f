"""Objectives on whole layers: matches, Gram matrices, diversity."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import interpolate, normalize

from opsin.base.errors import InputError
from opsin.network.activations import Activations
from opsin.objectives.objective import Objective, Place, Term

SMALL = 1e-12  # keeps roots differentiable at zero


def diversity(layer: str) -> Objective:
    """How different the pictures of a batch are at a layer.

    Minus the mean cosine of each picture's Gram matrix with the others'; zero for a single picture.
    """

    def score(activations: Activations) -> Tensor:
        grams = normalize(gram(activations.maps(layer)).flatten(1))
        n = len(grams)
        return (1 - (grams @ grams.T).sum(1)) / max(1, n - 1)  # without each picture's cosine with itself

    return Objective(f"diversity({layer})", (layer,), score)


def match(layer: str, features: Tensor) -> Objective:
    """Minus the normalised squared distance to given features: -||Φ - Φ₀||² / ||Φ₀||².

    Raises `InputError` if the features are all zero.
    """
    wanted = _wide(features)
    size = wanted.flatten(1).square().sum(1)
    if not size.all():
        raise InputError(
            f"layer {layer!r} is zero everywhere on the picture: choose a layer that responds to it"
        )

    def score(activations: Activations) -> Tensor:
        return -(activations[layer] - wanted).square().flatten(1).sum(1) / size

    return Objective(f"match({layer})", (layer,), score)


def dream_match(layer: str, guide: Float[Tensor, "1 c h w"]) -> Objective:
    """The mean product of each position's features with the guide's best match (guided DeepDream)."""
    wanted = guide.flatten(2)[0]  # (1, c, h, w) -> (c, hw)

    def score(activations: Activations) -> Tensor:
        features = activations.maps(layer).flatten(2)  # (n, c, h, w) -> (n, c, k)
        best = (features.detach().transpose(1, 2) @ wanted).argmax(2)  # (n, k)
        return torch.stack([(f * wanted[:, b]).mean() for f, b in zip(features, best, strict=True)])

    return Objective(f"dream_match({layer})", (layer,), score)


def summed(name: str, term: Term) -> Objective:
    """The objective that consists of one term."""

    def score(activations: Activations) -> Tensor:
        maps = activations.maps(term.layer)
        h, w = maps.shape[-2:]
        return term.score(term.part(maps, Place(slice(0, h), slice(0, w), (h, w))))

    return Objective(name, (term.layer,), score, terms=(term,))


def gram(
    maps: Float[Tensor, "n c h w"], place: Place | None = None, weight: Tensor | None = None
) -> Float[Tensor, "n c c"]:
    """The Gram matrix of features, a mean over positions: G_ij = Σ_k F_ik F_jk / Σ_k 1.

    For maps at a `place` in larger maps it is their part of the sum. With a `weight` (1, 1, H, W) per
    position, at any resolution, it is the weighted mean.
    """
    flat = _wide(maps).flatten(2)  # (n, c, h, w) -> (n, c, hw)
    h, w = place.size if place else maps.shape[-2:]
    if weight is None:
        products: Tensor = _Products.apply(flat)
        return products / (h * w)
    share = interpolate(weight.to(flat), (h, w), mode="area")
    share_here = share[..., place.rows, place.columns] if place else share
    return (
        flat * share_here.flatten(2) @ flat.transpose(1, 2) / share.sum()
    )  # (n, c, hw) (1, 1, hw) (n, hw, c)


class _Products(torch.autograd.Function):
    """F Fᵀ, whose derivative (G + Gᵀ) F is one product with the memory layout of F."""

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
    """Minus the distance of Gram matrices: -Σ_ij (G_ij - Ĝ_ij)² / 4c², for features times `scale`."""
    c = wanted.shape[1]
    term = Term(
        layer,
        lambda maps, place: gram(maps, place, weight) * scale**2,
        lambda matrix: -(matrix - wanted).square().sum((1, 2)) / (4 * c**2),
    )
    return summed(f"gram_match({layer})", term)


def content_match(layer: str, wanted: Float[Tensor, "1 c h w"], scale: float = 1.0) -> Objective:
    """Minus half the mean squared distance from given maps: -½ mean (F - P)², for features times `scale`."""
    term = Term(
        layer,
        lambda maps, place: (
            _wide(maps * scale - wanted[..., place.rows, place.columns] * scale).square().flatten(1).sum(1)
        ),
        lambda total: -total / (2 * wanted[0].numel()),
    )
    return summed(f"content_match({layer})", term)


def _wide(values: Tensor) -> Tensor:
    """In at least single precision: squares and sums overflow in half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
