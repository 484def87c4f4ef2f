"""Random changes that a picture must survive while it is optimised: (images, generator) -> images, same size.

A draw holds for the whole batch, so that a batch gives what single images give.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, pad

Transform = Callable[[Float[Tensor, "n 3 h w"], Generator], Float[Tensor, "n 3 h w"]]
REACH = 3.0  # standard deviations that a Gaussian is followed


def jitter(pixels: int) -> Transform:
    """Shift by up to so many pixels in each direction; what leaves at one edge comes back at the other."""

    def apply(images: Tensor, generator: Generator) -> Tensor:
        shift = torch.randint(-pixels, pixels + 1, (2,), generator=generator).tolist()
        return images.roll(shift, (2, 3))

    return apply


def scale(low: float, high: float) -> Transform:
    """Enlarge around the centre by a factor from [low, high]; edges are reflected."""
    return affine(0.0, low, high)


def rotate(degrees: float) -> Transform:
    """Turn around the centre by up to so many degrees; edges are reflected."""
    return affine(degrees, 1.0, 1.0)


def affine(degrees: float, low: float, high: float) -> Transform:
    """Turn by up to so many degrees and enlarge by a factor from [low, high], in one resampling."""

    def apply(images: Tensor, generator: Generator) -> Tensor:
        turn, zoom = torch.rand(2, generator=generator).tolist()
        angle = math.radians(degrees * (2 * turn - 1))
        factor = low + (high - low) * zoom
        h, w = images.shape[-2:]
        cos, sin = math.cos(angle) / factor, math.sin(angle) / factor
        matrix = images.new_tensor([[cos, -sin * h / w, 0], [sin * w / h, cos, 0]])  # in units of half a side
        grid = affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
        return grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    return apply


def border(pixels: int, grey: float = 0.5) -> Transform:
    """Grey over the outer pixels, so that nothing hides at the edge."""

    def apply(images: Tensor, _: Generator) -> Tensor:
        inner = images[..., pixels : images.shape[-2] - pixels, pixels : images.shape[-1] - pixels]
        return pad(inner, (pixels,) * 4, value=grey)

    return apply


def blur(sigma: float) -> Transform:
    """Convolve with a Gaussian of so many pixels; edges are reflected."""
    return lambda images, _: blurred(images, sigma)


def blurred(images: Float[Tensor, "n c h w"], sigma: float) -> Float[Tensor, "n c h w"]:
    """Images convolved with a Gaussian of `sigma` pixels, followed for 3 of them; edges are reflected."""
    radius = math.ceil(REACH * sigma)
    radius = min(radius, *(side - 1 for side in images.shape[-2:]))
    if sigma <= 0 or radius == 0:
        return images
    at = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = (-(at**2) / (2 * sigma**2)).exp()
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    channels = images.shape[1]
    wide = conv2d(pad(images, (radius, radius, 0, 0), mode="reflect"), kernel, groups=channels)
    high = pad(wide, (0, 0, radius, radius), mode="reflect")
    return conv2d(high, kernel.transpose(2, 3), groups=channels)
