from typing import Annotated, Literal

import torch

from opsin.base.choices import MOST_PIXELS
from opsin.base.errors import InputError
from opsin.network.activations import Activations
from opsin.network.model import Model
from opsin.objectives.losses import cross_entropy
from opsin.objectives.objective import Objective
from opsin.optimise.canvas import Canvas, Pixels
from opsin.optimise.climb import climb, climbed
from opsin.optimise.cppn import Cppn
from opsin.optimise.recipe import Recipe
from opsin.registry.kinds import Arg, Target
from opsin.registry.technique import technique
from opsin.results.pictures import Pictures

RATES = {"direct": 0.01, "cppn": 0.03}  # of Adam, in colours and in weights; found by trial


@technique(
    title="Unrecognisable picture",
    paper="Nguyen, Yosinski, Clune: Deep Neural Networks are Easily Fooled: High Confidence Predictions for "
    "Unrecognizable Images, 2014 (arXiv:1412.1897), 3",
    reading="A picture that means nothing to us, although the network is sure what it shows.",
    cost=600,
    iterative=True,
)
def unrecognisable(
    model: Model,
    target: Target,
    way: Annotated[
        Literal["direct", "cppn"],
        Arg("pixel by pixel, or a regular pattern of a small network of coordinates"),
    ] = "direct",
    steps: Annotated[int, Arg("number of gradient steps", least=1)] = 200,
    rate: Annotated[
        float | None, Arg("Adam's rate; by default 0.01 for pixels, 0.03 for weights", least=0, most=1000)
    ] = None,
    size: Annotated[
        int | None, Arg("side of the picture, pixels; by default the network's", least=8, most=MOST_PIXELS)
    ] = None,
    seed: Annotated[int, Arg("random seed of the noise or the weights", least=0)] = 0,
) -> Pictures:
    """A picture that the network takes for a class as surely as possible: arg max_x log p_t(x).

    `direct` climbs over pixels from noise, `cppn` over the weights of a network that computes the colour of
    a pixel from its place (`opsin.optimise.cppn.Cppn`), whose pictures are smooth and repeat themselves.

    Departs from the paper in that gradients replace evolution, which took 5,000 generations, and that the
    structure of the coordinates' network is fixed.
    """
    nothing = Activations(model.calls, model.size)
    classes = [target.for_image(nothing, index).class_index for index in range(target.count)]
    labels = [index for index in classes if index is not None]
    if len(labels) < len(classes):
        raise InputError(f"unrecognisable: a class is needed, by name or index, not {target.name!r}")
    height, width = model.size if size is None else (size, size)
    draw = torch.Generator().manual_seed(seed)
    start = torch.rand(1, 3, height, width, generator=draw).to(model.device).expand(len(labels), -1, -1, -1)
    canvas: Canvas = Pixels() if way == "direct" else Cppn(height, width, seed)
    recipe = Recipe(steps=steps, rate=RATES[way] if rate is None else rate, canvas=canvas)
    objective: Objective = -cross_entropy(torch.tensor(labels))
    return climbed(climb("unrecognisable", model, objective, start, recipe), target, model)
