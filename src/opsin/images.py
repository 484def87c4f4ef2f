"""Photos from files: read, turned upright, brought to RGB, resized; never a silent surprise."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from opsin.errors import InputError, unknown
from opsin.model import Model

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
MIN_SIDE = 8  # pixels; below this a photo shows nothing, and resizing it would invent a picture
RANGES = (1, 255, 65535)  # of 32-bit and float greys, which do not say theirs: the least that holds them
WIDEST = 64  # of a longer photo only the middle can be seen behind the centre crop, so only that is resized
BACKGROUND = (255, 255, 255)  # what shows through transparent pixels


def read(paths: str | Path | Sequence[str | Path], model: Model) -> Float[Tensor, "n 3 h w"]:
    """Read photos as the model's training saw them: shorter side to size / crop, then a centre crop.

    Accepts whatever Pillow reads: greyscale, 16-bit, palette, CMYK (through Pillow's plain
    conversion), transparent (over white) and EXIF-rotated photos; the first frame of an animation.

    Raises `InputError` on a missing, broken, tiny or huge file, naming it.
    """
    several = [paths] if isinstance(paths, str | Path) else list(paths)
    if not several:
        raise InputError("no photo given")
    return torch.stack([fit(open_photo(path), model) for path in several])


def open_photo(path: str | Path) -> Image.Image:
    """A photo as upright 8-bit RGB. Raises `InputError` on what cannot be read, saying why."""
    path = Path(path)
    if not path.exists():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise unknown("file", str(path), near)
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a photo")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata in photos that it reads well
            with Image.open(path) as photo:
                w, h = photo.size
                if min(w, h) < MIN_SIDE:
                    raise InputError(
                        f"{path} is {w}x{h} pixels: a photo needs at least {MIN_SIDE} on each side"
                    )
                return _rgb(ImageOps.exif_transpose(photo))
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} is too large: {error}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not an image that Pillow can read") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read: {error}") from error


def folder_photos(path: str | Path) -> list[Path]:
    """The path itself, or of a folder the images in it, by name. Raises `InputError` where there are none."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(f"{path} is a folder without images ({', '.join(sorted(SUFFIXES))})")
    return found


def fit(photo: Image.Image, model: Model) -> Float[Tensor, "3 h w"]:
    """Resize and centre-crop a photo for the model, in [0, 1]."""
    height, width = model.size
    if not model.squash and max(photo.size) > WIDEST * min(photo.size) * max(model.size) / min(model.size):
        keep = [min(side, WIDEST * min(photo.size)) for side in photo.size]
        left, top = ((side - kept) // 2 for side, kept in zip(photo.size, keep, strict=True))
        photo = photo.crop((left, top, left + keep[0], top + keep[1]))
    h, w = int(height / model.crop), int(width / model.crop)  # what the crop is the centre of
    if model.squash:
        size = (w, h)
    elif h * photo.width >= w * photo.height:
        size = (max(w, int(h * photo.width / photo.height)), h)
    else:
        size = (w, max(h, int(w * photo.height / photo.width)))
    resized = photo.resize(size, Image.Resampling[model.interpolation.upper()])
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    cropped = resized.crop((left, top, left + width, top + height))
    return torch.from_numpy(np.array(cropped)).permute(2, 0, 1) / 255  # (h, w, 3) bytes -> (3, h, w)


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
            f"images are a tensor (n, 3, h, w) in [0, 1], got {type(images).__name__}: see opsin.read"
        )
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise InputError(f"images are (n, 3, h, w), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise InputError(f"images are floats in [0, 1], got {images.dtype}: divide bytes by 255")
    low, high = (float(edge) for edge in images.detach().aminmax())
    if not (low >= 0 and high <= 1):
        raise InputError(f"images lie in [0, 1], got [{low:.3g}, {high:.3g}]: the model normalises by itself")


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
