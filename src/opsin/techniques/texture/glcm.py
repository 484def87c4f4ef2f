from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.choices import MOST_LEVELS, Convention, Cut, Over
from opsin.base.job import note
from opsin.registry.kinds import Arg
from opsin.registry.technique import technique
from opsin.results.cooccurrence import Cooccurrence
from opsin.statistics.cooccurrence import in_words, matrices, offsets_of, rules_of
from opsin.statistics.haralick import NAMES, features_of
from opsin.statistics.levels import Levels, channels
from opsin.statistics.masks import masks_of

COLOURS = {False: ("brightness",), True: ("red", "green", "blue")}


@technique(
    title="Grey-level co-occurrence",
    paper="Haralick, Shanmugam, Dinstein: Textural Features for Image Classification, IEEE Transactions on "
    "Systems, Man and Cybernetics 1973; Zwanenburg et al.: The Image Biomarker Standardization Initiative, "
    "2016 (arXiv:1612.07003)",
    reading="Which level lies beside which: a smooth texture is on the diagonal, a busy one away from it.",
)
def glcm(
    images: Float[Tensor, "n 3 h w"],
    levels: Annotated[int, Arg("number of grey levels", least=1, most=MOST_LEVELS)] = 16,
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
    normalised: Annotated[bool, Arg("give matrices of shares, not of counts")] = True,
    over: Annotated[
        Over, Arg("features of all offsets: of their merged matrix, or the average of their features")
    ] = "merged",
    colour: Annotated[Literal["brightness", "channels"], Arg("what of a colour counts")] = "brightness",
    mask: Annotated[
        Sequence[Tensor], Arg("picture as large as the photo, white where pixels count", "images")
    ] = (),
) -> Cooccurrence:
    """How often grey level i has level j at an offset: P(i, j), and its features of Haralick and IBSI.

    p(i, j) is the number of pixels of level i whose neighbour at the offset (Δrow, Δcolumn) has level j, as a
    share of all pairs; both must lie in the picture and in the mask. The equations of the features are in
    `opsin.statistics.haralick`: IBSI's 25, which hold 13 of Haralick's 14 under IBSI's names, and Haralick's
    f14. f7 is taken about f6 (the paper prints f8), f14 from the paper's Q.

    Conventions: `ibsi` numbers levels from 1, takes binary logarithms, and an offset at distance d and 45° is
    (d, d), up and to the right; `haralick` is the same with natural logarithms; `scikit-image` numbers from
    0, takes natural logarithms, rounds d sin and d cos (so that distance 2 at 45° is the pixel at distance 1)
    and turns angles downwards. A matrix of one level has correlations 1 and no information correlation.
    """
    rules = rules_of(convention)
    where = offsets_of(distances, angles, offsets, rules)
    cutting = Levels(levels, cut, low, high)
    values = channels(images, colour=colour == "channels")
    inside = masks_of(mask, images)
    reduced = torch.stack(
        [
            torch.stack([cutting.of(one, own) for one in image])
            for image, own in zip(values, inside, strict=True)
        ]
    )
    for index, one in enumerate(reduced):
        used = len(one[one >= 0].unique())
        if used < levels:
            note(f"{used} of {levels} levels occur in image {index}")
    counts = matrices(reduced.flatten(0, 1), where, levels, symmetric=symmetric)  # (n c, k, L, L)
    counts = counts.unflatten(0, values.shape[:2])
    shares = counts / counts.sum((-1, -2), keepdim=True)
    each = features_of(shares, rules, NAMES)
    together = each.mean(2, keepdim=True)
    if over == "merged":
        whole = counts.sum(2, keepdim=True)
        together = features_of(whole / whole.sum((-1, -2), keepdim=True), rules, NAMES)
    return Cooccurrence(
        images,
        reduced.to(torch.float32),
        shares if normalised else counts,
        torch.cat([each, together], 2),
        COLOURS[colour == "channels"],
        (*map(in_words, where), over),
        NAMES,
    )
