"""The names of ImageNet's classes."""

from functools import cache
from pathlib import Path

CLASSES = 1000
_FILE = Path(__file__).parent / "data" / "imagenet_classes.txt"


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, in the order of outputs."""
    return tuple(_FILE.read_text("utf-8").splitlines())
