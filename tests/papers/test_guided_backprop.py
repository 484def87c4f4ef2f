import numpy as np
import pytest
import torch

import nets
import opsin
import reference

NET = nets.plain()
MODEL = nets.model(NET)
IMAGES = nets.images(2)


def by_hand(image, signal, start="output"):
    a = reference.forward(NET, reference.array(image))
    return reference.backward(
        NET, a, signal(a) if callable(signal) else signal, start=start, rule=reference.guided
    )


@pytest.mark.parametrize("target", [0, 3])
def test_equals_the_walk_by_hand_from_a_class(target):
    values = opsin.guided_backprop(MODEL, IMAGES, target=target).values
    for image, got in zip(IMAGES, values, strict=True):
        expected = by_hand(image, reference.one_hot(target))
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_differs_from_the_gradient_and_from_the_deconvnet():
    a = reference.forward(NET, reference.array(IMAGES[0]))
    others = [
        reference.backward(NET, a, reference.one_hot(0), rule=r)
        for r in (reference.plain_gradient, reference.deconvnet)
    ]
    got = opsin.guided_backprop(MODEL, IMAGES[:1], target=0).values[0].numpy()
    for other in others:
        assert np.abs(got - other).max() > 0.01 * np.abs(other).max()


@pytest.mark.parametrize("layer", ["relu1", "pool", "conv2", "relu2"])
def test_equals_the_walk_by_hand_from_a_unit_of_any_layer(layer):
    def signal(a):
        one = np.zeros_like(a[layer])
        one[2, 3, 4] = 1
        return one

    got = opsin.guided_backprop(MODEL, IMAGES[:1], target=f"{layer}:2@3,4").values[0]
    np.testing.assert_allclose(got, by_hand(IMAGES[0], signal, layer), rtol=1e-9, atol=1e-12)


def test_a_layer_below_every_rectifier_has_nothing_to_guide():
    with pytest.raises(opsin.NetworkError, match="met no rectifier"):
        opsin.guided_backprop(MODEL, IMAGES, target="conv1:0")


def test_a_channel_is_the_mean_of_its_units():
    def signal(a):
        mean = np.zeros_like(a["conv2"])
        mean[1] = 1 / 64
        return mean

    got = opsin.guided_backprop(MODEL, IMAGES[:1], target="conv2:1").values[0]
    np.testing.assert_allclose(got, by_hand(IMAGES[0], signal, "conv2"), rtol=1e-9, atol=1e-12)


def test_a_weighted_sum_starts_from_its_weights():
    weights = np.array([1.5, 0, -1, 0, 0])
    got = opsin.guided_backprop(MODEL, IMAGES[:1], target="1.5*0 - 2").values[0]
    np.testing.assert_allclose(got, by_hand(IMAGES[0], weights), rtol=1e-9, atol=1e-12)


def test_cuts_negative_signals_by_hand():
    # x -> relu -> two convolutions (+1 and -3) -> relu -> sum; both fire where x > 0 needs a positive input:
    # the plain gradient of S = relu(x) + relu(4 - 3 relu(x)) at x = 1 is 1 - 3 = -2, cut at the first relu.
    net = nets.chain(
        relu1=torch.nn.ReLU(),
        conv=nets.conv([[[[1.0]]], [[[-3.0]]]], [0.0, 4.0]),
        relu2=torch.nn.ReLU(),
        pool=torch.nn.AdaptiveAvgPool2d(1),
        flat=torch.nn.Flatten(),
        fc=nets.linear([[1.0, 1.0], [1.0, 0.0], [0.0, -1.0]]),
    )
    model = nets.model(net, mean=[0.0], std=[1.0], labels=None, size=8)
    image = torch.ones(1, 3, 8, 8, dtype=torch.float64)
    share = 3 * 64  # grey is the mean of three colours, the score the mean of 64 places
    assert np.allclose(opsin.saliency(model, image, target=0).extras["gradient"] * share, -2)
    assert np.allclose(opsin.guided_backprop(model, image, target=0).values * share, 0)
    assert np.allclose(opsin.guided_backprop(model, image, target=1).values * share, 1)
    assert np.allclose(opsin.guided_backprop(model, image, target=2).values * share, 0)  # cut at relu2
    assert np.allclose(opsin.saliency(model, image, target=2).extras["gradient"] * share, 3)


def test_the_record_counts_the_rectifiers():
    (said,) = opsin.guided_backprop(MODEL, IMAGES).record.notes
    assert said == "the guided rule acted on Relu ×2"
    (said,) = opsin.guided_backprop(MODEL, IMAGES, target="conv2:0").record.notes
    assert said == "the guided rule acted on Relu ×1"


def test_is_signed_at_the_images_resolution():
    result = opsin.guided_backprop(MODEL, IMAGES)
    assert result.values.shape == IMAGES.shape
    assert result.signed
    assert (result.values < 0).any()
    assert (result.values > 0).any()
