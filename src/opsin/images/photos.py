"""Photos as upright RGB, without torch, so that a process that only decodes starts at once."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from opsin.base.errors import InputError, shortened
from opsin.base.files import MIB, missing, read_regular, too_large
from opsin.images.arrays import from_array
from opsin.images.upright import opened, told, upright

LARGEST_FILE = (
    512 * MIB
)  # bytes of a photo's file: the most pixels that Pillow opens, uncompressed in 8-bit RGB
LARGEST_FILE_VARIABLE = "OPSIN_LARGEST_FILE"  # environment variable, inherited by decoding processes
RAISING = f"; set the environment variable {LARGEST_FILE_VARIABLE} to another number of bytes"
HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})  # read with the extra `opsin[heif]`
SUFFIXES = HEIF_SUFFIXES | {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
ADDRESS = re.compile(r"https?:/", re.IGNORECASE)  # a `Path` keeps one of the two slashes
CHUNK = 4 * MIB  # bytes that are read from a file object at once
WIDEST = (
    64  # aspect ratio: of a longer photo only the middle survives the centre crop, so only that is resized
)
DIGITS = 4  # of shares of a photo's sides


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


@runtime_checkable
class Readable(Protocol):
    """A file that is open for reading bytes."""

    def read(self, size: int = -1, /) -> Any:
        """At most `size` bytes, from where the last call ended; none at the end."""


Source: TypeAlias = (
    str | os.PathLike[str] | Image.Image | NDArray[Any] | bytes | bytearray | memoryview | Readable
)


def is_source(value: object) -> bool:
    """Whether this is one photo of a kind that `as_photo` takes."""
    kinds: Any = str | os.PathLike | Image.Image | np.ndarray | bytes | bytearray | memoryview
    return isinstance(value, kinds) or callable(getattr(value, "read", None))


def as_photo(source: object, name: str = "") -> Image.Image:
    """A photo of any kind as upright 8-bit RGB, treated as its file would be.

    `source` is a path, an image of Pillow, a NumPy array (h, w), (h, w, 3) or (h, w, 4) of uint8, uint16 or
    floats in [0, 1], the bytes of a photo's file, or a binary file object, which is read from its position
    on. Errors call it `name`, by default its path or kind.

    Raises `InputError` if it is none of these or cannot be read, saying why.
    """
    if isinstance(source, str | os.PathLike):
        return open_photo(os.fspath(source))
    if isinstance(source, Image.Image):
        name = name or str(getattr(source, "filename", "")) or "the image"
        with told(name):
            return upright(source, name)
    if isinstance(source, np.ndarray):
        name = name or "the array"
        photo = from_array(source, name)
        with told(name):
            return upright(photo, name)
    if isinstance(source, bytes | bytearray | memoryview):
        data, name = bytes(source), name or "the photo given as bytes"
        if len(data) > (most := largest_file()):
            raise too_large(name, most, RAISING)
        return decoded(data, name)
    if isinstance(source, Readable):
        known = getattr(source, "name", "")
        name = name or (known if isinstance(known, str) and known else "the file object")
        return decoded(stream_bytes(source, name), name)
    raise InputError(
        f"{name or 'a photo'} must be a path, an image of Pillow, a NumPy array, the bytes of a file or a "
        f"binary file object, not {type(source).__name__}"
    )


def stream_bytes(file: Readable, name: str) -> bytes:
    """What is left in an open file, which errors call `name`.

    Raises `InputError` if it gives anything but bytes, fails, or holds more than `largest_file()`.
    """
    most, size = largest_file(), 0
    pieces: list[bytes] = []
    while True:
        try:
            piece = file.read(CHUNK)
        except (OSError, ValueError) as error:  # ValueError: closed, or text that is no UTF-8
            raise InputError(f"{name} cannot be read: {error}") from error
        if not isinstance(piece, bytes):
            hint = ": open it in binary mode, with 'rb'" if isinstance(piece, str) else ""
            raise InputError(f"{name} must give bytes, not {type(piece).__name__}{hint}")
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        if (size := size + len(piece)) > most:
            raise too_large(name, most, RAISING)


def refuse_address(path: str | Path) -> None:
    """Raise `InputError` on a web address."""
    if ADDRESS.match(str(path)):
        raise InputError(
            f"{shortened(str(path))} is a web address, which is not opened: download the photo first, and "
            "name its file"
        )


def open_photo(path: str | Path) -> Image.Image:
    """The photo in a file as upright 8-bit RGB. Raises `InputError` if it cannot be read, saying why."""
    refuse_address(path)
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
    with told(name), opened(data, name) as photo:
        return upright(photo, name)


def folder_photos(path: str | Path) -> list[Path]:
    """The path itself, or if it is a folder, the images in it, sorted by name; only regular files.

    Raises `InputError` if there are none, and on a folder that cannot be listed.
    """
    refuse_address(path)
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
