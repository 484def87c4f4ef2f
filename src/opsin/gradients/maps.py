"""Maps of a layer, weighted by the gradient there."""

from jaxtyping import Float
from torch import Tensor


def weighted_maps(
    maps: Float[Tensor, "n c h w"], gradient: Float[Tensor, "n c h w"]
) -> Float[Tensor, "n 1 h w"]:
    """Σ_k α_k A_k, with α_k the mean of the gradient over positions."""
    return (gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True)
