from collections.abc import Sequence
from typing import Annotated

from jaxtyping import Float
from torch import Tensor

from opsin.base.choices import MOST_TEXTURE
from opsin.base.errors import InputError
from opsin.images.tensors import resized
from opsin.optimise.climb import Climb
from opsin.optimise.growing import grow
from opsin.optimise.pixels import PixelByPixel
from opsin.optimise.samples import new_textures
from opsin.registry.kinds import Arg, SampleSide, TextureWidth
from opsin.registry.technique import technique
from opsin.results.pictures import Pictures
from opsin.statistics.masks import one_for_each


@technique(
    title="Efros and Leung's texture",
    paper="Efros, Leung: Texture Synthesis by Non-parametric Sampling, ICCV 1999",
    reading="Every pixel is one of the sample's, in surroundings like its own: whole pieces may be copies.",
    iterative=True,
)
def efros_leung(
    images: Float[Tensor, "n 3 h w"],
    window: Annotated[
        int, Arg("side of a pixel's surroundings, an odd number: as large as a texel", least=3, most=63)
    ] = 11,
    size: Annotated[
        int | None,
        Arg(
            "height of the new texture and, by default, its width, pixels; 128 where no hole is filled",
            least=16,
            most=MOST_TEXTURE,
        ),
    ] = None,
    width: TextureWidth = None,
    source: SampleSide = 128,
    hole: Annotated[
        Sequence[Tensor],
        Arg("picture as large as the photo: its white part is filled, the rest is kept", "images"),
    ] = (),
    seed: Annotated[int, Arg("random seed of the choices", least=0)] = 0,
) -> Pictures:
    """A texture that grows pixel by pixel from a piece of 3 by 3: p(x | its surroundings), from the sample.

    d(ω, ω') = Σ G (ω - ω')² / Σ G over the pixels of the window ω that are known already, a mean over
    colours, G a Gaussian of window / 6.4. Of all windows of the sample with d <= 1.1 min d one is drawn, and
    its middle is the pixel. Pixels come in shells, those with most known neighbours first; where min d >= 0.3
    a pixel has to wait. With a `hole` the photo is its own sample and only the hole is filled, from its edge
    inwards. `numbers` are minus the mean error of a shell.

    The search is exhaustive, as in the paper: pixels whose windows do not reach each other are one matrix
    product, which gives what one after the other would give. A pixel's time is proportional to the number of
    the sample's pixels: `source` is the trade.
    """
    if hole and (size is not None or width is not None):
        raise InputError("efros_leung: a hole is filled in the photo itself: leave size and width out")
    if window % 2 == 0:
        raise InputError(f"efros_leung: window must be an odd number, not {window}")
    holes = one_for_each("hole", hole, images)

    def way(label: str, sample: Tensor, wanted: tuple[int, int]) -> Climb:
        missing = None
        if holes:
            wanted = (sample.shape[2], sample.shape[3])
            missing = resized(holes.pop(0), wanted)[0].mean(0) > 0.5
        return grow(label, PixelByPixel(sample, window, wanted, seed, missing))

    return new_textures(images, source, size or 128, width, way, window)
