"""What a technique explained: each image's target with its score, read off the technique's own runs."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.records import ScoredTarget
from opsin.network.activations import Activations
from opsin.network.model import Model
from opsin.objectives.objective import Objective


class Explained:
    """The target of some images, as the first run on these images themselves scores it."""

    def __init__(self, model: Model, images: Float[Tensor, "n 3 h w"], target: Objective) -> None:
        self._model = model
        self._images = images
        self._target = target
        self._targets: tuple[ScoredTarget, ...] | None = None

    def followed(self) -> Objective:
        """The target itself; when it is asked of a run on the images, its scores there are kept."""

        def score(activations: Activations) -> Tensor:
            scores = self._target.score(activations)
            self._see(activations, scores)
            return scores

        def single(activations: Activations, index: int) -> Objective:
            self._see(activations, None)
            return self._target.for_image(activations, index)

        return replace(self._target, score=score, single=single, chain=())  # or a sum would go past `score`

    def targets(self) -> tuple[ScoredTarget, ...]:
        """Each image's target with its score; runs the network if no run on the images was seen."""
        if self._targets is None:
            self._targets = self._scored(self._model.run(self._images, self._target.layers), None)
        return self._targets

    def _see(self, run: Activations, scores: Tensor | None) -> None:
        if self._targets is None and _same(run["image"], self._images):
            self._targets = self._scored(run, scores)

    def _scored(self, run: Activations, scores: Tensor | None) -> tuple[ScoredTarget, ...]:
        with torch.no_grad():
            values = (self._target.score(run) if scores is None else scores.detach()).flatten().tolist()
            singles = [self._target.for_image(run, index) for index in range(len(self._images))]
            classes = [single.class_index for single in singles]
            output = run.get("output")
            shares = None
            if output is not None and output.ndim == 2 and any(index is not None for index in classes):
                shares = self._model.probabilities(output.detach()).cpu()
        if len(values) != len(singles):  # an objective of the user's that gives one score for all
            values = [None] * len(singles)
        return tuple(
            ScoredTarget(single.name, value, None)
            if index is None
            else ScoredTarget(
                self._model.label(index), value, None if shares is None else float(shares[image, index])
            )
            for image, (single, value, index) in enumerate(zip(singles, values, classes, strict=True))
        )


def _same(seen: Tensor, images: Tensor) -> bool:
    """Whether a run saw the images themselves, unchanged."""
    if seen.shape != images.shape or seen.dtype != images.dtype:
        return False
    return seen.data_ptr() == images.data_ptr() or torch.equal(seen.detach(), images)
