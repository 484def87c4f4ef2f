from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.optimise.climb import Climb
from opsin.optimise.growing import PrincipalGrowth, grow
from opsin.optimise.samples import new_textures
from opsin.registry.kinds import Arg, SampleSide, TextureHeight, TextureWidth
from opsin.registry.technique import technique
from opsin.results.pictures import Pictures
from opsin.statistics.pyramids import by_rank, quantiles, steerable
from opsin.statistics.spectrum import periodic

COARSEST = 4  # pixels along the shorter side of the coarsest band
ORIENTATIONS = 4  # as in the paper


@technique(
    title="Heeger and Bergen's texture",
    paper="Heeger, Bergen: Pyramid-Based Texture Analysis/Synthesis, SIGGRAPH 1995",
    reading="Noise with the sample's histograms in every band of a pyramid: it suits textures like noise.",
    iterative=True,
)
def heeger_bergen(
    images: Float[Tensor, "n 3 h w"],
    size: TextureHeight = 256,
    width: TextureWidth = None,
    source: SampleSide = 256,
    scales: Annotated[int, Arg("scales of the pyramid, fewer for a small sample", least=1, most=8)] = 4,
    steps: Annotated[int, Arg("number of passes over the pyramid", least=1)] = 10,
    seed: Annotated[int, Arg("random seed of the noise", least=0)] = 0,
) -> Pictures:
    """Noise with the sample's histograms in every band of a steerable pyramid and in the picture.

    Each pass takes the pyramid of the picture so far (four orientations, and both residuals), gives every
    band the sample's values by rank, collapses it, and gives the pixels the sample's values. Colours are the
    sample's principal components, each by itself, as in the paper.

    Departs from the paper: histograms are matched exactly by rank, not in bins, and the bands are those of
    the sample's periodic component, since a pyramid wraps around (Briand, Vacher, Galerne, Rabin: The Heeger
    & Bergen Pyramid Based Texture Synthesis Algorithm, IPOL 2014). A sample is cut to sides that the pyramid
    can halve. `numbers` are minus the root of the mean squared change in a pass.
    """

    def way(label: str, sample: Tensor, wanted: tuple[int, int]) -> Climb:
        return grow(label, _Passes(sample, wanted, scales, steps, seed))

    return new_textures(images, source, size, width, way, 2 * COARSEST)


class _Passes(PrincipalGrowth):
    """The picture, and the values that its bands and its pixels are to have."""

    def __init__(self, sample: Tensor, size: tuple[int, int], scales: int, steps: int, seed: int) -> None:
        super().__init__(sample, size, scales, COARSEST, steps, seed)
        channels = self.turned[..., : self.cut[0], : self.cut[1]]
        self.pyramid = steerable(self.place, self.scales, ORIENTATIONS, sample)
        bands = steerable(self.cut, self.scales, ORIENTATIONS, sample)(periodic(channels))
        made = self.pyramid(self.picture)
        self.bands = {name: _ordered(bands[name], band) for name, band in made.items()}
        self.pixels = _ordered(channels, self.picture)
        self.picture.copy_(_like(self.picture, self.pixels))

    def advance(self) -> float:
        """One pass."""
        given = {name: _like(band, self.bands[name]) for name, band in self.pyramid(self.picture).items()}
        new = _like(self.pyramid.recon_pyr(given), self.pixels)
        change = (new - self.picture).square().mean().sqrt()
        self.picture.copy_(new)
        self.number += 1
        return -float(change)


def _ordered(wanted: Tensor, band: Tensor) -> list[Tensor]:
    """The quantiles of every channel and orientation, as many as another band has values."""
    count = band.shape[-1] * band.shape[-2]
    return [quantiles(one.flatten(), count) for one in wanted.flatten(0, -3)]


def _like(band: Tensor, ordered: list[Tensor]) -> Tensor:
    """A band, or a picture, with these values in each channel and orientation."""
    several = zip(band.flatten(0, -3), ordered, strict=True)
    return torch.stack([by_rank(one.flatten(), values) for one, values in several]).reshape(band.shape)
