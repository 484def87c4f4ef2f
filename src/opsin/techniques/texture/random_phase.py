from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.optimise.climb import Climb
from opsin.optimise.samples import new_textures
from opsin.registry.kinds import Arg, SampleSide, TextureHeight, TextureWidth
from opsin.registry.technique import technique
from opsin.results.pictures import Pictures
from opsin.statistics.spectrum import spot


@technique(
    title="Random phase",
    paper="Galerne, Gousseau, Morel: Random Phase Textures: Theory and Synthesis, IEEE Transactions on Image "
    "Processing 2011",
    reading="The sample's mean and spectrum and nothing else: what is missing is more than these two.",
)
def random_phase(
    images: Float[Tensor, "n 3 h w"],
    size: TextureHeight = 256,
    width: TextureWidth = None,
    source: SampleSide = 256,
    seed: Annotated[int, Arg("random seed of the phases", least=0)] = 0,
) -> Pictures:
    """A texture with the sample's spectrum and random phases: y = m + F⁻¹(|û| e^{i(arg û + θ)}).

    û is the spectrum of the sample's periodic component (without the cross that edges leave), m its mean
    colour; θ(-ξ) = -θ(ξ) is uniform and the same for the three colours, so that their correlations stay. For
    a size that is larger than the sample, û is that of the sample in a field of its mean, as in the paper; of
    a smaller one, a part is cut out of a texture of the sample's size. Values beyond [0, 1] are clipped.

    It is the control to which every other technique that makes a texture should be compared.
    """

    def way(_: str, sample: Tensor, wanted: tuple[int, int]) -> Climb:
        height, breadth = (max(pair) for pair in zip(wanted, sample.shape[-2:], strict=True))
        draw = torch.Generator().manual_seed(seed)
        phases = torch.fft.rfft2(torch.randn(height, breadth, generator=draw, dtype=torch.float64))
        turned = spot(sample, (height, breadth)) * (phases / phases.abs()).to(sample.device)
        varied = torch.fft.irfft2(turned, (height, breadth))
        picture = sample.mean((2, 3), keepdim=True) + varied.to(sample)
        return Climb(picture[..., : wanted[0], : wanted[1]].clamp(0, 1), torch.empty(0, 1))

    return new_textures(images, source, size, width, way)
