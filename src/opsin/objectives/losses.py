"""Losses of a classifier: what an attack makes rise, and training makes fall."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opsin.base.errors import InputError, NetworkError
from opsin.base.job import CAUTION, note
from opsin.network.activations import Activations, is_distribution
from opsin.objectives.objective import Objective

SMALL = 1e-12


def cross_entropy(labels: Int[Tensor, " n"]) -> Objective:
    """-log p_y, with y each image's label and p the softmax of the output."""

    def score(activations: Activations) -> Tensor:
        output = class_scores(activations)
        if is_distribution(output):
            note(
                f"{CAUTION}the network's output holds probabilities, whose gradient vanishes where it is sure"
            )
        return -log_shares(output).gather(1, _column(labels, activations))[:, 0]

    return Objective(f"cross_entropy({_listed(labels)})", ("output",), score)


def margin(labels: Int[Tensor, " n"]) -> Objective:
    """max_{j≠y} z_j - z_y, with z the output: above zero where another class leads than the label y."""

    def score(activations: Activations) -> Tensor:
        own, rival = _own_and_rival(class_scores(activations), _column(labels, activations))
        return rival - own

    return Objective(f"margin({_listed(labels)})", ("output",), score)


def logits_ratio(labels: Int[Tensor, " n"]) -> Objective:
    """(max_{j≠y} z_j - z_y) / (z_π1 - z_π3), with z_π1 ≥ z_π2 ≥ z_π3 the greatest scores of the output.

    The same whatever the output is multiplied by (Croce & Hein 2020, "difference of logits ratio"); of two
    classes only, the margin itself.
    """

    def score(activations: Activations) -> Tensor:
        output = class_scores(activations)
        own, rival = _own_and_rival(output, _column(labels, activations))
        if output.shape[1] < 3:
            return rival - own
        top = output.topk(3, 1).values
        return (rival - own) / (top[:, 0] - top[:, 2] + SMALL)

    return Objective(f"logits_ratio({_listed(labels)})", ("output",), score)


def class_scores(activations: Activations) -> Float[Tensor, "n c"]:
    """The output as scores of at least two classes, in single precision at least.

    Raises `InputError` on an output of another shape, `NetworkError` on one that is not finite.
    """
    output = activations["output"]
    if output.ndim != 2 or output.shape[1] < 2:
        raise InputError(
            f"a network is fooled about classes: this one gives {tuple(output.shape)}, not (n, classes) "
            "of at least two"
        )
    if not output.isfinite().all():
        raise NetworkError("the network's output is NaN or infinite, so it has no class to be fooled about")
    return output.to(torch.promote_types(output.dtype, torch.float32))


def log_shares(output: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """The logarithm of the probabilities: of the softmax, or of the output itself if it holds them."""
    if is_distribution(output):
        return output.clamp(min=torch.finfo(output.dtype).tiny).log()
    return output.log_softmax(1)


def _own_and_rival(
    output: Float[Tensor, "n c"], own: Int[Tensor, "n 1"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """The label's score, and the greatest of the others'."""
    others = output.scatter(1, own, -torch.inf)
    return output.gather(1, own)[:, 0], others.max(1).values


def _column(labels: Tensor, activations: Activations) -> Int[Tensor, "n 1"]:
    if len(labels) != len(activations["output"]):
        raise InputError(f"{len(labels)} labels for {len(activations['output'])} images: give one per image")
    last = activations["output"].shape[-1] - 1
    if wrong := [label for label in labels.tolist() if not 0 <= label <= last]:
        raise InputError(f"class {wrong[0]} does not exist: the output has classes 0 to {last}")
    return labels.to(activations["output"].device)[:, None]


def _listed(labels: Tensor) -> str:
    return ", ".join(map(str, labels.tolist()))
