"""What goes wrong when torch differentiates a network."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

import torch

from opsin.base.errors import NetworkError

TORCH = Path(torch.__file__).parent
# What torch says of a saved tensor that has changed. It says so to whoever reads the tensor, which may be the
# backward of a custom function; all other errors that are raised there are that function's own.
CHANGED = "one of the variables needed for gradient computation has been modified by an inplace operation"


@contextmanager
def differentiating() -> Iterator[None]:
    """A block that differentiates a network: `NetworkError` where torch cannot, with what torch says.

    What else is raised passes: the errors of a network's own backward, and a lack of memory.
    """
    try:
        yield
    except RuntimeError as error:
        if lacks_memory(error) or not _by_torch(error):
            raise
        cause = str(error).partition("\n")[0]
        raise NetworkError(f"torch cannot differentiate this network: {cause}") from error


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there is too little memory; on CPUs torch tells it by the text alone."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _by_torch(error: RuntimeError) -> bool:
    *_, (frame, _) = walk_tb(error.__traceback__)
    return Path(frame.f_code.co_filename).is_relative_to(TORCH) or str(error).startswith(CHANGED)
