"""What Pillow reads, as upright 8-bit RGB."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from opsin.base.errors import InputError
from opsin.base.extras import extra

HEIF_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
)
MIN_SIDE = 8  # pixels; a smaller photo shows nothing, and enlarging it would invent a picture
WHITES = (1, 255, 65535)  # possible whites of 32-bit and float greys: the least that no value exceeds
PROGRAMS = ("EPS",)  # formats that Pillow would run in Ghostscript
BACKGROUND = (255, 255, 255)  # what shows through transparent pixels


def opened(data: bytes, name: str) -> Image.Image:
    """The image in these bytes, not decoded yet.

    Raises `InputError` on HEIC without the extra that reads it, and whatever Pillow raises.
    """
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        if not (data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS):
            raise
    try:
        with extra("heif"):
            import pillow_heif  # noqa: PLC0415 (an extra, needed for this format alone)
    except InputError as error:
        raise InputError(f"{name} is a HEIC photo: {error}") from error
    pillow_heif.register_heif_opener()  # from now on, Pillow opens them
    return Image.open(io.BytesIO(data))


@contextmanager
def told(name: str) -> Iterator[None]:
    """A block that reads a photo: whatever Pillow raises becomes an `InputError` that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata in photos that it can read
            yield
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large: {error}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not an image that Pillow can read") from error
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{name} is too large for the memory") from None
    except Exception as error:  # Pillow raises many kinds on broken files, even struct.error and TypeError
        raise InputError(f"{name} cannot be read: {error}") from error


def upright(photo: Image.Image, name: str) -> Image.Image:
    """A copy of an image of Pillow in 8-bit RGB, turned as its EXIF data say, transparent pixels over white.

    Raises `InputError` on an image that is too small, of a format that is a program, or of greys that no
    photo has, and whatever Pillow raises.
    """
    if photo.format in PROGRAMS:
        raise InputError(f"{name} is {photo.format}, a program that is not run: convert it to an image")
    w, h = photo.size
    if min(w, h) < MIN_SIDE:
        raise InputError(f"{name} is {w}x{h} pixels: a photo needs at least {MIN_SIDE} on each side")
    return _rgb(ImageOps.exif_transpose(photo), name)


def _rgb(photo: Image.Image, name: str) -> Image.Image:
    if photo.mode in ("I", "F") or photo.mode.startswith("I;16"):
        return _from_deep(photo, name)
    if photo.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in photo.info:
        layer = photo.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (*BACKGROUND, 255))
        return Image.alpha_composite(ground, layer).convert("RGB")
    return photo.convert("RGB")


def _from_deep(photo: Image.Image, name: str) -> Image.Image:
    """A photo of 16-bit, 32-bit or float greys, whose black is zero, as 8-bit RGB."""
    greys = np.asarray(photo, np.float32)
    low, high = float(greys.min()), float(greys.max())
    if not (low >= 0 and high < np.inf):  # also true for NaN
        wrong = int((~np.isfinite(greys) | (greys < 0)).sum())
        raise InputError(
            f"{name} holds greys from {low:g} to {high:g}, {wrong:,} of {greys.size:,} of them negative or "
            "not finite: a photo's must be finite and zero or more"
        )
    white = (
        65535 if photo.mode.startswith("I;16") else next((white for white in WHITES if high <= white), high)
    )
    return Image.fromarray((greys / white * 255).clip(0, 255).round().astype(np.uint8)).convert("RGB")
