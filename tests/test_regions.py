import pytest
import torch
from torch import nn

import nets
import opsin
from nets import model as tiny_model
from opsin.network.regions import fields, fields_of, receptive_fields


class Branches(nn.Module):
    """A 3x3 beside a 1x5 branch, added; then a squeeze-and-excite gate."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(3, 4, (1, 5), padding=(0, 2))
        self.act = nn.ReLU()
        self.down = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4)
        self.gate = nn.Linear(4, 4)
        self.last = nn.Identity()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.down(self.act(self.a(x) + self.b(x)))
        x = self.last(x * self.gate(x.mean((2, 3))).sigmoid()[..., None, None])
        return self.head(x.mean((2, 3)))


def test_fields_of_a_network_worked_out_by_hand():
    fields = receptive_fields(tiny_model(Branches(), size=32))
    assert fields["a"].size == (3, 3)
    assert fields["b"].size == (1, 5)
    assert fields["act"].size == (3, 5)
    assert fields["down"].size == (5, 7)
    assert (fields["down"].top, fields["down"].left) == (14, 13)  # around pixel 16 = 2 * 8
    assert fields["last"].size == (32, 32)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        pytest.param("torchvision:resnet18", "layer2.0.bn1", marks=pytest.mark.thorough),
        ("torchvision:squeezenet1_1", "features.4.expand3x3"),
    ],
)
def test_fields_are_the_support_of_the_gradient(name, layer):
    model = opsin.load(name, weights="random")
    fields = receptive_fields(model)
    image = torch.rand(1, 3, *model.size, generator=torch.Generator().manual_seed(0))
    run = model.run(image, (layer,), start="image")
    maps = run.maps(layer)
    # Several sums over channels with random weights, so that no closed gate hides an edge
    support = torch.zeros(model.size, dtype=torch.bool)
    for seed in range(6):
        weights = torch.randn(maps.shape[1], generator=torch.Generator().manual_seed(seed))
        score = (maps[0, :, maps.shape[2] // 2, maps.shape[3] // 2] * weights).sum()
        (gradient,) = torch.autograd.grad(score, run["image"], retain_graph=True)
        support |= (gradient[0] != 0).any(0)
    rows, columns = support.any(1).nonzero(), support.any(0).nonzero()
    field = fields[layer]
    assert (int(rows.min()), int(rows.max()) + 1) == (field.top, field.bottom)
    assert (int(columns.min()), int(columns.max()) + 1) == (field.left, field.right)


def hidden_by_a_rectifier():
    """No unit fires, so that the gradient reaches nothing."""
    conv = nets.conv([[[[1.0] * 5] * 3] * 3], [-1000.0], padding=(1, 2))
    return nets.chain(conv=conv, relu=nn.ReLU())


def hidden_by_a_max_pool():
    """The gradient reaches one pixel of each window of 4 x 4."""
    return nets.chain(pool=nn.MaxPool2d(4, 2), conv=nets.conv([[[[1.0]], [[1.0]], [[1.0]]]]))


def hidden_by_a_wide_sum():
    """Every unit sees the mean of the photo, through a function that drops NaN."""

    class Sum(nn.Module):
        def forward(self, x):
            return x[:, :1] + Dropping.apply(x)

    return nets.chain(sum=Sum())


class Dropping(torch.autograd.Function):
    """The mean of a photo, without what is not a number."""

    @staticmethod
    def forward(_context, x):
        _context.shape = x.shape
        return x.masked_fill(x.isnan(), 0).mean((1, 2, 3), keepdim=True)

    @staticmethod
    def backward(context, signal):
        return signal.expand(context.shape) / signal[0].numel()


@pytest.mark.parametrize("net", [hidden_by_a_rectifier, hidden_by_a_max_pool, hidden_by_a_wide_sum])
def test_fields_of_some_units_are_those_of_all_units_whatever_the_gradient_shows(net):
    model = tiny_model(net(), size=12)
    layer = next(reversed(model.calls))
    every = fields(model, layer)
    height, width = len(every.rows), len(every.columns)
    units = [(0, 0), (height // 2, width // 2), (height - 1, width - 1), (0, width - 1)]
    assert fields_of(model, layer, units, (12, 12)) == {unit: every.at(*unit) for unit in units}
    whole = net is hidden_by_a_wide_sum
    assert (every.at(0, 0).size == (12, 12)) is whole
