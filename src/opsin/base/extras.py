"""Packages that one part of Opsin needs, and that its plain install does without."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

from opsin.base.errors import InputError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """A block of imports from an extra. Raises `InputError` with what to install where one is missing.

    Python's random numbers are left as they were: some packages draw from them when they are imported.
    """
    state = random.getstate()
    try:
        yield
    except ImportError as error:
        raise InputError(f"this needs an extra: pip install 'opsin[{name}]' ({error})") from error
    finally:
        random.setstate(state)
