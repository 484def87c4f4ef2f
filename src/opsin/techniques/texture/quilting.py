from collections.abc import Sequence
from typing import Annotated

from jaxtyping import Float
from torch import Tensor

from opsin.base.choices import MOST_TEXTURE
from opsin.base.errors import InputError
from opsin.images.tensors import longest, resized
from opsin.optimise.climb import Climb
from opsin.optimise.growing import grow
from opsin.optimise.quilt import BlockByBlock
from opsin.optimise.samples import new_textures
from opsin.registry.kinds import Arg, SampleSide, TextureWidth
from opsin.registry.technique import technique
from opsin.results.pictures import Pictures
from opsin.statistics.levels import channels


@technique(
    title="Image quilting",
    paper="Efros, Freeman: Image Quilting for Texture Synthesis and Transfer, SIGGRAPH 2001",
    reading="Pieces of the sample, sewn together where they differ least: what is between seams is a copy.",
    iterative=True,
)
def quilting(
    images: Float[Tensor, "n 3 h w"],
    block: Annotated[int, Arg("side of a block, pixels: as large as a texel", least=4, most=256)] = 36,
    size: Annotated[
        int | None,
        Arg(
            "height of the new texture and, by default, its width, pixels; 256 by default",
            least=16,
            most=MOST_TEXTURE,
        ),
    ] = None,
    width: TextureWidth = None,
    source: SampleSide = 256,
    onto: Annotated[
        Sequence[Tensor], Arg("photo that is made of the texture; its longer side becomes the size", "images")
    ] = (),
    passes: Annotated[
        int | None,
        Arg("passes of a transfer onto a photo, each with smaller blocks; by default 3", least=1, most=9),
    ] = None,
    seed: Annotated[int, Arg("random seed of the choices", least=0)] = 0,
) -> Pictures:
    """A texture of overlapping blocks of the sample, each cut along the seam of least error.

    Row by row, a block is drawn from those whose overlap error Σ (new - old)² is at most 1.1 times the least;
    neighbours overlap by a sixth of their side. In the overlap the boundary is the path with the least sum
    of e = (new - old)², E(i, j) = e(i, j) + min E(i - 1, j - 1 ... j + 1).

    `onto` a photo (the paper's transfer) the error is α (overlap + what earlier passes made) + (1 - α)
    (brightness of the texture - of the photo)², with α = 0.1 + 0.8 (i - 1) / (N - 1) in pass i, whose blocks
    have two thirds of the side of those before. No block is larger than the sample's shorter side.
    """
    if len(onto) > 1:
        raise InputError(f"quilting: {len(onto)} photos to transfer the texture onto: give one at a time")
    if not onto and passes is not None:
        raise InputError(
            "quilting: passes are those of a transfer: give a photo with onto, or leave them out"
        )
    if onto and width is not None:
        raise InputError("quilting: the photo gives the width: leave it out")
    photo = resized(onto[0], longest(onto[0], size or 256)) if onto else None

    def way(label: str, sample: Tensor, wanted: tuple[int, int]) -> Climb:
        goal = None if photo is None else channels(photo, colour=False)
        at = wanted if goal is None else (goal.shape[2], goal.shape[3])
        return grow(label, BlockByBlock(sample, min(block, *sample.shape[-2:]), at, goal, passes or 3, seed))

    return new_textures(images, source, size or 256, width, way, 4)
