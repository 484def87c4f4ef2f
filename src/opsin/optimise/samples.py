"""What texture synthesis shares: the reduced sample, the new picture's size, the panels."""

from collections.abc import Callable

import psutil
from jaxtyping import Float
from torch import Tensor

from opsin.base.errors import InputError, OutOfMemoryError
from opsin.base.job import note
from opsin.images.tensors import longest, resized
from opsin.optimise.climb import Climb
from opsin.optimise.textures import photo_label
from opsin.results.pictures import Picture, Pictures

Way = Callable[[str, Float[Tensor, "1 3 h w"], tuple[int, int]], Climb]
LARGE = 2**30  # bytes of memory that the record speaks of


def new_textures(
    images: Float[Tensor, "n 3 h w"], source: int, size: int, width: int | None, way: Way, least: int = 2
) -> Pictures:
    """A new texture for each image, beside the sample that it is made of; the scores of each as numbers.

    `way` is given a label, a sample and a height and width. Raises `InputError` on a sample whose shorter
    side is less than `least` pixels.
    """
    panels: list[Picture] = []
    numbers: dict[str, Tensor] = {}
    for index, image in enumerate(images.split(1)):
        sample = sample_of(image, source, least)
        found = way(photo_label(index, len(images)) + "texture", sample, (size, width or size))
        panels += [
            Picture("sample", "", sample[0], made=False),
            Picture("texture", "" if found.begun else "not begun", found.images[0]),
        ]
        if found.scores.numel():
            numbers[f"{index} score"] = found.scores
    return Pictures(tuple(panels), numbers=numbers)


def sample_of(image: Float[Tensor, "1 3 h w"], source: int, least: int) -> Float[Tensor, "1 3 H W"]:
    """The image, reduced until its longer side is at most `source` pixels.

    Raises `InputError` where its shorter side is then less than `least` pixels.
    """
    sample = resized(image, longest(image, min(source, max(image.shape[-2:]))))
    height, width = sample.shape[-2:]
    if min(height, width) < least:
        raise InputError(
            f"the sample is {width}x{height} pixels at source={source}: at least {least} are needed on each "
            "side"
        )
    return sample


def check_memory(name: str, needed: int, smaller: str) -> None:
    """Note how many bytes are needed if these are many. Raises `OutOfMemoryError` if they are not free."""
    free = psutil.virtual_memory().available
    if needed > free:
        raise OutOfMemoryError(
            f"{name} would need {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free: "
            f"ask for {smaller}"
        )
    if needed > LARGE:
        note(f"about {needed / 2**30:.1f} GiB of memory")
