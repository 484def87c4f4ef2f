"""Sample photos that come with the install."""

from pathlib import Path

from PIL import Image

from opsin.base.errors import unknown

_FOLDER = Path(__file__).parent / "data"


def sample(name: str = "cat_and_espresso") -> Image.Image:
    """A sample photo: `cat_and_espresso`, with two classes for a network to choose between.

    Raises `InputError` on an unknown name.
    """
    return Image.open(sample_file(name)).convert("RGB")


def sample_file(name: str) -> Path:
    """The file of a sample photo. Raises `InputError` on an unknown name."""
    files = {path.stem: path for path in _FOLDER.glob("*.jpg")}
    if name not in files:
        raise unknown("sample photo", name, files)
    return files[name]
