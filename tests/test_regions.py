import pytest
import torch
from torch import nn

import opsin
from nets import model as tiny_model
from opsin.network.regions import receptive_fields


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
    [("torchvision:resnet18", "layer2.0.bn1"), ("torchvision:squeezenet1_1", "features.4.expand3x3")],
)
def test_fields_are_the_support_of_the_gradient(name, layer):
    model = opsin.load(name, weights="random")
    fields = receptive_fields(model)
    layer = {"torchvision:resnet18": "layer2.0.bn1", "torchvision:squeezenet1_1": "features.4.expand3x3"}[
        name
    ]
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
