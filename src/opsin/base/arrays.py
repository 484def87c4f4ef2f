"""The arrays of a result in a NumPy file, which is untrusted."""

from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from opsin.base.errors import InputError
from opsin.base.files import open_regular

NUMBERS = "biufc"  # kinds of NumPy's dtypes that are numbers


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Every array of an `.npz` file by name.

    Raises `InputError` if it is not such a file, is truncated or damaged, holds anything but numbers, or does
    not fit into the free memory.
    """
    with open_regular(path) as file:
        try:
            stored = np.load(file, allow_pickle=False)
            size = sum(member.file_size for member in stored.zip.infolist())
            if size > (free := psutil.virtual_memory().available):
                raise InputError(f"it holds {size:,} bytes, but only {free:,} bytes of memory are free")
            arrays = {name: stored[name] for name in stored.files}
            if others := [name for name, values in arrays.items() if values.dtype.kind not in NUMBERS]:
                raise InputError(f"{others[0]} is not an array of numbers")
            return {name: torch.from_numpy(values) for name, values in arrays.items()}
        except Exception as error:  # NumPy and zipfile raise many kinds of errors on a broken file
            raise InputError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def array(arrays: dict[str, Tensor], name: str, *sides: int | tuple[int, ...] | None) -> Tensor:
    """The floating-point array of this name and these sides; `None` allows any length but zero.

    Raises `InputError` if it is missing or has another shape.
    """
    if name not in arrays:
        raise InputError(f"the array {name!r} is missing")
    values = arrays[name]
    fits = values.ndim == len(sides) and all(
        length in wanted if isinstance(wanted, tuple) else length == wanted if wanted else length > 0
        for length, wanted in zip(values.shape, sides, strict=True)
    )
    if not (fits and values.is_floating_point()):
        raise InputError(f"the array {name!r} is {values.dtype} of shape {tuple(values.shape)}")
    return values


def array_of_bytes(arrays: dict[str, Tensor], name: str) -> bytes:
    """The bytes in the array of this name. Raises `InputError` if it is missing."""
    values = _one_axis(arrays, name, torch.uint8)
    return values.numpy().tobytes()


def whole_numbers(arrays: dict[str, Tensor], name: str, count: int) -> list[int]:
    """The `count` integers in the array of this name. Raises `InputError` if they are missing."""
    values: list[int] = _one_axis(arrays, name, torch.int64).tolist()
    if len(values) != count:
        raise InputError(f"the array {name!r} holds {len(values)} numbers, not {count}")
    return values


def _one_axis(arrays: dict[str, Tensor], name: str, dtype: torch.dtype) -> Tensor:
    values = arrays.get(name)
    if values is None:
        raise InputError(f"the array {name!r} is missing")
    if values.ndim != 1 or values.dtype != dtype:
        raise InputError(f"the array {name!r} is {values.dtype} of shape {tuple(values.shape)}")
    return values
