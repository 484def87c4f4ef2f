"""NumPy arrays as images of Pillow, as their files would be."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from opsin.base.errors import InputError

SHAPES = "(h, w), (h, w, 3) or (h, w, 4)"


def from_array(array: NDArray[Any], name: str) -> Image.Image:
    """An array (h, w), (h, w, 3) or (h, w, 4) as an 8-bit image of greys, RGB or RGBA.

    Its numbers are uint8, uint16 with the white 65535, or floats in [0, 1]. Raises `InputError`, which calls
    the array `name`, on another shape or type, and on floats that are not in [0, 1].
    """
    shape = array.shape
    if not (array.ndim == 2 or (array.ndim == 3 and shape[2] in (3, 4))) or 0 in shape:
        hint = ""
        if array.ndim == 3 and shape[0] in (3, 4):
            hint = ": channels come last, as in array.transpose(1, 2, 0)"
        elif array.ndim == 4:
            hint = ": pass several photos as a list, list(array)"
        raise InputError(f"{name} must be {SHAPES}, not {shape}{hint}")
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    is_deep = array.dtype.kind == "u" and array.dtype.itemsize == 2  # in either order of bytes
    if not (array.dtype.kind == "f" or is_deep):
        raise InputError(f"{name} must hold uint8, uint16 or floats in [0, 1], not {array.dtype}")
    white = 65535 if is_deep else 1
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= white):  # also true for NaN
        raise InputError(
            f"{name} holds floats from {low:g} to {high:g}: they must lie in [0, 1]; "
            "divide by the value of white, or pass uint8"
        )
    shares = array.astype(np.float64) / white
    return Image.fromarray((shares * 255).round().astype(np.uint8))
