"""Photo files, without torch, so that a process that only decodes starts at once."""

import io
import warnings
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from opsin.errors import InputError, unknown

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
MIN_SIDE = 8  # pixels; below this a photo shows nothing, and resizing it would invent a picture
RANGES = (1, 255, 65535)  # of 32-bit and float greys, which do not say theirs: the least that holds them
WIDEST = 64  # of a longer photo only the middle can be seen behind the centre crop, so only that is resized
BACKGROUND = (255, 255, 255)  # what shows through transparent pixels


@runtime_checkable
class Frame(Protocol):
    """How a photo is cut and resized for a network; a `Model` is one."""

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
    """A photo as upright 8-bit RGB. Raises `InputError` on what cannot be read, saying why."""
    path = Path(path)
    if not path.exists():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise unknown("file", str(path), near)
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a photo")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return decoded(data, str(path))


def decoded(data: bytes, name: str) -> Image.Image:
    """The bytes of a photo as upright 8-bit RGB. Raises `InputError` on what is none, saying why."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata in photos that it reads well
            with Image.open(io.BytesIO(data)) as photo:
                w, h = photo.size
                if min(w, h) < MIN_SIDE:
                    raise InputError(
                        f"{name} is {w}x{h} pixels: a photo needs at least {MIN_SIDE} on each side"
                    )
                return _rgb(ImageOps.exif_transpose(photo))
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large: {error}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not an image that Pillow can read") from error
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{name} is too large for the memory") from None
    except Exception as error:  # of broken files Pillow raises many kinds, struct.error and TypeError too
        raise InputError(f"{name} cannot be read: {error}") from error


def folder_photos(path: str | Path) -> list[Path]:
    """The path itself, or of a folder the images in it, by name. Raises `InputError` where there are none."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(f"{path} is a folder without images ({', '.join(sorted(SUFFIXES))})")
    return found


def fitted(photo: Image.Image, frame: Frame) -> NDArray[np.uint8]:
    """Resize and centre-crop a photo: (h, w, 3) bytes."""
    height, width = frame.size
    if not frame.squash and max(photo.size) > WIDEST * min(photo.size) * max(frame.size) / min(frame.size):
        keep = [min(side, WIDEST * min(photo.size)) for side in photo.size]
        left, top = ((side - kept) // 2 for side, kept in zip(photo.size, keep, strict=True))
        photo = photo.crop((left, top, left + keep[0], top + keep[1]))
    h, w = int(height / frame.crop), int(width / frame.crop)  # what the crop is the centre of
    if frame.squash:
        size = (w, h)
    elif h * photo.width >= w * photo.height:
        size = (max(w, int(h * photo.width / photo.height)), h)
    else:
        size = (w, max(h, int(w * photo.height / photo.width)))
    resized = photo.resize(size, Image.Resampling[frame.interpolation.upper()])
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return np.array(resized.crop((left, top, left + width, top + height)))


def _rgb(photo: Image.Image) -> Image.Image:
    if photo.mode in ("I", "F") or photo.mode.startswith("I;16"):
        deep = np.asarray(photo, np.float32)
        top = (
            65535
            if photo.mode.startswith("I;16")
            else next((t for t in RANGES if deep.max() <= t), deep.max())
        )
        return Image.fromarray((deep / top * 255).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if photo.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in photo.info:
        layer = photo.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (*BACKGROUND, 255))
        return Image.alpha_composite(ground, layer).convert("RGB")
    return photo.convert("RGB")
