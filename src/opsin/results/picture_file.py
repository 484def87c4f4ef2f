"""One picture in a file of its own."""

import secrets
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from opsin.base.errors import InputError
from opsin.base.files import open_regular
from opsin.base.folders import StorageError, make_folder, storing
from opsin.images.photos import SUFFIXES

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95}),
    ".jpeg": ("JPEG", {"quality": 95}),
    ".webp": ("WEBP", {"quality": 90}),
}
OTHERS = SUFFIXES | {".svg", ".pdf"}
SOFTWARE, OPSIN = 0x0131, "Opsin"  # the EXIF tag that says which program wrote a picture


def is_picture_file(path: Path) -> bool:
    """Whether a path names the file of a picture and not a folder.

    Raises `InputError` on the suffix of a format that is not written.
    """
    suffix = path.suffix.lower()
    with suppress(OSError):  # a name that is too long
        if path.is_dir():
            return False
    if suffix not in OTHERS:
        return False
    if suffix not in FORMATS:
        raise InputError(f"{path}: a picture is written as .png, .jpg or .webp, not as {suffix}")
    return True


def write_picture(picture: Image.Image, path: Path) -> Path:
    """Write a picture, in the format that the suffix says; of existing files only Opsin's are replaced.

    Raises `InputError` if another file is there, or it cannot be written.
    """
    kind, settings = FORMATS[path.suffix.lower()]
    marked = Image.Exif()
    marked[SOFTWARE] = OPSIN
    try:
        with ExitStack() as undo, storing():
            folder = make_folder(path.parent, undo)
            if (path.exists() or path.is_symlink()) and not _is_own(path):
                raise InputError(f"{path} exists and was not written by Opsin: choose another name")
            fresh = folder / f".opsin-{secrets.token_hex(4)}{path.suffix}"
            undo.callback(fresh.unlink, missing_ok=True)
            with fresh.open("xb") as file:
                picture.save(file, kind, exif=marked, **settings)
            fresh.replace(folder / path.name)
    except StorageError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    except InputError:
        raise
    except ValueError as error:  # a NUL in the name, a picture too large for the format
        raise InputError(f"cannot write {str(path)!r}: {error}") from error
    return path


def _is_own(path: Path) -> bool:
    """Whether Opsin wrote the picture in a file."""
    try:
        with warnings.catch_warnings(action="error"), open_regular(path) as file, Image.open(file) as picture:
            return bool(picture.getexif().get(SOFTWARE) == OPSIN)
    except (InputError, OSError, SyntaxError, ValueError, Warning, Image.DecompressionBombError):
        return False
