"""The parameters that an optimisation changes: an image's pixels, or its spectrum in decorrelated colours."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

# Olah et al. 2017: square root of the covariance of colours over ImageNet, as Lucid publishes it
COLOUR = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
SPREAD = 4.0  # Lucid's: the spectrum's pixels are so many times too large for the sigmoid
EDGE = 1e-4  # black and white are so far from 0 and 1 in a sigmoid's image


class Canvas(ABC):
    """An image parametrisation: `decode(encode(images))` gives the images, or what it keeps of them."""

    @abstractmethod
    def encode(self, images: Float[Tensor, "n 3 h w"]) -> Tensor:
        """The parameters of images in [0, 1]."""

    @abstractmethod
    def decode(self, parameters: Tensor) -> Float[Tensor, "n 3 h w"]:
        """The images of parameters, differentiable."""

    @abstractmethod
    def project(self, parameters: Tensor) -> None:
        """Bring parameters back, in place, to those of images in [0, 1]."""


@dataclass(frozen=True)
class Pixels(Canvas):
    """The pixels themselves."""

    def encode(self, images: Float[Tensor, "n 3 h w"]) -> Tensor:
        """The images."""
        return images.clone()

    def decode(self, parameters: Tensor) -> Float[Tensor, "n 3 h w"]:
        """The parameters."""
        return parameters

    def project(self, parameters: Tensor) -> None:
        """Clip to [0, 1]."""
        parameters.clamp_(0, 1)


@dataclass(frozen=True)
class Toned(Canvas):
    """The pixels through a sine: x = sin² y, so that a step changes shadows and highlights less."""

    def encode(self, images: Float[Tensor, "n 3 h w"]) -> Tensor:
        """The angles, from 0 to π/2."""
        return images.sqrt().asin()

    def decode(self, parameters: Tensor) -> Float[Tensor, "n 3 h w"]:
        """The squared sines."""
        return parameters.sin().square()

    def project(self, parameters: Tensor) -> None:
        """Keep the angles from 0 to π/2."""
        parameters.clamp_(0, math.pi / 2)


@dataclass(frozen=True)
class Fourier(Canvas):
    """The spectrum of decorrelated colours, through a sigmoid: x = σ(C F⁻¹(s ŷ) / 4).

    ŷ are the parameters, s(f) = 1 / max(|f|, 1 / max(h, w))^decay gives every frequency the energy that
    it has in natural images, C mixes the three decorrelated channels into colours. Olah et al.: Feature
    Visualization, Distill 2017.
    """

    height: int
    width: int
    decay: float = 1.0

    def encode(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h half 2"]:
        """The spectrum of images; black and white are brought within 1e-4 of 0 and 1."""
        flat = SPREAD * torch.einsum("dc,nchw->ndhw", self.mix(images).inverse(), images.logit(EDGE))
        return torch.view_as_real(torch.fft.rfft2(flat, norm="ortho") / self._scale.to(images.device))

    def decode(self, parameters: Float[Tensor, "n 3 h half 2"]) -> Float[Tensor, "n 3 h w"]:
        """The images of a spectrum."""
        spectrum = torch.view_as_complex(parameters) * self._scale.to(parameters.device)
        flat = torch.fft.irfft2(spectrum, (self.height, self.width), norm="ortho") / SPREAD
        return torch.einsum("cd,ndhw->nchw", self.mix(flat), flat).sigmoid()

    def project(self, parameters: Tensor) -> None:
        """A sigmoid's image is in [0, 1] already."""

    def noise(self, n: int, generator: torch.Generator, deviation: float = 0.01) -> Float[Tensor, "n 3 h w"]:
        """Faint images of random spectra, to start from."""
        shape = (n, 3, self.height, self.width // 2 + 1, 2)
        return self.decode(deviation * torch.randn(shape, generator=generator))

    @cached_property
    def _scale(self) -> Float[Tensor, "h half"]:
        rows, columns = torch.fft.fftfreq(self.height), torch.fft.rfftfreq(self.width)
        size = (rows[:, None].square() + columns[None].square()).sqrt()
        scale: Tensor = size.clamp(min=1 / max(self.height, self.width)).pow(-self.decay)
        return scale

    def mix(self, like: Tensor) -> Float[Tensor, "3 3"]:
        """C, on the device and of the kind of another tensor."""
        return self._mix.to(like)

    @cached_property
    def _mix(self) -> Float[Tensor, "3 3"]:
        mix = torch.tensor(COLOUR, dtype=torch.float64)
        normalised: Tensor = mix / mix.norm(dim=0).max()
        return normalised
