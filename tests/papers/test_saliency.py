import numpy as np
import pytest

import nets
import opsin
import reference

NET = nets.plain()
MODEL = nets.model(NET)
IMAGES = nets.images(2)


def gradient(image, signal, start="output"):
    a = reference.forward(NET, reference.array(image))
    return reference.backward(NET, a, signal(a) if callable(signal) else signal, start=start)


@pytest.mark.parametrize("target", [0, 4])
def test_is_the_largest_gradient_of_the_score_before_the_softmax_over_colours(target):
    result = opsin.saliency(MODEL, IMAGES, target=target)
    for index, image in enumerate(IMAGES):
        expected = gradient(image, reference.one_hot(target))
        np.testing.assert_allclose(result.extras["gradient"][index], expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(result.values[index, 0], np.abs(expected).max(0), rtol=1e-9, atol=1e-12)
    assert not result.signed


def test_the_gradient_is_what_finite_differences_give():
    # the network is linear between its kinks, so that a small enough step has no error but rounding
    found = opsin.saliency(MODEL, IMAGES[:1], target=1).extras["gradient"][0].numpy()
    image, step = reference.array(IMAGES[0]), 1e-7
    for place in [(0, 3, 4), (1, 8, 8), (2, 15, 0)]:
        moved = image.copy()
        moved[place] += step
        rise = reference.forward(NET, moved)["output"][1] - reference.forward(NET, image)["output"][1]
        assert rise / step == pytest.approx(found[place], rel=1e-4, abs=1e-6)


def test_by_default_explains_the_predicted_class_of_each_image():
    chosen = [int(reference.forward(NET, reference.array(image))["output"].argmax()) for image in IMAGES]
    result = opsin.saliency(MODEL, IMAGES)
    for values, image, target in zip(result.extras["gradient"], IMAGES, chosen, strict=True):
        np.testing.assert_allclose(values, gradient(image, reference.one_hot(target)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layer", ["conv1", "relu1", "pool", "conv2", "relu2"])
def test_a_unit_of_any_layer_is_a_target(layer):
    def signal(a):
        one = np.zeros_like(a[layer])
        one[2, 3, 4] = 1
        return one

    found = opsin.saliency(MODEL, IMAGES[:1], target=f"{layer}:2@3,4").extras["gradient"][0]
    np.testing.assert_allclose(found, gradient(IMAGES[0], signal, layer), rtol=1e-9, atol=1e-12)


def test_a_weighted_sum_of_a_channel_and_a_class_is_a_target():
    def channel(a):
        mean = np.zeros_like(a["conv2"])
        mean[3] = 1 / mean[3].size
        return mean

    found = opsin.saliency(MODEL, IMAGES[:1], target="2*conv2:3 - 0.5*tabby").extras["gradient"][0]
    expected = 2 * gradient(IMAGES[0], channel, "conv2") - 0.5 * gradient(IMAGES[0], reference.one_hot(0))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_one_target_for_each_image():
    both = opsin.saliency(MODEL, IMAGES, target=["beagle", 0]).extras["gradient"]
    for values, image, target in zip(both, IMAGES, (2, 0), strict=True):
        np.testing.assert_allclose(values, gradient(image, reference.one_hot(target)), rtol=1e-9, atol=1e-12)


def test_the_softmax_of_a_network_that_ends_in_one_is_not_undone():
    import torch

    net = nets.chain(plain=nets.plain(), softmax=torch.nn.Softmax(1))
    found = opsin.saliency(nets.model(net), IMAGES[:1], target=0).extras["gradient"][0]
    a = reference.forward(NET, reference.array(IMAGES[0]))
    p = np.exp(a["output"]) / np.exp(a["output"]).sum()
    expected = reference.backward(NET, a, p[0] * (reference.one_hot(0) - p))
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-12)
