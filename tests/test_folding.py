"""Batch normalisation folded into convolutions gives what the network gives."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import opsin
from nets import SIZE, images, model, seeded
from opsin.network.shortcuts.folding import Folded


class Block(nn.Module):
    """Convolution and normalisation, and whatever else reads what the convolution gives."""

    def __init__(self, join=None, *, bias=False, groups=1, **settings):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, bias=bias)
        self.norm = nn.BatchNorm2d(8, **settings)
        self.second = nn.Conv2d(8, 4, 3, stride=2, groups=groups)
        self.last = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)
        self.join = join or (lambda own, normed: normed)

    def forward(self, x):
        own = self.first(x)
        x = self.join(own, self.norm(own)).relu()
        return self.fc(self.last(self.second(x)).relu().mean((2, 3)))


class Twice(nn.Module):
    """One convolution, called with two normalisations."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])
        self.fc = nn.Linear(3, 5)

    def forward(self, x):
        for norm in self.norms:
            x = norm(self.conv(x)).relu()
        return self.fc(x.mean((2, 3)))


class Forked(Block):
    """Bright images are not normalised."""

    def forward(self, x):
        own = self.first(x)
        own = own if x.mean() > 2 else self.norm(own)
        return self.fc(self.last(self.second(own.relu())).relu().mean((2, 3)))


def equal(one, other):
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


NETS = {
    "plain": (Block(), 2),
    "with bias": (Block(bias=True), 2),
    "in groups": (Block(groups=4), 2),
    "no scale of its own": (Block(affine=False), 2),
    "statistics of the batch": (Block(track_running_stats=False), 1),
    "a skip around the norm": (Block(lambda own, normed: own + normed), 1),
    "a number read from the convolution": (Block(lambda own, normed: normed * own.abs().max().item()), 1),
    "a shape read from the convolution": (Block(lambda own, normed: normed / own.shape[1]), 2),
    "the convolution changed in place": (Block(lambda own, normed: normed + own.neg_()), 1),
    "one convolution called twice": (Twice(), 0),
}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("weight", ["first.weight", "norm.running_mean", "second.weight", "fc.weight"])
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_numbers_that_are_none_stay_what_they_are(weight, value, share):
    net = seeded(Block())
    values = net.state_dict()[weight].view(-1)
    values[: max(1, int(share * len(values)))] = value
    whole, x = model(net), images(2)
    wanted = ("last", "output")
    found, expected = Folded(whole, wanted).run(x), whole.run(x, wanted)
    for name in wanted:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("name", NETS)
def test_folded_is_equal(name):
    net, folds = NETS[name]
    whole = model(seeded(net))
    photos = images(3)
    fast = Folded(whole, ("output",))
    assert len(fast._mode.kernels) == folds
    equal(fast.run(photos)["output"], whole.run(photos)["output"])


@pytest.mark.parametrize("layer", ["first", "norm", "second", "last", "fc"])
def test_layers_that_are_wanted_are_themselves(layer):
    whole = model(seeded(Block()))
    fast = Folded(whole, (layer, "output"))
    assert len(fast._mode.kernels) == (1 if layer in ("first", "second") else 2)
    photos = images(3)
    for name in (layer, "output"):
        equal(fast.run(photos)[name], whole.run(photos, (layer, "output"))[name])


def test_another_way_through_the_network_is_seen():
    whole = model(seeded(Forked()))
    fast = Folded(whole, ("output",))
    assert len(fast._mode.kernels) == 2
    for photos in (images(2), images(2) * 0 + 1, images(2)):
        equal(fast.run(photos)["output"], whole.run(photos)["output"])
    with torch.no_grad():
        assert (images(1) * 0 + 1 - torch.tensor(whole.mean).view(3, 1, 1)).mean() / 0.2 > 2


def test_what_a_mode_cannot_follow_is_run_as_it_is():
    class Functional(nn.Module):
        """A normalisation that reads its input once more than torch is told."""

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3)
            self.norm = nn.BatchNorm2d(5)

        def forward(self, x):
            own = self.conv(x)
            size = float(own.detach().numpy().std())
            return self.norm(own).mean((2, 3)) * size

    whole = model(seeded(Functional()))
    photos = images(3)
    equal(Folded(whole, ("output",)).run(photos)["output"], whole.run(photos)["output"])


def test_half_precision_is_left_alone():
    whole = model(seeded(Block(), dtype=torch.bfloat16))
    assert not Folded(whole, ("output",))._mode.kernels


def test_the_network_that_comes_with_the_install():
    whole = opsin.load()
    photos = images(2, 224, dtype=torch.float32)
    layers = (whole.default_layer, "output")
    fast = Folded(whole, layers)
    assert len(fast._mode.kernels) == sum(isinstance(m, nn.BatchNorm2d) for m in whole.network.modules())
    for layer in layers:
        one, other = fast.run(photos)[layer], whole.run(photos, layers)[layer]
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def test_the_formula():
    conv, norm = nn.Conv2d(3, 5, 3).double(), nn.BatchNorm2d(5).double()
    whole = model(seeded(nn.Sequential(conv, norm)))
    ((mean, kernel, bias),) = Folded(whole, ("output",))._mode.kernels.values()
    x = images(1)
    assert mean is norm.running_mean
    for channel in range(5):
        by_hand = F.conv2d(x, conv.weight[channel : channel + 1], conv.bias[channel : channel + 1])
        by_hand = (by_hand - norm.running_mean[channel]) / (norm.running_var[channel] + norm.eps) ** 0.5
        by_hand = by_hand * norm.weight[channel] + norm.bias[channel]
        folded = F.conv2d(x, kernel[channel : channel + 1], bias[channel : channel + 1])
        torch.testing.assert_close(folded, by_hand)
    assert x.shape[-1] == SIZE
