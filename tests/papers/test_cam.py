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


def by_hand(image, weights_of_classes):
    """M(i, j) = sum over k of w[c, k] A[k, i, j], in loops."""
    maps = reference.forward(NET, reference.array(image))["relu2"]
    w = weights_of_classes @ reference.array(NET.fc.weight)
    _, rows, columns = maps.shape
    return np.array(
        [[sum(w[k] * maps[k, i, j] for k in range(6)) for j in range(columns)] for i in range(rows)]
    )


@pytest.mark.parametrize("target", [0, 3])
def test_weighs_the_last_maps_by_the_weights_of_the_class(target):
    result = opsin.cam(MODEL, IMAGES, target=target)
    for image, got in zip(IMAGES, result.values[:, 0], strict=True):
        np.testing.assert_allclose(got, by_hand(image, reference.one_hot(target)), rtol=1e-9, atol=1e-12)
    assert result.signed


def test_its_mean_is_the_score_without_the_bias():
    values = opsin.cam(MODEL, IMAGES, target=2).values
    for image, got in zip(IMAGES, values, strict=True):
        score = reference.forward(NET, reference.array(image))["output"][2] - NET.fc.bias[2].item()
        assert float(got.mean()) == pytest.approx(score, rel=1e-9)


@pytest.mark.parametrize("target", [0, 2])
def test_is_the_number_of_positions_times_grad_cam_before_its_relu(target):
    cam = opsin.cam(MODEL, IMAGES, target=target).values
    grad_cam = opsin.grad_cam(MODEL, IMAGES, target=target, layer="relu2", relu=False).values
    torch.testing.assert_close(cam, 8 * 8 * grad_cam, rtol=1e-9, atol=1e-12)


def test_by_default_explains_the_predicted_class():
    values = opsin.cam(MODEL, IMAGES).values[:, 0]
    for image, got in zip(IMAGES, values, strict=True):
        chosen = reference.forward(NET, reference.array(image))["output"].argmax()
        np.testing.assert_allclose(got, by_hand(image, reference.one_hot(chosen)), rtol=1e-9, atol=1e-12)


def test_a_weighted_sum_of_classes_is_a_target():
    got = opsin.cam(MODEL, IMAGES[:1], target="2*0 - goldfish").values[0, 0]
    np.testing.assert_allclose(got, by_hand(IMAGES[0], np.array([2.0, 0, 0, -1, 0])), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("twin", nets.TWINS)
def test_finds_the_rectified_maps_however_the_rectifier_is_written(twin):
    expected = opsin.cam(MODEL, IMAGES, target=0).values
    torch.testing.assert_close(opsin.cam(nets.model(nets.TWINS[twin]()), IMAGES, target=0).values, expected)


def test_maps_that_lie_channels_last():
    net = nets.channels_last()
    values = opsin.cam(nets.model(net), IMAGES, target=1).values
    assert values.shape == (2, 1, 4, 4)
    run = nets.model(net).run(IMAGES, ("relu",))
    torch.testing.assert_close(values[:, 0], run["relu"] @ net.fc.weight[1].detach())


def test_one_by_hand():
    # two maps, x and 1 - x; the class weighs them 3 and -2: M = 3 x - 2 (1 - x) = 5 x - 2
    net = nets.chain(
        conv=nets.conv([[[[1.0]], [[0.0]], [[0.0]]], [[[-1.0]], [[0.0]], [[0.0]]]], [0.0, 1.0]),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        fc=nets.linear([[1.0, 0.0], [3.0, -2.0]], [0.5, 7.0]),
    )
    model = nets.model(net, mean=[0.0] * 3, std=[1.0] * 3, labels=None, size=8)
    image = nets.images(1, 8)
    torch.testing.assert_close(opsin.cam(model, image, target=1).values, 5 * image[:, :1] - 2)


@pytest.mark.parametrize(
    ("net", "end"), [(nets.viewing(), "relu"), (nets.vit(), "head"), (nets.chain(a=nn.Conv2d(3, 5, 3)), "a")]
)
def test_other_networks_get_an_error_that_says_what_they_end_in_and_points_to_grad_cam(net, end):
    with pytest.raises(opsin.NetworkError, match=rf"ends in .*{end} \(.*grad_cam"):
        opsin.cam(nets.model(net, labels=None), IMAGES, target=0)


@pytest.mark.parametrize(
    "end",
    [
        {"pool": nn.AdaptiveMaxPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(6, 5)},
        {
            "pool": nn.AdaptiveAvgPool2d(1),
            "flat": nn.Flatten(),
            "hidden": nn.Linear(6, 6),
            "fc": nn.Linear(6, 5),
        },
        {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "tanh": nn.Tanh(), "fc": nn.Linear(6, 5)},
        {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(6, 5), "tanh": nn.Tanh()},
    ],
    ids=["max pooling", "two linear layers", "an activation between", "an activation behind"],
)
def test_an_end_that_only_looks_alike_is_refused(end):
    net = nets.seeded(nets.Chain(conv=nn.Conv2d(3, 6, 3), **end))
    with pytest.raises(opsin.NetworkError, match="grad_cam"):
        opsin.cam(nets.model(net), IMAGES)


def test_a_unit_is_no_class():
    with pytest.raises(opsin.InputError, match="conv2:1"):
        opsin.cam(MODEL, IMAGES, target="conv2:1")
