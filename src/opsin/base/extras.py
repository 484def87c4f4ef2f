"""Optional packages that only one part of Opsin needs."""

from collections.abc import Iterator
from contextlib import contextmanager

from opsin.base.errors import InputError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """A block of imports from an extra. Raises `InputError`, saying what to install, if one is missing."""
    try:
        yield
    except ImportError as error:
        raise InputError(f"this needs an extra: pip install 'opsin[{name}]' ({error})") from error
