"""Pictures with the magnitudes of photos, of which only the phases are changed."""

from dataclasses import dataclass
from functools import cached_property
from math import pi

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from opsin.optimise.canvas import EDGE, SPREAD, Canvas, Fourier

# Mean size of F(4 C⁻¹ logit x) over 600 photos, by frequency (cycles a pixel) and decorrelated channel, as
# `benchmarks/spectrum.py` measures it
MAGNITUDES = (
    (0.00438, 427.0, 459.0, 408.0),
    (0.00748, 228.0, 229.0, 224.0),
    (0.0128, 112.0, 112.0, 114.0),
    (0.0218, 61.2, 60.9, 63.4),
    (0.0373, 30.1, 29.8, 32.2),
    (0.0637, 15.6, 15.2, 17.3),
    (0.109, 8.07, 7.58, 9.37),
    (0.186, 4.32, 3.93, 5.29),
    (0.318, 2.18, 2.15, 2.9),
    (0.543, 0.985, 1.33, 1.83),
)


@dataclass(frozen=True)
class Natural(Canvas):
    """The phases of a spectrum with the magnitudes of photos: x = σ(C F⁻¹(r e^{iφ}) / 4).

    φ are the parameters, r(f) is the mean magnitude at frequency f over photos, on a straight line between
    measured ones in logarithms; that of the mean colour is 0. Encoding keeps an image's phases only. Fel et
    al.: Unlocking Feature Visualization for Deeper Networks with MAgnitude Constrained Optimization, 2023
    (arXiv:2306.06805), with r by channel and radius in place of one mean image's.
    """

    height: int
    width: int

    def encode(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h half"]:
        """The phases of images."""
        flat = torch.einsum("dc,nchw->ndhw", self._mix(images).inverse(), images.logit(EDGE))
        phases: Tensor = torch.fft.rfft2(flat).angle()
        return phases

    def decode(self, parameters: Float[Tensor, "n 3 h half"]) -> Float[Tensor, "n 3 h w"]:
        """The images of phases."""
        spectrum = torch.polar(self._magnitudes.to(parameters).expand_as(parameters), parameters)
        flat = torch.fft.irfft2(spectrum, (self.height, self.width), norm="ortho") / SPREAD
        return torch.einsum("cd,ndhw->nchw", self._mix(flat), flat).sigmoid()

    def project(self, parameters: Tensor) -> None:
        """Every phase is one of an image in [0, 1]."""

    def noise(self, n: int, generator: torch.Generator) -> Float[Tensor, "n 3 h w"]:
        """Images of random phases, to start from."""
        drawn = torch.rand(n, 3, self.height, self.width // 2 + 1, generator=generator)
        return self.decode((2 * drawn - 1) * pi)

    def _mix(self, like: Tensor) -> Float[Tensor, "3 3"]:
        return Fourier(self.height, self.width).mix(like)

    @cached_property
    def _magnitudes(self) -> Float[Tensor, "3 h half"]:
        rows, columns = np.fft.fftfreq(self.height), np.fft.rfftfreq(self.width)
        at = np.hypot(rows[:, None], columns[None])
        known, *channels = np.array(MAGNITUDES).T
        at[0, 0] = known[0]
        found = [np.exp(np.interp(np.log(at), np.log(known), np.log(channel))) for channel in channels]
        magnitudes = torch.from_numpy(np.stack(found)).float()
        magnitudes[:, 0, 0] = 0
        return magnitudes
