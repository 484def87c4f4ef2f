"""Which classes of a photo to explain when nobody says."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from opsin.base.errors import NetworkError
from opsin.network.backward import differentiating
from opsin.network.model import Model

CONSIDERED = 8  # most probable classes among which another kind is looked for
LEAST_PROBABLE = 0.02  # a class below this is not worth a second look; found by trial, as is the next
MOST_ALIKE = 0.3  # two cats are 0.4 to 0.6, a cat and a dog 0.1, a cat and a cup 0.0


def two_kinds(model: Model, image: Float[Tensor, "1 3 h w"]) -> list[int]:
    """The predicted class, and the next one of another kind where one is probable enough.

    Two classes are of one kind if they rest on the same features: the cosine of their scores' gradients with
    respect to the default layer, each minus the mean class's, is at least `MOST_ALIKE`.
    """
    try:
        layer = model.default_layer
    except NetworkError:
        return [int(model.run(image)["output"][0].argmax())]
    run = model.run(image, ("output", layer), start=layer)
    scores = run["output"][0]
    with torch.no_grad():
        probabilities, classes = model.probabilities(run["output"])[0].topk(min(CONSIDERED, len(scores)))

    def features(score: Tensor) -> Tensor:
        with differentiating():
            (gradient,) = torch.autograd.grad(score, run[layer], retain_graph=True)
        return gradient.flatten().float()

    first = int(classes[0])
    with torch.inference_mode(False), torch.enable_grad():
        mean = features(scores.mean())
        direction = features(scores[first]) - mean
        for probability, index in zip(probabilities[1:].tolist(), classes[1:].tolist(), strict=True):
            if probability < LEAST_PROBABLE:
                break
            if float(cosine_similarity(features(scores[index]) - mean, direction, dim=0)) < MOST_ALIKE:
                return [first, index]
    return [first]
