"""How layers' outputs lie is decided by evidence, whichever numbers their shapes happen to have."""

import pytest
import timm
import torch
from torch import Tensor, nn

import nets
import opsin
from opsin.network.layouts import other_size, readings

SIZE = 16
SIDE = SIZE // 4  # positions behind patches of 4 x 4, and as many channels: nothing tells but evidence


class Patches(nn.Module):
    """Patches as positions with `SIDE` channels, laid out by `lay`; of one image size where it is `fixed`."""

    def __init__(self, lay: nn.Module, *, fixed: bool = False) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, SIDE, 4, stride=4)
        self.lay = lay
        self.fixed = fixed
        self.norm = nn.LayerNorm(SIDE)
        self.fc = nn.Linear(SIDE, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.fixed and x.shape[-2:] != (SIZE, SIZE):
            raise ValueError(f"made for {SIZE}, not {tuple(x.shape)}")
        x = self.embed(x)
        self.lay(x)
        return self.fc(self.norm(x.flatten(2).transpose(1, 2)).mean(1))  # (n, c, h, w) -> (n, h*w, c)


class Laid(nn.Module):
    """A module of no known kind that gives what a function makes of maps."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def mixed(x: Tensor) -> Tensor:
    """Every position of every channel depends on the whole image."""
    return x + x.mean((1, 2, 3), keepdim=True)


def tokens(prefix: int):
    def function(x: Tensor) -> Tensor:
        patches = x.flatten(2).transpose(1, 2)  # (n, c, h, w) -> (n, h*w, c)
        return torch.cat([patches.new_ones(len(x), prefix, SIDE), patches], 1)

    return function


def attention(x: Tensor) -> Tensor:
    """The weights of an attention between positions."""
    patches = x.flatten(2)  # (n, c, h, w) -> (n, c, h*w)
    weights = patches.transpose(1, 2) @ patches
    return weights[:, None].softmax(-1)  # (n, heads, h*w, h*w)


LAID = {
    "maps": (lambda x: x * 2, "maps"),
    "maps_last": (lambda x: x.permute(0, 2, 3, 1) * 2, "maps_last"),
    "weights of an attention": (attention, "other"),
    "positions in the batch": (lambda x: x.permute(0, 2, 3, 1).flatten(0, 2), "other"),
    "one row whatever the batch": (lambda x: x.sum((0, 2, 3))[None], "other"),
    "pooled": (lambda x: x.mean((2, 3)), "vector"),
}


def model(function, *, fixed: bool, **settings: object) -> opsin.Model:
    net = nets.seeded(Patches(Laid(function), fixed=fixed))
    return nets.model(net, size=SIZE, **settings)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("kind", LAID)
def test_the_layout_is_found_although_positions_and_channels_are_as_many(kind, fixed):
    function, layout = LAID[kind]
    assert model(function, fixed=fixed).call("lay").layout == layout


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("prefix", range(9))
def test_tokens_before_the_positions_are_counted(prefix, fixed):
    call = model(tokens(prefix), fixed=fixed).call("lay")
    assert (call.layout, call.extent, call.prefix) == ("tokens", (SIDE, SIDE), prefix)


def test_some_prefixes_fit_in_more_than_one_way():
    assert len(readings((1, 30, 8), (80, 80))) > 1  # 5 x 6, and 5 x 5 behind five
    assert len(readings((1, 96, 96, 96), (384, 384))) == 2


@pytest.mark.parametrize("layout", ["maps", "maps_last"])
def test_where_nothing_decides_the_layer_is_refused_until_it_is_said(layout):
    net = model(mixed, fixed=True)
    call = net.call("lay")
    assert call.layout == "other"
    with pytest.raises(
        opsin.NetworkError, match=r"layout may be 'maps' or 'maps_last'.*layouts=\{'lay': 'maps'\}"
    ):
        net.run(nets.images(1), ("lay",)).maps("lay")
    said = model(mixed, fixed=True, layouts={"lay": layout})
    assert said.call("lay").layout == layout
    run = said.run(nets.images(1), ("lay",))
    expected = run["lay"] if layout == "maps" else run["lay"].permute(0, 3, 1, 2)
    assert torch.equal(run.maps("lay"), expected)


@pytest.mark.parametrize(
    ("layouts", "said"),
    [
        ({"lay": "tokens"}, "'lay' cannot have the layout 'tokens': its shape allows maps, maps_last, other"),
        ({"embeds": "maps"}, "unknown layer 'embeds'; nearest: embed"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(layouts, said):
    with pytest.raises(opsin.InputError, match=said):
        model(mixed, fixed=True, layouts=layouts).calls  # noqa: B018


def test_a_layer_that_lies_otherwise_may_be_said_to():
    call = model(LAID["maps"][0], fixed=False, layouts={"lay": "other"}).call("lay")
    assert (call.layout, call.extent) == ("other", None)


@pytest.mark.parametrize("size", [(16, 16), (40, 40), (224, 224), (299, 299), (224, 160), (7, 5), (1, 1)])
def test_the_second_trace_is_of_another_aspect(size):
    height, width = other_size(size)
    assert height == size[0]
    assert width >= 1
    assert size == (1, 1) or (height * size[1] != width * size[0] and height != width)


def test_a_transformer_of_windows_has_one_layout_throughout():
    torch.manual_seed(0)
    net = timm.create_model("swinv2_cr_tiny_384")  # its first blocks give (1, 96, 96, 96)
    calls = opsin.Model(net, mean=[0.5] * 3, std=[0.5] * 3, size=384).calls
    blocks = [call for call in calls.values() if "Block" in call.kind]
    assert {block.layout for block in blocks} == {"maps_last"}
    assert any(len(set(block.shape[1:])) == 1 for block in blocks)


@pytest.mark.parametrize("name", ["convnext_atto", "levit_128s"])
def test_norms_of_maps_and_tokens_without_company_are_read(name):
    calls = opsin.Model(timm.create_model(name), mean=[0.5] * 3, std=[0.5] * 3, size=224).calls
    assert all(call.layout == "maps" for call in calls.values() if call.kind == "LayerNorm2d")
    assert not any(call.undecided for call in calls.values())
