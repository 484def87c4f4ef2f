from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.choices import MOST_LEVELS, Convention, Cut, Feature, Over
from opsin.base.job import note, steps
from opsin.registry.kinds import Arg
from opsin.registry.technique import technique
from opsin.results.heatmap import Heatmap
from opsin.statistics.cooccurrence import offsets_of, rules_of
from opsin.statistics.haralick import SIGNED
from opsin.statistics.levels import Levels, channels
from opsin.statistics.masks import masks_of
from opsin.statistics.windows import Windows


@technique(
    title="Map of a texture feature",
    paper="Haralick, Shanmugam, Dinstein: Textural Features for Image Classification, IEEE Transactions on "
    "Systems, Man and Cybernetics 1973; Zwanenburg et al.: The Image Biomarker Standardization Initiative, "
    "2016 (arXiv:1612.07003)",
    reading="Where the texture around a pixel has much of the feature: edges between textures show as steps.",
)
def glcm_map(
    images: Float[Tensor, "n 3 h w"],
    feature: Annotated[Feature, Arg("feature of the co-occurrence matrix")] = "contrast",
    window: Annotated[
        int, Arg("side of the window around every pixel, an odd number", least=3, most=255)
    ] = 21,
    levels: Annotated[int, Arg("number of grey levels", least=1, most=MOST_LEVELS)] = 8,
    cut: Annotated[
        Cut,
        Arg("levels of equal width from low to high, or over the picture's own range, or of equal shares"),
    ] = "width",
    low: Annotated[float | None, Arg("where levels of equal width begin; by default 0")] = None,
    high: Annotated[float | None, Arg("where levels of equal width end; by default 1")] = None,
    distances: Annotated[str, Arg("distances in pixels, separated by commas")] = "1",
    angles: Annotated[str, Arg("angles in degrees, separated by commas")] = "0,45,90,135",
    offsets: Annotated[
        str | None, Arg("in place of distances and angles: rows down,columns right; with semicolons between")
    ] = None,
    convention: Annotated[
        Convention, Arg("numbering of levels, logarithm and offsets where the literature differs")
    ] = "ibsi",
    symmetric: Annotated[bool, Arg("count every pair both ways")] = True,
    over: Annotated[
        Over, Arg("feature of all offsets: of their merged matrix, or the average of their features")
    ] = "merged",
    mask: Annotated[
        Sequence[Tensor], Arg("picture as large as the photo, white where pixels count", "images")
    ] = (),
) -> Heatmap:
    """The feature of `glcm` in a window at every pixel: f(P_window(x, y)).

    The levels are those of the whole picture, cut once. A window holds the pairs of pixels that lie in it, in
    the picture and in the mask: at an edge it is a smaller window. A pixel outside the mask, or whose window
    holds no pair, has no value (NaN). Conventions are those of `glcm`.

    Counts are sums over boxes, which cost the same for any window; the memory is linear in the pixels.
    `opsin.statistics.windows.Windows` gives several features in one sweep.
    """
    rules = rules_of(convention)
    where = offsets_of(distances, angles, offsets, rules)
    windows = Windows((feature,), window, where, levels, rules, symmetric, over)
    cutting = Levels(levels, cut, low, high)
    values, inside = channels(images, colour=False)[:, 0], masks_of(mask, images)
    reduced = [cutting.of(one, own) for one, own in zip(values, inside, strict=True)]
    bands = windows.bands(*images.shape[-2:])
    jobs = [(index, band) for index in range(len(images)) for band in bands]
    found = [windows.band(reduced[index], *band) for index, band in steps(jobs, len(jobs), "glcm_map")]
    maps = torch.cat(found, 1).unflatten(1, (len(images), -1)).transpose(0, 1)  # (n, 1, h, w)
    maps = torch.where(inside[:, None], maps, torch.nan)
    if mask:
        note("outside the mask, and where a window holds no pair, there is no value (NaN)")
    return Heatmap(maps, images, signed=feature in SIGNED, overlay=False)
