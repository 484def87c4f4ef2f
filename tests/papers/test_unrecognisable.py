import math

import pytest
import torch
from torch import nn

import nets
import opsin
from opsin.objectives.units import channel
from opsin.optimise.ascent import ascend
from opsin.optimise.cppn import Cppn
from opsin.optimise.recipe import Recipe

NET = nets.seeded(
    nets.Chain(
        conv1=nn.Conv2d(3, 8, 5, stride=2), relu1=nn.ReLU(), flat=nn.Flatten(), fc=nn.Linear(8 * 6 * 6, 5)
    )
)
MODEL = nets.model(NET)


@pytest.mark.parametrize("way", ["direct", "cppn"])
def test_the_network_becomes_sure(way):
    result = opsin.unrecognisable(MODEL, target="beagle; 3", way=way, steps=60)
    shares = MODEL.probabilities(MODEL.run(result.images.double())["output"])
    assert shares[0, 2] > 0.9
    assert shares[1, 3] > 0.9
    torch.testing.assert_close(
        result.numbers["scores"][-1].exp(), shares.diagonal(offset=2).double(), rtol=0.1, atol=0.1
    )


def test_a_step_goes_up_the_logarithm_of_the_probability():
    result = opsin.unrecognisable(MODEL, target=2, steps=1)
    start = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = MODEL.run(start)["output"].log_softmax(1)[0, 2]
    torch.testing.assert_close(result.numbers["scores"][0, 0], expected, rtol=1e-5, atol=1e-6)


def test_what_is_no_class_is_refused():
    with pytest.raises(opsin.InputError, match="a class is needed"):
        opsin.unrecognisable(MODEL, target="conv1:2")


def test_a_pattern_is_the_function_of_the_coordinates_that_its_weights_say():
    canvas = Cppn(5, 7, units=2, depth=2)
    weights = canvas.encode(torch.zeros(2, 3, 5, 7, dtype=torch.float64)) * 1.0
    weights[1] += 0.1
    pictures = canvas.decode(weights)
    for number in range(2):
        w = weights[number].tolist()
        for i, j in ((0, 0), (2, 3), (4, 1)):
            x, y = (2 * j - 6) / 6, (2 * i - 4) / 6
            values, at = [x, y, math.hypot(x, y), 1.0], 0
            for outputs in (2, 2, 3):
                sums = [
                    sum(v * w[at + row * outputs + column] for row, v in enumerate(values))
                    for column in range(outputs)
                ]
                at += len(values) * outputs
                values = [math.sin(s) for s in sums] + [math.exp(-s * s) for s in sums]
            expected = torch.tensor([1 / (1 + math.exp(-s)) for s in sums], dtype=torch.float64)
            torch.testing.assert_close(pictures[number, :, i, j], expected, rtol=1e-6, atol=1e-7)
    assert at == weights.shape[1]


def test_a_pattern_is_a_canvas_for_any_objective():
    start = torch.zeros(2, 3, 16, 16, dtype=torch.float64)
    recipe = Recipe(steps=15, rate=0.03, canvas=Cppn(16, 16, seed=1))
    scores = [step.scores for step in ascend(MODEL, channel("conv1", 2), start, recipe)][1:]
    assert (scores[-1] > scores[0]).all()
