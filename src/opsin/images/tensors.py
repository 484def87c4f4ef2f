"""Photos as tensors: upright, RGB, resized."""

import os
from collections.abc import Iterable
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from opsin.base.errors import InputError
from opsin.images.photos import Source, as_photo, fitted, is_source
from opsin.network.model import Model
from opsin.network.outputs import unreadable


def read(photos: Source | Iterable[Source], model: Model) -> Float[Tensor, "n 3 h w"]:
    """Read photos as the model's training saw them: shorter side to size / crop, then a centre crop.

    Takes one photo or several. A photo is a path, an image of Pillow, a NumPy array (h, w), (h, w, 3) or
    (h, w, 4) of uint8, uint16 or floats in [0, 1], the bytes of a photo's file, or a binary file object; each
    is treated as its file would be.

    Accepts whatever Pillow reads: greyscale, 16-bit, palette, CMYK (through Pillow's plain
    conversion), transparent (over white) and EXIF-rotated photos; the first frame of an animation. White is
    65535 in 16 bits; in 32 bits and floats, whose black is zero, it is the least of 1, 255 and 65535 that
    no value exceeds, or else the greatest value. HEIC needs the extra `opsin[heif]`.

    Raises `InputError` on a missing, broken, tiny or huge file, on one that is not a regular file (a
    pipe, a device), on a web address, and on greys that are negative, NaN or infinite, naming it. A file may
    have 512 MiB, or the number of bytes in the environment variable `OPSIN_LARGEST_FILE`; Pillow limits its
    pixels to twice `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    if is_source(photos) or not isinstance(photos, Iterable):
        return fit(as_photo(photos), model)[None]
    several = list(cast("Iterable[Source]", photos))
    if not several:
        raise InputError("no photo given: pass at least one")
    return torch.stack([fit(as_photo(photo, _numbered(photo, i)), model) for i, photo in enumerate(several)])


def _numbered(photo: object, index: int) -> str:
    """What errors call a photo among several: a path or a file by its own name, another by its place."""
    named = isinstance(photo, str | os.PathLike) or isinstance(getattr(photo, "name", None), str)
    return "" if named else f"photo {index} ({type(photo).__name__})"


def fit(photo: Image.Image, model: Model) -> Float[Tensor, "3 h w"]:
    """Resize and centre-crop a photo for the model, in [0, 1]."""
    return torch.from_numpy(fitted(photo, model)).permute(2, 0, 1) / 255  # (h, w, 3) bytes -> (3, h, w)


def whole(photo: Image.Image, side: int | None = None) -> Float[Tensor, "1 3 h w"]:
    """A photo at its own size, or reduced until its longer side is `side`, in [0, 1]."""
    if side and side < max(photo.size):
        share = side / max(photo.size)
        photo = photo.resize([max(1, round(s * share)) for s in photo.size], Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None] / 255  # (h, w, 3) bytes -> (1, 3, h, w)


def resized(images: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "n c H W"]:
    """Images at another size, in [0, 1]."""
    return enlarged(images, size).clamp(0, 1)


def enlarged(values: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "n c H W"]:
    """Values at another size, bicubic and antialiased."""
    if tuple(values.shape[-2:]) == size:
        return values
    return interpolate(values, size, mode="bicubic", antialias=True, align_corners=False)


def longest(images: Float[Tensor, "n c h w"], side: int) -> tuple[int, int]:
    """The height and width at which the longer side is `side`."""
    h, w = images.shape[-2:]
    return max(1, round(h * side / max(h, w))), max(1, round(w * side / max(h, w)))


def check(images: object) -> None:
    """Raise `InputError` unless `images` are (n, 3, h, w) floats in [0, 1]."""
    if not isinstance(images, Tensor):
        raise InputError(
            f"images must be a tensor (n, 3, h, w) in [0, 1], got {type(images).__name__}: see opsin.read"
        )
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise InputError(f"images must be (n, 3, h, w), got {tuple(images.shape)}")
    if fault := unreadable(images):
        raise InputError(f"images must be a dense tensor of numbers in [0, 1], got {fault}")
    if not images.is_floating_point():
        raise InputError(f"images must be floats in [0, 1], got {images.dtype}: divide bytes by 255")
    low, high = (float(edge) for edge in images.detach().aminmax())
    if not (low >= 0 and high <= 1):
        raise InputError(
            f"images must lie in [0, 1], got [{low:.3g}, {high:.3g}]: do not normalise them, the model does"
        )
