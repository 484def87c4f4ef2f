import pytest
import torch
from torch import nn

import opsin
from nets import images, plain
from nets import model as tiny_model
from opsin.network.shortcuts.detour import Detour, Reach, _cheapest, detour


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
    monkeypatch.setattr("opsin.techniques.covering.occlusion.detour", lambda *_: None)
    return fast, opsin.occlusion(model, x, **settings)


@pytest.mark.parametrize("target", [None, 2, "rest.1:3", "rest.1:3@2,5", "stem.0:1"])
@pytest.mark.parametrize("stride", [7, 8])
def test_a_detour_gives_what_the_plain_way_gives(monkeypatch, target, stride):
    model = tiny_model(Deep(), size=96, labels=None)
    x = images(2, 96, dtype=torch.float32)
    way = detour(model, x, ("output",), 16)
    assert way is not None
    assert way.layers[0].startswith("stem")
    assert way.layers[-1].startswith("rest")
    fast, plain_way = occluded(model, monkeypatch, x, target=target, patch=16, stride=stride)
    torch.testing.assert_close(fast.extras["score"], plain_way.extras["score"], atol=1e-5, rtol=1e-5)
    assert torch.equal(fast.extras["top_class"], plain_way.extras["top_class"])


def test_no_detour_through_a_layer_that_others_go_around():
    assert detour(tiny_model(Skips(), size=96), images(1, 96), ("output",), 8) is None


def test_no_detour_where_a_square_reaches_everything():
    assert detour(tiny_model(plain(), size=16), images(1), ("output",), 12) is None


def test_no_detour_for_a_target_before_its_layer():
    model = tiny_model(Deep(), size=96)
    assert detour(model, images(1, 96, dtype=torch.float32), ("stem.0", "output"), 16) is None


def test_replaced_activations_are_what_the_network_goes_on_with():
    model = tiny_model(plain())
    x = images(2)
    run = model.run(x, ("conv1", "output"), replace={"conv1": torch.zeros_like})
    assert not run["conv1"].any()
    same = model.run(1 - x, ("output",), replace={"conv1": torch.zeros_like})
    torch.testing.assert_close(run["output"], same["output"])


class Same(nn.Module):
    """A strided convolution padded as TensorFlow does: at the end more than at the beginning."""

    def __init__(self, channels, kernel):
        super().__init__()
        self.conv, self.kernel = nn.Conv2d(channels, 4, kernel, 2), kernel

    def forward(self, x):
        wanted = [max((-(-side // 2) - 1) * 2 + self.kernel - side, 0) for side in x.shape[2:]]
        high, wide = wanted
        return self.conv(nn.functional.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2)))


class Residual(nn.Module):
    def __init__(self, stride=1):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, stride, 1), nn.ReLU(True), nn.Conv2d(4, 4, 3, 1, 1))
        self.short = nn.Conv2d(4, 4, 1, stride)

    def forward(self, x):
        return (self.body(x) + self.short(x)).relu_()


BODIES = {
    "padded alike": lambda: [nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU(True)],
    "strides": lambda: [nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)],
    "padded at the end": lambda: [Same(3, 3), nn.Conv2d(4, 4, 3, 1, 1), Same(4, 5), nn.Conv2d(4, 4, 3, 1, 1)],
    "even kernels": lambda: [nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 4, 4, 2, 1), nn.AvgPool2d(2)],
    "dilated": lambda: [nn.Conv2d(3, 4, 3, 1, 2, 2), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, 1, 3, 3)],
    "rows, then columns": lambda: [nn.Conv2d(3, 4, (1, 9), 1, (0, 4)), nn.Conv2d(4, 4, (9, 1), 1, (4, 0))],
    "different strides": lambda: [
        nn.Conv2d(3, 4, 3, (1, 2), 1),
        nn.Conv2d(4, 4, 3, (2, 1), 1),
        nn.Conv2d(4, 4, 3, 1, 1),
    ],
    "a stride over some": lambda: [nn.Conv2d(3, 4, 1, 4), nn.Conv2d(4, 4, 1, 2), nn.Conv2d(4, 4, 3, 1, 1)],
    "residual": lambda: [
        nn.Conv2d(3, 4, 3, 1, 1),
        Residual(),
        nn.MaxPool2d(3, 2, 1),
        Residual(2),
        Residual(),
    ],
    "reflected at the edge": lambda: [
        nn.Conv2d(3, 4, 3, 1, 1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, 2, 1, padding_mode="replicate"),
    ],
}


def network(body):
    torch.manual_seed(0)
    net = nn.Sequential(*BODIES[body](), nn.AdaptiveAvgPool2d((3, 5)), nn.Flatten(), nn.Linear(60, 5))
    return tiny_model(net.double(), size=(96, 128), labels=None)


@pytest.mark.parametrize("patch", [9, 16])
@pytest.mark.parametrize("body", BODIES)
def test_the_stops_are_right_without_a_check(monkeypatch, body, patch):
    monkeypatch.setattr("opsin.network.shortcuts.detour.PASTE", 0)  # as many stops as there may be
    model = network(body)
    image = images(1, 128)[..., :96, :]
    stops = _cheapest(model, image, ("output",), patch)
    assert len(stops) > 1
    corners = [(top, left) for top in (0, 7, 30, 53, 96 - patch) for left in (0, 11, 64, 128 - patch, 120)]
    covered = image.repeat(len(corners), 1, 1, 1)
    for one, (top, left) in zip(covered, corners, strict=True):
        one[:, top : top + patch, left : left + patch] = 0.9
    way = Detour(tuple(stops))
    found = way.run(model, covered, corners, patch, ("output",), model.run(image, way.layers))
    plain_way = model.run(covered, ("output",))
    torch.testing.assert_close(found["output"], plain_way["output"], atol=1e-12, rtol=1e-9)
    assert torch.equal(found["image"], covered)


def test_windows_are_not_larger_than_what_the_units_see():
    # a 3x3 convolution: 8 changed pixels change 10 units, which see 12
    reach = Reach(1, -1, 2)
    assert (reach.most(8), reach.window(reach.most(8))) == (10, 12)
    assert reach.changed(20, 8, 99) == slice(19, 29)
    # 2x2 pooling: 8 changed pixels change 5 units at most, which see 10 of them
    assert (Reach(2, 0, 2).most(8), Reach(2, 0, 2).window(5)) == (5, 12)
    assert Reach(4, -8, 12).since(Reach(2, -2, 4)) == Reach(2, -3, 5)


def test_what_a_stop_does_not_hold_alone_is_none():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = nn.Conv2d(3, 3, 3, 1, 1), nn.Conv2d(3, 3, 3, 1, 1)
            self.three = nn.Conv2d(3, 4, 3, 2, 1)

        def forward(self, x):
            first = self.one(x)
            return self.three(first + self.two(first)).mean((2, 3))

    stops = _cheapest(
        tiny_model(Around(), size=96, labels=None), images(1, 96, dtype=torch.float32), ("output",), 8
    )
    assert [stop.layer for stop in stops] == ["one", "three"]
