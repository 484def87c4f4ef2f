"""Work in tiles is the whole picture's, whichever way the units' fields lie."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nets
from opsin.objectives.features import gram, gram_match
from opsin.optimise.tiles import _measured, tiled

SIDE = 48


class Padded(nn.Module):
    """Two convolutions whose units see further on some sides than on others."""

    def __init__(self, padding: tuple[int, int, int, int], stride: int = 1) -> None:
        super().__init__()
        self.padding = padding  # left, right, top, bottom
        self.conv1 = nn.Conv2d(3, 4, 5)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 6, 5, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.conv1(F.pad(x, self.padding)))
        return self.relu2(self.conv2(F.pad(x, self.padding))).mean((2, 3))


SIDES = {"right and below": (0, 4, 0, 4), "left and above": (4, 0, 4, 0), "as TensorFlow pads": (1, 3, 1, 3)}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sides", SIDES)
def test_fields_that_reach_further_on_one_side_are_whole_in_tiles(sides, stride):
    model = nets.model(nets.seeded(Padded(SIDES[sides], stride)), size=32)
    image, other = nets.images(1, SIDE), nets.images(1, SIDE, seed=3)
    objective = gram_match("relu2", gram(model.run(other, ("relu2",)).maps("relu2")))
    scores, gradient = tiled(model, objective, image, 16)
    run = model.run(image, objective.layers, start="image")
    expected = objective.score(run)
    (whole,) = torch.autograd.grad(expected.sum(), run["image"])
    torch.testing.assert_close(scores, expected.detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient, whole, rtol=0, atol=1e-9 * float(whole.abs().max()))


@pytest.mark.parametrize(
    ("sides", "reach"), [("right and below", 8), ("left and above", 8), ("as TensorFlow pads", 6)]
)
def test_a_tile_s_crop_reaches_as_far_as_its_units_see_beyond_it(sides, reach):
    model = nets.model(nets.seeded(Padded(SIDES[sides])), size=32)
    assert _measured(model, ("relu2",)) == ({"relu2": 1}, reach)
