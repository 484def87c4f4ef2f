"""Indexing of results by image."""

import operator

from opsin.base.errors import InputError


def chosen(index: object, total: int, kind: str) -> list[int]:
    """The numbers of the images that an index or a slice takes out of `total`.

    Raises `IndexError` on an index outside, and `InputError` on a slice that takes none.
    """
    if isinstance(index, slice):
        numbers = list(range(total)[index])
        if not numbers:
            raise InputError(f"the slice {index.start}:{index.stop} takes none of the {total} {kind}")
        return numbers
    try:
        number = operator.index(index)  # type: ignore[arg-type]
    except TypeError as error:
        raise InputError(f"{kind} are chosen by a number or a slice, not {type(index).__name__}") from error
    if not -total <= number < total:
        raise IndexError(f"number {number} is outside: {kind} are numbered from 0 to {total - 1}")
    return [number % total]
