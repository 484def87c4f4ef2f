"""Pictures that say which pixels of photos count, or are missing."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from opsin.base.errors import InputError


def one_for_each(name: str, several: Sequence[Tensor], images: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
    """The pictures that go with the images: none, the only one for all, or one for each.

    Raises `InputError` where there is another number of them, or one is of another size than its image.
    """
    if len(several) not in (0, 1, len(images)):
        raise InputError(
            f"{len(several)} {name}s for {len(images)} images: give one for all, or one for each"
        )
    for one in several:
        if one.shape[-2:] != images.shape[-2:]:
            sizes = [f"{each.shape[-1]}x{each.shape[-2]}" for each in (one, images)]
            raise InputError(f"a {name} of {sizes[0]} pixels for an image of {sizes[1]}: make it as large")
    return list(several) * (len(images) if len(several) == 1 else 1)


def masks_of(masks: Sequence[Tensor], images: Float[Tensor, "n 3 h w"]) -> Bool[Tensor, "n h w"]:
    """Where the pixels of each image count: everywhere, or where its mask, or the only one, is white.

    Raises `InputError` on masks of another number or size.
    """
    if not masks:
        return torch.ones_like(images[:, 0], dtype=torch.bool)
    return torch.cat([mask.mean(1) > 0.5 for mask in one_for_each("mask", masks, images)])
