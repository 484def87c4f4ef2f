import numpy as np
import pytest
import torch
from torch import nn

import nets
import opsin
import reference

NET = nets.plain()
MODEL = nets.model(NET)
IMAGES = nets.images(2)


def project(image, layer, choose):
    """The layer's activations with all but one set to zero, carried down by the transposed network."""
    a = reference.forward(NET, reference.array(image))
    kept = np.zeros_like(a[layer])
    place = choose(a[layer])
    kept[place] = np.maximum(a[layer][place], 0)
    return reference.backward(NET, a, kept, start=layer, rule=reference.deconvnet)


def strongest(k):
    return lambda a: (k, *np.unravel_index(a[k].argmax(), a[k].shape))


@pytest.mark.parametrize("layer", ["relu1", "pool", "conv2", "relu2"])
@pytest.mark.parametrize("channel", [0, 2])
def test_of_a_channel_the_strongest_unit_of_each_image_is_projected(layer, channel):
    values = opsin.deconvnet(MODEL, IMAGES, target=f"{layer}:{channel}").values
    for image, got in zip(IMAGES, values, strict=True):
        expected = project(image, layer, strongest(channel))
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_a_unit_is_projected_from_where_it_is():
    place = strongest(1)(reference.forward(NET, reference.array(IMAGES[0]))["relu2"])
    k, row, column = (int(index) for index in place)
    got = opsin.deconvnet(MODEL, IMAGES[:1], target=f"relu2:{k}@{row},{column}").values[0]
    np.testing.assert_allclose(got, project(IMAGES[0], "relu2", lambda a: place), rtol=1e-9, atol=1e-12)


def test_of_a_class_the_score_is_projected():
    scores = reference.forward(NET, reference.array(IMAGES[0]))["output"]
    best = int(scores.argmax())
    assert scores[best] > 0
    got = opsin.deconvnet(MODEL, IMAGES[:1], target=best).values[0]
    np.testing.assert_allclose(got, project(IMAGES[0], "output", lambda a: best), rtol=1e-9, atol=1e-12)
    by_default = opsin.deconvnet(MODEL, IMAGES[:1]).values[0]
    assert torch.equal(got, by_default)


@pytest.mark.parametrize("layer", ["conv2", "relu2"])
def test_a_unit_that_does_not_fire_projects_to_nothing_and_the_record_says_so(layer):
    a = reference.forward(NET, reference.array(IMAGES[0]))
    dead = np.argwhere(a["conv2"] < 0)[0]
    result = opsin.deconvnet(MODEL, IMAGES[:1], target=f"{layer}:{dead[0]}@{dead[1]},{dead[2]}")
    assert not result.values.any()
    assert any("image 0: the unit's value is not positive" in said for said in result.record.notes)


def test_differs_from_the_gradient_and_from_guided_backprop():
    got = opsin.deconvnet(MODEL, IMAGES[:1], target="relu2:0").values[0].numpy()
    a = reference.forward(NET, reference.array(IMAGES[0]))
    kept = np.zeros_like(a["relu2"])
    place = strongest(0)(a["relu2"])
    kept[place] = a["relu2"][place]
    for rule in (reference.plain_gradient, reference.guided):
        other = reference.backward(NET, a, kept, start="relu2", rule=rule)
        assert np.abs(got - other).max() > 0.01 * np.abs(other).max()


def test_unpools_through_the_switches_by_hand():
    # one rectifier behind a pooling of 2: the only bright pixel of each window gets the signal of the window
    net = nets.chain(
        conv=nets.conv([[[[1.0]], [[0.0]], [[0.0]]]]), relu=nn.ReLU(), pool=nn.MaxPool2d(2), flat=nn.Flatten()
    )
    model = nets.model(net, mean=[0.0] * 3, std=[1.0] * 3, labels=None, size=8)
    image = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    image[0, 0, 3, 5] = 0.75  # in window (1, 2)
    image[0, 0, 6, 1] = 0.5  # in window (3, 0)
    expected = torch.zeros_like(image)
    expected[0, 0, 3, 5] = 0.75
    assert torch.equal(opsin.deconvnet(model, image, target="pool:0").values, expected)
    expected = torch.zeros_like(image)
    expected[0, 0, 6, 1] = 0.5
    assert torch.equal(opsin.deconvnet(model, image, target="pool:0@3,0").values, expected)


def test_a_target_of_several_channels_or_layers_is_refused():
    with pytest.raises(opsin.InputError, match="a unit or a channel"):
        opsin.deconvnet(MODEL, IMAGES, target="conv2:0 - conv2:1")
    with pytest.raises(opsin.InputError, match="one unit of one layer"):
        opsin.deconvnet(MODEL, IMAGES, target="conv2:0 + relu2:1")


def test_a_tie_between_classes_does_not_make_the_default_target_several():
    net = nets.plain()
    with torch.no_grad():
        net.fc.weight[1] = net.fc.weight[0]
        net.fc.bias[:2] = 100
    values = opsin.deconvnet(nets.model(net), IMAGES[:1]).values
    assert torch.equal(values, opsin.deconvnet(nets.model(net), IMAGES[:1], target=0).values)


@pytest.mark.parametrize("target", ["3*conv2:0@1,1", "-1*conv2:0@1,1", "conv2:0@1,1 + conv2:0@2,2"])
def test_a_scaled_unit_or_two_units_are_refused(target):
    with pytest.raises(opsin.InputError, match="a unit or a channel"):
        opsin.deconvnet(nets.model(nets.plain()), nets.images(1), target=target)
