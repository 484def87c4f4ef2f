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
    predicted = opsin.deconvnet(MODEL, IMAGES[:1], target="predicted class").values[0]
    assert torch.equal(got, predicted)


def test_by_default_the_strongest_unit_of_the_default_layer_is_projected():
    assert MODEL.default_layer == "relu2"
    result = opsin.deconvnet(MODEL, IMAGES)
    assert result.record.arguments["target"] == "strongest(relu2)"
    units = []
    for index, image in enumerate(IMAGES):
        a = reference.forward(NET, reference.array(image))["relu2"]
        unit = tuple(int(i) for i in np.unravel_index(a.argmax(), a.shape))
        expected = project(image, "relu2", strongest(unit[0]))
        np.testing.assert_allclose(result.values[index], expected, rtol=1e-9, atol=1e-12)
        assert result.extras["unit"][index].tolist() == list(unit)
        assert f"image {index}: the unit is relu2:{unit[0]}@{unit[1]},{unit[2]}" in result.record.notes
        units.append(unit)
    assert units[0] != units[1]


@pytest.mark.parametrize("target", ["strongest unit", "strongest(conv2)", None])
def test_the_strongest_unit_may_be_named(target):
    expected = "strongest(conv2)" if target == "strongest(conv2)" else "strongest(relu2)"
    assert opsin.deconvnet(MODEL, IMAGES, target=target).record.arguments["target"] == expected


def seen(model, layer, row, column, size):
    """The pixels that change a unit, found one by one: the box around them."""
    image = torch.zeros(1, 3, *size, dtype=torch.float64)
    touched = []
    for y in range(size[0]):
        for x in range(size[1]):
            spoiled = image.clone()
            spoiled[:, :, y, x] = torch.nan
            if model.run(spoiled, (layer,))[layer][0, :, row, column].isnan().any():
                touched.append((y, x))
    ys, xs = zip(*touched, strict=True)
    return [min(ys), min(xs), max(ys) + 1, max(xs) + 1]


@pytest.mark.parametrize("size", [(16, 16), (13, 20)], ids=["of the model's size", "of another"])
@pytest.mark.parametrize("layer", ["relu1", "relu2"])
def test_the_box_is_the_patch_that_the_unit_sees(layer, size):
    images = nets.images(2, *size)
    result = opsin.deconvnet(MODEL, images, target=f"strongest({layer})")
    for index in range(2):
        channel, row, column = result.extras["unit"][index].tolist()
        top, left, bottom, right = result.extras["box"][index].tolist()
        assert [top, left, bottom, right] == seen(MODEL, layer, row, column, size)
        inside = result.values[index].clone()
        inside[:, top:bottom, left:right] = 0
        assert not inside.any()
        assert (bottom - top) * (right - left) < size[0] * size[1]
        one = opsin.deconvnet(MODEL, images[index : index + 1], target=f"{layer}:{channel}@{row},{column}")
        assert torch.equal(one.values[0], result.values[index])
        assert torch.equal(one.extras["box"][0], result.extras["box"][index])


def test_a_class_sees_the_whole_photo():
    result = opsin.deconvnet(MODEL, IMAGES[:1], target=3)
    assert result.extras["unit"].tolist() == [[3, 0, 0]]
    assert result.extras["box"].tolist() == [[0, 0, 16, 16]]
    assert "image 0: the unit is output:3" in result.record.notes


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


def test_a_tie_between_classes_does_not_make_the_predicted_class_several():
    net = nets.plain()
    with torch.no_grad():
        net.fc.weight[1] = net.fc.weight[0]
        net.fc.bias[:2] = 100
    values = opsin.deconvnet(nets.model(net), IMAGES[:1], target="predicted class").values
    assert torch.equal(values, opsin.deconvnet(nets.model(net), IMAGES[:1], target=0).values)


@pytest.mark.parametrize("target", ["3*conv2:0@1,1", "-1*conv2:0@1,1", "conv2:0@1,1 + conv2:0@2,2"])
def test_a_scaled_unit_or_two_units_are_refused(target):
    with pytest.raises(opsin.InputError, match="a unit or a channel"):
        opsin.deconvnet(nets.model(nets.plain()), nets.images(1), target=target)
