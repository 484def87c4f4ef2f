"""What climbs towards textures share: where they start, at which layers, for which loss."""

import re
from functools import reduce
from operator import add

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opsin.base.errors import InputError
from opsin.base.job import note
from opsin.network.activations import Activations
from opsin.network.model import Model
from opsin.objectives.features import gram, gram_match
from opsin.objectives.objective import Objective
from opsin.statistics.spectrum import spot

DEFAULT_RATES = {"lbfgs": 1.0, "adam": 0.02, "gradient": 0.005}  # the last two found by trial
SMALL = 1e-12  # a layer of zeros has no mean
NOISE = 0.1  # deviation of the noise to start from; more of it stays visible
ACTIVATION = re.compile(r"relu|silu|gelu|swish|mish|elu|act", re.IGNORECASE)


def noise(photo: Float[Tensor, "1 3 h w"], size: tuple[int, int], seed: int) -> Float[Tensor, "1 3 H W"]:
    """Faint Gaussian noise around the photo's mean colour."""
    drawn = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed)).to(photo)
    return (photo.mean((2, 3), keepdim=True) + NOISE * drawn).clamp(0, 1)


def mirrored(photo: Float[Tensor, "1 3 h w"], side: int) -> Float[Tensor, "1 3 H W"]:
    """The photo continued by its mirror images up to a side, where it is less than half as long.

    A small sample is all border to deep layers, whose padding would become part of its texture.
    """
    height, width = (side if 2 * length < side else length for length in photo.shape[-2:])
    if (height, width) == tuple(photo.shape[-2:]):
        return photo
    note(
        f"the sample of {photo.shape[2]}x{photo.shape[3]} was continued by mirror images to {height}x{width}"
    )
    rows, columns = (
        _back_and_forth(length, wanted, photo.device)
        for length, wanted in zip(photo.shape[-2:], (height, width), strict=True)
    )
    return photo[:, :, rows][..., columns]


def _back_and_forth(length: int, count: int, device: torch.device) -> Int[Tensor, " count"]:
    """Indices 0 … length - 1, length - 1 … 0, 0 … and so on."""
    at = torch.arange(count, device=device) % (2 * length)
    return torch.where(at < length, at, 2 * length - 1 - at)


def photo_label(index: int, count: int) -> str:
    """How a climb's label begins where a technique takes several photos: with the photo's number."""
    return f"photo {index + 1}, " if count > 1 else ""


def texture_objective(
    model: Model, photo: Float[Tensor, "1 3 h w"], layers: list[str], mask: Tensor | None = None
) -> Objective:
    """Minus the mean loss E_l over the layers, Gram matrices of `photo` wanted; within the mask, if given."""
    with torch.no_grad():
        run = model.run(photo, layers)
        terms = []
        for layer in layers:
            maps = run.maps(layer)
            if maps.shape[-2:] == (1, 1):
                raise InputError(f"layer {layer!r} is 1x1 here: a texture needs more positions")
            terms.append(
                gram_match(
                    layer,
                    gram(maps) * inverse_mean_activation(maps) ** 2,
                    mask,
                    inverse_mean_activation(maps),
                )
            )
    return reduce(add, terms) * (1 / len(terms))


def spectrum_match(photo: Float[Tensor, "1 3 h w"], size: tuple[int, int]) -> Objective:
    """Minus the distance to the nearest picture with the photo's spectrum, ½ mean (x - x̃)², in variances.

    F(x̃) = F(t) c / |c| with c = Σ F(x) F(t)* over the colours, where F(t) is the photo's spectrum at this
    `size` (`statistics.spectrum.spot`): x̃ has its amplitudes and its phases between colours, and else those
    of x. Liu, Gousseau, Xia: Texture Synthesis Through Convolutional Neural Networks and Spectrum
    Constraints, 2016 (arXiv:1605.01141).
    """
    wanted, mean = spot(photo, size), photo.mean((2, 3), keepdim=True)
    variance = photo.var((2, 3)).mean().clamp(min=SMALL)

    def score(activations: Activations) -> Tensor:
        x = activations["image"] - mean.to(activations["image"])
        with torch.no_grad():
            along = (torch.fft.rfft2(x) * wanted.conj()).sum(1, keepdim=True)
            turned = along / along.abs().clamp(min=SMALL)
            nearest = torch.fft.irfft2(wanted * turned, size)
        distance: Tensor = (x - nearest).square().mean((1, 2, 3)) / (2 * variance)
        return -distance

    return Objective("spectrum of the photo", ("image",), score)


def inverse_mean_activation(maps: Float[Tensor, "n c h w"]) -> float:
    """What maps are to be multiplied with, so that their mean size is one."""
    return 1 / float(maps.abs().mean().clamp(min=SMALL))


def first_activations(model: Model) -> list[str]:
    """The first activation at every resolution; where there is none, the first layer.

    Raises `NetworkError` where no layer has a spatial extent.
    """
    by_extent: dict[tuple[int, int], list[str]] = {}
    for call in model.calls.values():
        spatial = call.extent is not None and min(call.extent) > 1
        if spatial and (not call.passive or ACTIVATION.search(call.kind)):
            by_extent.setdefault(call.extent or (1, 1), []).append(call.name)
    kinds = {call.name: call.kind for call in model.calls.values()}
    if not by_extent:
        return [model.default_layer]
    return [next((n for n in names if ACTIVATION.search(kinds[n])), names[0]) for names in by_extent.values()]
