"""The spectrum of a texture, without the cross that an image's edges leave in it."""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor


def periodic(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """The periodic component p = u - s of images: like u inside, without a jump from edge to opposite edge.

    Δs = v, v the jumps over the edges: ŝ(q, r) = v̂ / (2 cos 2πq/h + 2 cos 2πr/w - 4), ŝ(0, 0) = 0. The mean
    is u's. Moisan: Periodic plus smooth image decomposition, Journal of Mathematical Imaging and Vision 2011.
    """
    h, w = images.shape[-2:]
    jumps = torch.zeros_like(images)
    rows = images[..., -1, :] - images[..., 0, :]
    columns = images[..., :, -1] - images[..., :, 0]
    jumps[..., 0, :] += rows
    jumps[..., -1, :] -= rows
    jumps[..., :, 0] += columns
    jumps[..., :, -1] -= columns
    down = 2 * torch.cos(2 * math.pi * torch.arange(h, dtype=torch.float64) / h)
    across = 2 * torch.cos(2 * math.pi * torch.arange(w // 2 + 1, dtype=torch.float64) / w)
    curvature = (down[:, None] + across - 4).to(images)
    curvature[0, 0] = 1  # where ŝ is zero
    spectrum = torch.fft.rfft2(jumps) / curvature
    spectrum[..., 0, 0] = 0
    smooth: Tensor = torch.fft.irfft2(spectrum, (h, w))
    return images - smooth


def spot(sample: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Complex[Tensor, "n c H half"]:
    """The spectrum, without the mean, of a texture like the sample at another size.

    The sample's periodic component stands in a field of zeros, times √(HW/hw), so that the variance stays
    (Galerne, Gousseau, Morel 2011, section IV); at the sample's own size it is the component's spectrum.
    """
    (h, w), (height, width) = sample.shape[-2:], size
    field = sample.new_zeros((*sample.shape[:2], height, width))
    part = periodic(sample)
    field[..., :h, :w] = (part - part.mean((2, 3), keepdim=True)) * math.sqrt(height * width / (h * w))
    found: Tensor = torch.fft.rfft2(field)
    return found


def radial_power(images: Float[Tensor, "1 c h w"], bands: int) -> Float[Tensor, "c bands"]:
    """The mean power of the periodic component in rings of equal width, from frequency 0 to ½ a pixel.

    Divided by the number of pixels, so that images of different sizes can be compared.
    """
    h, w = images.shape[-2:]
    part = periodic(images.double())
    power = torch.fft.fft2(part - part.mean((2, 3), keepdim=True)).abs().square()[0] / (h * w)
    frequency = torch.hypot(torch.fft.fftfreq(h)[:, None], torch.fft.fftfreq(w)).to(images.device)
    ring = (frequency * 2 * bands).long().clamp(max=bands - 1).flatten()
    inside = (frequency <= 0.5).flatten()
    sums = power.new_zeros(len(power), bands).index_add(1, ring[inside], power.flatten(1)[:, inside])
    counts = torch.bincount(ring[inside], minlength=bands).clamp(min=1)
    mean: Tensor = sums / counts
    return mean
