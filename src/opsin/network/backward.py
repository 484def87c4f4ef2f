"""Errors that torch raises when it differentiates a network."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

import torch

from opsin.base.errors import NetworkError

TORCH = Path(torch.__file__).parent
# Torch's message for a saved tensor that has changed. It is raised where the tensor is read, which may be in
# the backward of a custom function; all other errors raised there are that function's own.
CHANGED = "one of the variables needed for gradient computation has been modified by an inplace operation"


@contextmanager
def differentiating() -> Iterator[None]:
    """A block that differentiates a network. Raises `NetworkError` with torch's message if torch cannot.

    Other errors pass: those of a network's own backward functions, and running out of memory.
    """
    try:
        yield
    except RuntimeError as error:
        if lacks_memory(error) or not _by_torch(error):
            raise
        cause = str(error).partition("\n")[0]
        raise NetworkError(f"torch cannot differentiate this network: {cause}") from error


def lacks_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; on CPUs only torch's message says so."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _by_torch(error: RuntimeError) -> bool:
    *_, (frame, _) = walk_tb(error.__traceback__)
    return Path(frame.f_code.co_filename).is_relative_to(TORCH) or str(error).startswith(CHANGED)
