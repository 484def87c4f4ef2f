"""Photo files, without torch, so that a process that only decodes starts at once."""

import io
import os
import re
import warnings
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from opsin.base.errors import InputError
from opsin.base.files import MIB, missing, read_regular

LARGEST_FILE = (
    512 * MIB
)  # bytes of a photo's file: the most pixels that Pillow opens, uncompressed in 8-bit RGB
LARGEST_FILE_VARIABLE = "OPSIN_LARGEST_FILE"  # environment variable, inherited by decoding processes
RAISING = f"; set the environment variable {LARGEST_FILE_VARIABLE} to another number of bytes"
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
MIN_SIDE = 8  # pixels; a smaller photo shows nothing, and enlarging it would invent a picture
WHITES = (1, 255, 65535)  # possible whites of 32-bit and float greys: the least that no value exceeds
WIDEST = (
    64  # aspect ratio: of a longer photo only the middle survives the centre crop, so only that is resized
)
PROGRAMS = ("EPS",)  # formats that Pillow would run in Ghostscript
DIGITS = 4  # of shares of a photo's sides
BACKGROUND = (255, 255, 255)  # what shows through transparent pixels


@runtime_checkable
class Frame(Protocol):
    """How a photo is cropped and resized for a network; a `Model` is a `Frame`."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""

    @property
    def crop(self) -> float:
        """The share of the resized photo that is kept."""

    @property
    def interpolation(self) -> str:
        """The name of Pillow's filter."""

    @property
    def squash(self) -> bool:
        """Whether the whole photo is resized to a square."""


def open_photo(path: str | Path) -> Image.Image:
    """A photo as upright 8-bit RGB. Raises `InputError` if it cannot be read, saying why."""
    if not os.path.lexists(path):
        raise missing("file", Path(path))
    return decoded(photo_bytes(path, str(path)), str(path))


def photo_bytes(path: str | Path, name: str) -> bytes:
    """The bytes of a photo's file, which errors call `name`.

    Raises `InputError` if it is not a regular file (a pipe, a device), or larger than `largest_file()`.
    """
    return read_regular(path, largest_file(), name, RAISING)


def largest_file() -> int:
    """The most bytes of a photo's file: `LARGEST_FILE`, or the environment variable `OPSIN_LARGEST_FILE`.

    Raises `InputError` if that is not a number of bytes.
    """
    setting = os.environ.get(LARGEST_FILE_VARIABLE, str(LARGEST_FILE))
    if not re.fullmatch(r"[1-9][0-9]{0,17}", setting):
        raise InputError(f"{LARGEST_FILE_VARIABLE} must be a number of bytes above zero, not {setting!r}")
    return int(setting)


def decoded(data: bytes, name: str) -> Image.Image:
    """The bytes of a photo as upright 8-bit RGB. Raises `InputError` if it is not one, saying why.

    Pillow limits the number of pixels to twice `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata in photos that it can read
            with Image.open(io.BytesIO(data)) as photo:
                if photo.format in PROGRAMS:
                    raise InputError(
                        f"{name} is {photo.format}, a program that is not run: convert it to an image"
                    )
                w, h = photo.size
                if min(w, h) < MIN_SIDE:
                    raise InputError(
                        f"{name} is {w}x{h} pixels: a photo needs at least {MIN_SIDE} on each side"
                    )
                return _rgb(ImageOps.exif_transpose(photo), name)
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


def folder_photos(path: str | Path) -> list[Path]:
    """The path itself, or if it is a folder, the images in it, sorted by name; only regular files.

    Raises `InputError` if there are none, and on a folder that cannot be listed.
    """
    path = Path(path)
    if not os.path.isdir(path):  # noqa: PTH112 (does not raise on a name that no file can have)
        return [path]
    try:
        named = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        photos = [file for file in named if file.is_file() or not file.exists()]  # a broken link raises later
    except OSError as error:
        raise InputError(f"{path} cannot be listed: {error.strerror or error}") from error
    if not photos:
        skipped = f"; no regular files: {', '.join(file.name for file in named)}" if named else ""
        raise InputError(f"{path} is a folder without images ({', '.join(sorted(SUFFIXES))}){skipped}")
    return photos


class Framing(NamedTuple):
    """How a photo becomes an image: its part `kept` is resized to `size`, and cropped at `left` and `top`."""

    kept: tuple[int, int, int, int]
    size: tuple[int, int]
    left: int
    top: int


def framing(width: int, height: int, frame: Frame) -> Framing:
    """How a photo of this size is resized and cropped."""
    rows, columns = frame.size
    sides, kept = (width, height), (0, 0, width, height)
    if not frame.squash and max(sides) > WIDEST * min(sides) * max(frame.size) / min(frame.size):
        keep = [min(side, WIDEST * min(sides)) for side in sides]
        left, top = ((side - kept) // 2 for side, kept in zip(sides, keep, strict=True))
        kept, (width, height) = (left, top, left + keep[0], top + keep[1]), keep
    h, w = int(rows / frame.crop), int(columns / frame.crop)  # size before the centre crop
    if frame.squash:
        size = (w, h)
    elif h * width >= w * height:
        size = (max(w, int(h * width / height)), h)
    else:
        size = (w, max(h, int(w * height / width)))
    return Framing(kept, size, round((size[0] - columns) / 2), round((size[1] - rows) / 2))


def fitted(photo: Image.Image, frame: Frame) -> NDArray[np.uint8]:
    """Resize and centre-crop a photo: (h, w, 3) bytes."""
    kept, size, left, top = framing(*photo.size, frame)
    if kept[2:] != photo.size:
        photo = photo.crop(kept)
    resized = photo.resize(size, Image.Resampling[frame.interpolation.upper()])
    return np.array(resized.crop((left, top, left + frame.size[1], top + frame.size[0])))


def in_photo(
    region: tuple[float, float, float, float], width: int, height: int, frame: Frame
) -> tuple[float, float, float, float]:
    """Where a part of the image lies in the photo: left, top, right, bottom, as shares of the photo's sides.

    `region` has the same order, in pixels of the image.
    """
    (left, top, right, bottom), size, *origin = framing(width, height, frame)
    kept, start, sides = (right - left, bottom - top), (left, top), (width, height)
    ends = [
        round((start[i % 2] + (edge + origin[i % 2]) * kept[i % 2] / size[i % 2]) / sides[i % 2], DIGITS)
        for i, edge in enumerate(region)
    ]
    return ends[0], ends[1], ends[2], ends[3]


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
