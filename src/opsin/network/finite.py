"""Where in a network non-finite numbers first occur."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_leaves

from opsin.base.job import CAUTION, note
from opsin.network.model import Model
from opsin.network.outputs import unreadable

LISTED = 4  # most parts of a result that a caution names


class Scores:
    """Whether all scores of a target were finite; a result may hide that they were not."""

    def __init__(self) -> None:
        self._finite = True

    def see(self, scores: Float[Tensor, " n"]) -> None:
        """Check some scores."""
        self._finite = self._finite and bool(scores.isfinite().all())

    def not_finite(self) -> list[str]:
        """A list with their name if any was not finite, else empty."""
        return [] if self._finite else ["the target's score"]


def caution(model: Model | None, images: Float[Tensor, "n 3 h w"] | None, parts: Sequence[str]) -> None:
    """Note which parts of a result hold NaN or infinite numbers, and in which layer of a network they begin.

    Does nothing if there are no such parts.
    """
    if not parts:
        return
    listed = ", ".join(parts[:LISTED]) + (f" and {len(parts) - LISTED} more" if len(parts) > LISTED else "")
    message = f"{CAUTION}NaN or infinite numbers in {listed}"
    if model is not None and images is not None:
        begins: dict[str, list[str]] = {}
        for index, image in enumerate(images.split(1)):
            if begin := origin(model, image):
                begins.setdefault(begin, []).append(str(index))
        for begin, indices in begins.items():
            message += f"; on image {', '.join(indices)} they begin {begin}"
        if not begins:
            message += "; every layer is finite: they begin in the target, the gradient or changed images"
    note(message)


def origin(model: Model, image: Float[Tensor, "1 3 h w"]) -> str:
    """Where in the forward of an image the first non-finite number occurs; empty if there is none.

    That is the first call with a finite input and a non-finite output, or between two calls.
    """
    before, begin = "the image", ""

    def see(name: str, given: Any, output: Any) -> None:
        nonlocal before, begin
        if begin:
            return
        if _finite(output):
            before = f"layer {name!r}"
        elif _finite(given):
            begin = f"in layer {name!r} ({model.calls[name].kind})"
        else:
            begin = f"between {before} and layer {name!r}"

    output = model.watch(image, see)
    return begin or ("" if _finite(output) else f"between {before} and the output")


def _finite(values: Any) -> bool:
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    return all(bool(tensor.isfinite().all()) for tensor in tensors if not unreadable(tensor))
