import pytest
import torch
from torch import nn

import opsin
from nets import images, plain
from nets import model as tiny_model
from opsin import regions


class Skips(nn.Module):
    """What the head reads goes around the block: no layer inside is a way through."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        return self.head((x + self.block(x)).mean((2, 3)))


class Deep(nn.Module):
    """Two strided stages, then a head over everything."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(True), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(True)
        )
        self.rest = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(True))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.rest(self.stem(x)).mean((2, 3)))


def occluded(model, monkeypatch, x, **settings):
    fast = opsin.occlusion(model, x, **settings)
    monkeypatch.setattr("opsin.techniques.occlusion.detour", lambda *_: None)
    return fast, opsin.occlusion(model, x, **settings)


@pytest.mark.parametrize("target", [None, 2, "rest.1:3", "rest.1:3@2,5", "stem.0:1"])
@pytest.mark.parametrize("stride", [7, 8])
def test_a_detour_gives_what_the_plain_way_gives(monkeypatch, target, stride):
    model = tiny_model(Deep(), size=96, labels=None)
    x = images(2, 96, dtype=torch.float32)
    way = regions.detour(model, x, ("output",), 16)
    assert way is not None
    assert way.layer.startswith("stem")
    assert way.side < 96
    fast, plain_way = occluded(model, monkeypatch, x, target=target, patch=16, stride=stride)
    torch.testing.assert_close(fast.extras["score"], plain_way.extras["score"], atol=1e-5, rtol=1e-5)
    assert torch.equal(fast.extras["top_class"], plain_way.extras["top_class"])


def test_no_detour_through_a_layer_that_others_go_around():
    assert regions.detour(tiny_model(Skips(), size=96), images(1, 96), ("output",), 8) is None


def test_no_detour_where_a_square_reaches_everything():
    assert regions.detour(tiny_model(plain(), size=16), images(1), ("output",), 12) is None


def test_no_detour_for_a_target_before_its_layer():
    model = tiny_model(Deep(), size=96)
    assert regions.detour(model, images(1, 96, dtype=torch.float32), ("stem.0", "output"), 16) is None


def test_replaced_activations_are_what_the_network_goes_on_with():
    model = tiny_model(plain())
    x = images(2)
    run = model.run(x, ("conv1", "output"), replace={"conv1": torch.zeros_like})
    assert not run["conv1"].any()
    same = model.run(1 - x, ("output",), replace={"conv1": torch.zeros_like})
    torch.testing.assert_close(run["output"], same["output"])
