"""The receptive field of every unit against the support of the gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nets
import opsin
from opsin.network.regions import Region, fields

INPUTS = 12  # random images, so that each maximum of a pooling window is somewhere seen


class Residual(nn.Module):
    """A strided block beside a shortcut of 1 x 1, added."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, padding=1)
        self.a = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.short = nn.Conv2d(3, 4, 1, stride=2)
        self.sum = nn.ReLU()
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.sum(self.b(self.a(x).relu()) + self.short(x)).mean((2, 3)))


class Branches(nn.Module):
    """Windows of several shapes side by side, one of them far from the middle."""

    def __init__(self):
        super().__init__()
        self.tall = nn.Conv2d(3, 2, (5, 1), padding=(2, 0))
        self.wide = nn.Conv2d(3, 2, (1, 3), padding=(0, 3), dilation=(1, 3))
        self.joined = nn.Identity()
        self.down = nn.Conv2d(4, 3, (2, 3), stride=(1, 2), padding=(0, 1))
        self.head = nn.Linear(3, 5)

    def forward(self, x):
        x = self.joined(torch.cat([self.tall(x), self.wide(x)], 1))
        return self.head(self.down(x).mean((2, 3)))


class Squeezed(nn.Module):
    """A gate of means over all positions, behind which everything is seen."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.gate = nn.Linear(4, 4)
        self.gated = nn.Identity()
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.conv(x)
        x = self.gated(x * self.gate(x.mean((2, 3))).sigmoid()[..., None, None])
        return self.head(x.mean((2, 3)))


class Tokens(nn.Module):
    """Patches as tokens behind a class token, which each see themselves alone."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 4, 6, stride=4, padding=1)
        self.tokens = nn.Identity()
        self.mlp = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)  # (n, c, h, w) -> (n, h*w, c)
        x = self.tokens(torch.cat([x.new_ones(len(x), 1, 4), x], 1))
        return self.head(self.mlp(x).mean(1))


class Spelled(nn.Module):
    """Convolutions called by the function, their settings by name, one of them a fixed blur."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.blur = nn.Parameter(torch.ones(4, 1, 3, 3))
        self.kernel = nn.Parameter(torch.ones(2, 4, 2, 2))
        self.blurred, self.last = nn.Identity(), nn.Identity()
        self.head = nn.Linear(2, 5)

    def forward(self, x):
        x = self.blurred(F.conv2d(self.conv(x), self.blur, stride=2, padding=1, groups=4))
        x = self.last(F.conv2d(input=x, weight=self.kernel, dilation=2, padding="same"))
        return self.head(x.mean((2, 3)))


def chain(*modules, channels):
    """The modules one after another, then means over positions and a linear layer."""
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


NETS = {
    "strides and paddings": lambda: chain(
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 4, 1, 2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, 2),
        channels=4,
    ),
    "gaps between windows": lambda: chain(nn.Conv2d(3, 4, 2, 5), nn.Conv2d(4, 4, 1, 2), channels=4),
    "dilation": lambda: chain(
        nn.Conv2d(3, 4, 3, dilation=2, padding=2), nn.ReLU(), nn.Conv2d(4, 4, 3, dilation=3), channels=4
    ),
    "pooling, rounded up": lambda: chain(
        nn.Conv2d(3, 4, 2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d(2, 2, padding=1),
        nn.AvgPool2d(2, 1),
        channels=4,
    ),
    "pooling to a size": lambda: chain(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(4), nn.Conv2d(4, 4, 2), channels=4
    ),
    "depthwise": lambda: chain(
        nn.Conv2d(3, 6, 1),
        nn.Conv2d(6, 6, 5, 2, 2, groups=6),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        nn.Conv2d(6, 4, 1),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        channels=4,
    ),
    "round about": lambda: chain(
        nn.Conv2d(3, 4, 3, 2, 1, padding_mode="circular"), nn.Conv2d(4, 4, 3), channels=4
    ),
    "mirrored": lambda: chain(
        nn.Conv2d(3, 4, 5, 2, 2, padding_mode="reflect"), nn.Conv2d(4, 4, 3), channels=4
    ),
    "down and up": lambda: chain(
        nn.Conv2d(3, 4, 3, 4, 1), nn.ConvTranspose2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, padding=1), channels=4
    ),
    "down and up by repeating": lambda: chain(
        nn.AvgPool2d(4), nn.Upsample(scale_factor=2), nn.Conv2d(3, 4, 2), channels=4
    ),
    "residual": Residual,
    "branches": Branches,
    "squeeze and excite": Squeezed,
    "tokens": Tokens,
    "by function": Spelled,
    "channels last": nets.ChannelsLast,
    "attention": lambda: nets.Transformer(depth=1),
    "plain": nets.Plain,
}


def positive(net, seed=0):
    """All weights positive and small, so that nothing cancels, no rectifier is closed and no gate is full."""
    generator = torch.Generator().manual_seed(seed)
    net.double().eval()
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "qkv" not in name:
                weight.copy_(0.02 + 0.1 * torch.rand(weight.shape, generator=generator))
    return net


def supports(model, layer):
    """Of each unit the rows and columns of pixels that it has a gradient to, by unit."""
    images = nets.images(INPUTS, *model.size)
    run = model.run(images, (layer,), start="image")
    maps = run.maps(layer)  # (n, c, h, w)
    drawn = torch.Generator().manual_seed(1)
    weight = 0.5 + torch.rand(maps.shape[1], 1, 1, generator=drawn, dtype=torch.float64)
    weighed = (maps * weight).sum((0, 1))
    found = {}
    for row in range(maps.shape[2]):
        for column in range(maps.shape[3]):
            (gradient,) = torch.autograd.grad(weighed[row, column], run["image"], retain_graph=True)
            seen = (gradient != 0).any(0).any(0)
            rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
            found[row, column] = Region(
                int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
            )
    return found


@pytest.mark.parametrize("name", NETS)
def test_the_fields_are_what_the_gradient_reaches(name):
    model = nets.model(positive(NETS[name]()), size=(12, 8), mean=[0.0] * 3, std=[1.0] * 3)
    layers = [call.name for call in model.calls.values() if call.extent and call.extent != (1, 1)]
    assert layers
    for layer in layers:
        seen, expected = fields(model, layer), supports(model, layer)
        assert (len(seen.rows), len(seen.columns)) == model.call(layer).extent
        assert {unit: seen.at(*unit) for unit in expected} == expected, layer


class Shifted(nn.Module):
    """A tall window of the pixels to the left, where there are any, beside the pixel itself."""

    def __init__(self):
        super().__init__()
        self.tall = nn.Conv2d(3, 4, (5, 1), padding=(2, 0))
        self.own = nn.Conv2d(3, 4, 1)
        self.sum, self.head = nn.Identity(), nn.Linear(4, 5)

    def forward(self, x):
        x = self.sum(F.pad(self.tall(x), (3, 0))[..., :-3] + self.own(x))
        return self.head(x.mean((2, 3)))


def test_where_a_border_unit_sees_less_its_field_is_that_of_its_row_and_column():
    model = nets.model(positive(Shifted()), size=(16, 12))
    seen, expected = fields(model, "sum"), supports(model, "sum")
    for (row, column), region in expected.items():
        field = seen.at(row, column)
        if column >= 3:
            assert field == region
        assert (field.left, field.right) == (region.left, region.right)
        assert field.top <= region.top
        assert field.bottom >= region.bottom
    assert seen.at(8, 0) != expected[8, 0]


def test_fields_worked_out_by_hand():
    seen = fields(nets.model(nets.plain()), "relu2")  # of 3 x 3, then pooled by 2, of 3 x 3
    assert seen.rows == seen.columns == tuple((max(0, 2 * y - 3), min(16, 2 * y + 5)) for y in range(8))
    assert seen.at(0, 3) == Region(0, 3, 5, 11)


def test_behind_a_gate_of_all_positions_everything_is_seen():
    model = nets.model(positive(Squeezed()))
    assert set(fields(model, "gated").rows) == {(0, 16)}
    assert set(fields(model, "conv").rows) != {(0, 16)}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_fields_do_not_depend_on_weights_or_precision(precision):
    expected = fields(nets.model(nets.plain()), "relu2")
    for seed in range(3):
        assert fields(nets.model(nets.plain(seed=seed, dtype=precision)), "relu2") == expected
    zero = nets.plain()
    zero.conv1.weight.data.zero_()
    assert fields(nets.model(zero), "relu2") == expected


class Chosen(nn.Module):
    """A rectifier that takes NaN for zero, beside a shortcut that sees less."""

    def __init__(self, choose=torch.where):
        super().__init__()
        self.conv, self.short = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.choose = choose
        self.act, self.head = nn.Identity(), nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.act(self.choose(self.conv(x)) + self.short(x)).mean((2, 3)))


def picked(x):
    """What is a number, zero elsewhere, as the experiment does not know it."""
    known = ~x.isnan()
    return torch.zeros_like(x).masked_scatter(known, x[known])


class Picking(nn.Module):
    """That as a layer."""

    def forward(self, x):
        return picked(x)


@pytest.mark.parametrize(
    "choose",
    [
        lambda x: torch.where(x > 0, x, 0),
        lambda x: x.where(x > 0, torch.zeros_like(x)),
        lambda x: torch.where(condition=x > 0, input=x, other=0.0),
        torch.nan_to_num,
        lambda x: x.fmax(torch.zeros_like(x)),
    ],
)
def test_what_is_chosen_in_place_of_nan_is_seen(choose):
    model = nets.model(positive(Chosen(choose)), size=(12, 8), mean=[0.0] * 3, std=[1.0] * 3)
    seen = fields(model, "act")
    assert {unit: seen.at(*unit) for unit in supports(model, "act")} == supports(model, "act")
    assert seen.at(5, 5) == Region(4, 4, 7, 7)


@pytest.mark.parametrize(
    ("net", "layer"),
    [(Chosen(picked), "act"), (chain(nn.Conv2d(3, 4, 3), Picking(), channels=4), "1")],
)
def test_where_the_experiment_sees_too_little_the_whole_image_is_given(net, layer):
    model = nets.model(positive(net), size=(24, 16))
    seen = fields(model, layer)
    assert set(seen.rows) == {(0, 24)}
    assert set(seen.columns) == {(0, 16)}


@pytest.mark.parametrize("layer", ["mean", "flat", "fc", "output"])
def test_a_layer_without_places_has_no_fields(layer):
    model = nets.model(nets.plain())
    if layer == "mean":  # a map of one place
        assert fields(model, layer).at(0, 0) == Region(0, 0, 16, 16)
        return
    with pytest.raises(opsin.NetworkError, match=f"layer '{layer}' has no spatial extent"):
        fields(model, layer)


def test_an_unknown_layer_is_told():
    with pytest.raises(opsin.InputError, match="unknown layer 'relu3'; nearest: relu"):
        fields(nets.model(nets.plain()), "relu3")
