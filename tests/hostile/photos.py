"""Bad photos, made by code: `make(folder)` writes them, `READ` and `REFUSED` say what becomes of each."""

import io
import os
import random
import stat
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from opsin.images.photos import LARGEST_FILE

Write = Callable[[Path], object]

SIZE = (120, 80)  # pixels, of the photo that the others are made of
READ: dict[str, Write] = {}  # odd, and photos all the same
REFUSED: dict[str, tuple[str, Write]] = {}  # with words of the error
SPECIAL: dict[str, Write] = {}  # no regular files: refused by name, passed over in a folder
# Names to trip over; each is a good photo.
NAMES: tuple[bytes, ...] = (
    b"not utf-8 \xff\xfe.jpg",
    b"new\nline.jpg",
    b"<img src=x onerror=alert(1)>.jpg",
    b"quotes\"'`.jpg",
    b"x" * 251 + b".jpg",
    b"..%2f..%2fetc.jpg",
    b"-rf.jpg",
    b"[red]markup[bold].jpg",
    "\u202egpj.jpg".encode(),
    b"a\x1b[31mcolour.jpg",
    b".hidden.jpg",
    b"UPPER.JPG",
)


def make(folder: Path) -> dict[str, Path]:
    """Write every bad photo into a folder that is made for them, by name."""
    folder.mkdir(parents=True)
    refused = {name: write for name, (_, write) in REFUSED.items()}
    for name, write in (READ | refused | SPECIAL).items():
        write(folder / name)
    return {path.name: path for path in folder.iterdir()}


def photo() -> Image.Image:
    """A photo with slopes and noise in it."""
    width, height = SIZE
    across, down = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    noise = np.random.default_rng(0).integers(0, 56, (height, width, 3))
    return Image.fromarray((np.stack([across, down, 200 - across], 2) + noise).astype(np.uint8))


def encoded(kind: str = "JPEG", image: Image.Image | None = None, **settings: Any) -> bytes:
    """The bytes of a photo's file."""
    buffer = io.BytesIO()
    (image or photo()).save(buffer, kind, **settings)
    return buffer.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 1, colour: int = 0) -> bytes:
    """A PNG of chunks written out; without any it is a header alone."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (header, *chunks, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def greys(low: float, high: float, kind: type[np.generic]) -> Image.Image:
    """A slope from one grey to another, as a TIFF may hold it."""
    return Image.fromarray(np.linspace(low, high, 100 * 100).reshape(100, 100).astype(kind))


def _holding(data: bytes) -> Write:
    return lambda path: path.write_bytes(data)


def _saved(image: Image.Image, **settings: Any) -> Write:
    return lambda path: image.save(path, **settings)


def _leading(target: str) -> Write:
    return lambda path: path.symlink_to(target)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _with(value: float) -> Image.Image:
    """Float greys of which one is of this value."""
    values = np.full((20, 20), 0.5, np.float32)
    values[3, 4] = value
    return Image.fromarray(values)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(LARGEST_FILE + 1)


def _closed(path: Path) -> None:
    path.write_bytes(encoded())
    path.chmod(0)


_JPEG = encoded()
_NOISE = random.Random(0).randbytes
_FRAMES = [photo().rotate(angle) for angle in (0, 30, 60)]
_CLEAR = Image.new("RGBA", (50, 50), (255, 0, 0, 0))

# --- photos all the same

READ |= {os.fsdecode(name): _holding(_JPEG) for name in NAMES}
READ |= {f"exif{turn}.jpg": _saved(photo(), exif=_exif(turn)) for turn in range(10)}
READ |= {f"animated.{kind}": _saved(_FRAMES[0], save_all=True, append_images=_FRAMES[1:])
         for kind in ("gif", "webp", "png")}  # fmt: skip
READ |= {f"plain.{kind}": _saved(photo()) for kind in ("bmp", "tiff", "avif", "ico", "jp2")}
READ |= {
    "progressive.jpg": _saved(photo(), progressive=True),
    "trailing.jpg": _holding(_JPEG + b"trailing garbage" * 1000),
    "broken exif.jpg": _holding(_JPEG[:2] + b"\xff\xe1\x00\x20Exif\0\0" + _NOISE(0x20 - 8) + _JPEG[2:]),
    "pixmap.jpg": _holding(b"P6 10 10 255\n" + b"\x80" * 300),
    "16 bit.png": _saved(greys(0, 65535, np.uint16)),
    "32 bit.tif": _saved(greys(0, 65535, np.int32)),
    "float.tif": _saved(greys(0, 1, np.float32)),
    "float to 6.5e13.tif": _saved(greys(0, 6.5e13, np.float32)),
    "float of zeros.tif": _saved(greys(0, 0, np.float32)),
    "cmyk.jpg": _saved(photo().convert("CMYK")),
    "lab.tif": _saved(Image.merge("LAB", photo().split())),
    "ycbcr.jpg": _saved(photo().convert("YCbCr")),
    "one bit.png": _saved(photo().convert("1")),
    "palette.png": _saved(photo().convert("P"), transparency=0),
    "palette.gif": _saved(photo().convert("P"), transparency=0),
    "rgba.png": _saved(photo().convert("RGBA")),
    "la.png": _saved(photo().convert("LA")),
    "transparent colour.png": _saved(photo(), transparency=(1, 2, 3)),
    "all transparent.png": _saved(_CLEAR),
    "8x8.png": _saved(Image.new("RGB", (8, 8))),
    "8x20000.png": _saved(Image.new("RGB", (8, 20000))),
    "20000x8.png": _saved(Image.new("RGB", (20000, 8), (200, 3, 4))),
    "65000x9.jpg": _saved(Image.new("RGB", (65000, 9))),
    # So many pixels that Pillow warns of a bomb, and opens it.
    "many pixels.png": _holding(png(9500, 9500, (b"IDAT", zlib.compress(bytes(9500 * 1189), 1)))),
    "link.jpg": _leading("exif1.jpg"),
}

# --- none

REFUSED |= {
    "half.jpg": ("cannot be read", _holding(_JPEG[: len(_JPEG) // 2])),
    "head.jpg": ("cannot be read|not an image", _holding(_JPEG[:20])),
    "empty.jpg": ("not an image", _holding(b"")),
    "text.jpg": ("not an image", _holding(b"hello world\n" * 100)),
    "noise.jpg": ("not an image", _holding(_NOISE(5000))),
    "svg.jpg": ("not an image", _holding(b'<svg xmlns="http://www.w3.org/2000/svg"/>')),
    "postscript.jpg": (
        "EPS, a program that is not run",
        _holding(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n"
                 b"(touch EXECUTED) (w) file\nshowpage\n%%EOF\n"),
    ),
    "30000x30000.png": ("too large", _holding(png(30000, 30000))),
    "2147483647x2147483647.png": ("too large", _holding(png(2**31 - 1, 2**31 - 1))),
    "0x10.png": ("cannot be read|not an image|at least 8", _holding(png(0, 10))),
    "text of 8 MB.png": (
        "cannot be read",
        _holding(png(64, 64, (b"zTXt", b"a\0\0" + zlib.compress(bytes(8 * 2**20))),
                     (b"IDAT", zlib.compress(bytes(64 * 193))), depth=8, colour=2)),
    ),
    "broken.heic": (
        r"opsin\[heif\]|cannot be read|not an image",
        _holding(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + _NOISE(5000)),
    ),
    "1x1.png": ("1x1 pixels", _saved(Image.new("RGB", (1, 1)))),
    "7x7.png": ("7x7 pixels", _saved(Image.new("RGB", (7, 7)))),
    "1x10000.png": ("1x10000 pixels", _saved(Image.new("RGB", (1, 10000)))),
    "nan.tif": ("holds greys from nan", _saved(_with(np.nan))),
    "all nan.tif": ("holds greys from nan", _saved(greys(np.nan, np.nan, np.float32))),
    "infinite.tif": ("holds greys from 0.5 to inf", _saved(_with(np.inf))),
    "minus infinity.tif": ("holds greys from -inf", _saved(_with(-np.inf))),
    "negative.tif": ("holds greys from -65535 to 0", _saved(greys(-65535, 0, np.float32))),
    "one negative.tif": ("holds greys from -0.001 to 0.5, 1 of 400", _saved(_with(-0.001))),
    "negative integers.tif": ("holds greys from -65535 to 0", _saved(greys(-65535, 0, np.int32))),
    "larger than may be.jpg": ("larger than 512 MiB", _sparse),
    "loop 1.jpg": ("cannot be read", _leading("loop 2.jpg")),
    "loop 2.jpg": ("cannot be read", _leading("loop 1.jpg")),
    "leads nowhere.jpg": ("cannot be read", _leading("nothing")),
}  # fmt: skip
if os.geteuid():  # a superuser may read it
    REFUSED["no permission.jpg"] = ("Permission denied", _closed)

# --- no regular files

SPECIAL |= {
    "folder.jpg": Path.mkdir,
    "pipe.jpg": os.mkfifo,
    "link to a pipe.jpg": _leading("pipe.jpg"),
    "socket.jpg": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "zeros.jpg": _leading("/dev/zero"),
    "random.jpg": _leading("/dev/random"),
    "null.jpg": _leading("/dev/null"),
}
