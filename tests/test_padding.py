"""Which positions see padding, against the receptive field that a convolution has without an image's end."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nets
from opsin.network.padding import padded


class Chain(nn.Module):
    """Layers one after another, with a head."""

    def __init__(self, *layers, channels=4):
        super().__init__()
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels, 5)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Constant(nn.Module):
    """Padding by a function, which adds a channel too."""

    def __init__(self, **settings):
        super().__init__()
        self.settings = settings

    def forward(self, x):
        if self.settings:
            return F.pad(x, (0, 2, 1, 0), **self.settings)
        return F.pad(x, (0, 2, 1, 0, 0, 1))


def ring(size, top=0, bottom=0, left=0, right=0):
    """Positions of a map within these many rows and columns of its edges."""
    edge = np.ones(size, bool)
    edge[top : size[0] - bottom, left : size[1] - right] = False
    return edge


def conv(inputs=3, outputs=4, kernel=3, **settings):
    return nn.Conv2d(inputs, outputs, kernel, **settings)


CASES = {
    "padding": ([conv(padding=1)], ring((16, 16), 1, 1, 1, 1)),
    "none": ([conv()], ring((14, 14))),
    "rows alone": ([conv(padding=(2, 0), kernel=(5, 1))], ring((16, 16), 2, 2)),
    "two in a row": ([conv(padding=1), conv(4, padding=1)], ring((16, 16), 2, 2, 2, 2)),
    "a stride": ([conv(padding=1, stride=2)], ring((8, 8), 1, 0, 1, 0)),
    "dilation": ([conv(padding=2, dilation=2)], ring((16, 16), 2, 2, 2, 2)),
    "the word same": ([conv(padding="same", kernel=(2, 3))], ring((16, 16), 0, 1, 1, 1)),
    "the word valid": ([conv(padding="valid")], ring((14, 14))),
    "groups": ([conv(padding=1), conv(4, groups=4, padding=1)], ring((16, 16), 2, 2, 2, 2)),
    "a function": ([conv(), Constant(value=0.5), conv(4, 4, 1)], ring((15, 16), 1, 0, 0, 2)),
    "a function that adds channels": ([conv(), Constant(), conv(5, 4, 1)], ring((15, 16), 1, 0, 0, 2)),
    "repeated pixels": ([conv(), Constant(mode="replicate"), conv(4, 4, 1)], ring((15, 16))),
    "reflected pixels": ([conv(padding=1, padding_mode="reflect")], ring((16, 16))),
    "a module": ([nn.ZeroPad2d((1, 0, 0, 0)), conv()], ring((14, 15), left=1)),
    "average pooling": ([conv(), nn.AvgPool2d(2, 2, padding=1)], ring((8, 8), 1, 1, 1, 1)),
    "average pooling without": (
        [conv(), nn.AvgPool2d(2, 2, padding=1, count_include_pad=False)],
        ring((8, 8)),
    ),
    "maximum pooling": ([conv(), nn.MaxPool2d(2, 2, padding=1)], ring((8, 8))),
    "normalised over channels": ([conv(padding=1), nn.LocalResponseNorm(3)], ring((16, 16), 1, 1, 1, 1)),
}


@pytest.mark.parametrize("case", CASES)
def test_positions_that_see_padding(case):
    layers, expected = CASES[case]
    net = nets.seeded(Chain(*layers), dtype=torch.float32)
    found = padded(nets.model(net), f"body.{len(layers) - 1}")
    np.testing.assert_array_equal(found.numpy(), expected)


def test_behind_a_global_gate_every_position_sees_it():
    class Gate(nn.Module):
        def forward(self, x):
            return x * x.mean((2, 3), keepdim=True).sigmoid()

    net = nets.seeded(Chain(conv(padding=1), Gate(), conv(4)), dtype=torch.float32)
    assert padded(nets.model(net), "body.0").float().mean() < 1
    assert padded(nets.model(net), "body.2").all()


def test_the_network_is_left_as_it_was_found():
    net = nets.plain()
    model = nets.model(net)
    before = nets.state(net)
    padded(model, "relu2")
    assert nets.state(net) == before
