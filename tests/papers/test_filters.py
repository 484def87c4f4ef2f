import numpy as np
import pytest
import torch
from torch import nn

import nets
import opsin

NET = nets.plain()
MODEL = nets.model(NET)


def test_by_default_shows_the_first_layer_in_colour():
    (panel,) = opsin.filters(MODEL).panels
    assert panel.group == "conv1"
    assert torch.equal(panel.values, NET.conv1.weight.detach().to(panel.values.dtype))
    assert panel.values.shape == (4, 3, 3, 3)
    assert "3×3×3" in panel.caption


def test_a_deeper_layer_gives_a_grid_a_filter_with_a_tile_an_input():
    panels = opsin.filters(MODEL, layer="conv2").panels
    assert len(panels) == 6
    for index, panel in enumerate(panels):
        assert panel.values.shape == (4, 1, 3, 3)
        assert torch.equal(panel.values[:, 0], NET.conv2.weight[index].detach().to(panel.values.dtype))
        assert str(index) in panel.title
        assert "4×3×3" in panel.caption


def test_count_limits_the_filters():
    assert len(opsin.filters(MODEL, layer="conv2", count=2).panels) == 2
    assert len(opsin.filters(MODEL, layer="conv2", count=100).panels) == 6
    (panel,) = opsin.filters(MODEL, count=3).panels
    assert len(panel.values) == 3
    assert "3 of 4" in panel.caption


def test_zero_is_drawn_neutral_and_signs_on_either_side_of_it():
    net = nets.chain(
        colour=nets.conv([[[[0.0, 1.0]], [[0.0, 0.0]], [[0.0, -1.0]]]]),
        deeper=nets.conv([[[[0.0, 1.0]]], [[[0.0, -0.5]]]]),
    )
    model = nets.model(net, labels=None)
    ((_, picture),) = opsin.filters(model).pictures()
    middle, peak = shades(picture)
    assert max(abs(int(c) - 128) for c in middle) <= 1  # grey
    assert peak[0] > 250
    assert peak[2] < 5
    positive, negative = (shades(picture) for _, picture in opsin.filters(model, layer="deeper").pictures())
    assert min(positive[0]) > 240  # white
    assert positive[1][0] > positive[1][2]  # red
    assert negative[1][0] < negative[1][2]  # blue
    assert np.array_equal(positive[0], negative[0])


def shades(picture):
    """The colours of a tile's two weights: what lies a quarter from either end."""
    row = np.asarray(picture)[picture.height // 2]
    return row[picture.width // 4], row[-picture.width // 4]


def test_a_grey_first_layer_is_a_grid_a_filter():
    panels = opsin.filters(nets.grey_model()).panels
    assert [tuple(p.values.shape) for p in panels] == [(1, 1, 3, 3)] * 4


def test_a_layer_without_convolution_weights_is_refused_and_those_with_are_named():
    with pytest.raises(opsin.NetworkError, match=r"'fc' \(Linear\).*conv1, conv2"):
        opsin.filters(MODEL, layer="fc")
    with pytest.raises(opsin.InputError, match=r"'conv3'.*conv"):
        opsin.filters(MODEL, layer="conv3")
    net = nets.chain(flat=nn.Flatten(), fc=nn.Linear(3 * 256, 5))
    with pytest.raises(opsin.NetworkError, match="no layer with convolution weights"):
        opsin.filters(nets.model(net))
