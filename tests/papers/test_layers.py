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
EVERYTHING = 10**6  # more tiles than there are


def panels(result):
    return {(p.group, p.title): p for p in result.panels}


def found(result, layer, title):
    (panel,) = (
        p for (group, t), p in panels(result).items() if group.startswith(f"{layer} (") and t == title
    )
    return panel.values.numpy()


def by_hand(image, target):
    """Activations, and the derivatives of E = log sum exp S - S[target] by activations and weights."""
    a = reference.forward(NET, reference.array(image))
    p = np.exp(a["output"] - a["output"].max())
    signal = p / p.sum() - reference.one_hot(target)
    gradient = {layer: reference.backward(NET, a, signal, to=layer) for layer in reference.LAYERS}
    weights = {
        "conv1": reference.kernel_gradient(gradient["conv1"], reference.normalised(a["image"])),
        "conv2": reference.kernel_gradient(gradient["conv2"], a["pool"]),
        "fc": np.outer(signal, a["mean"]),
    }
    biases = {"conv1": gradient["conv1"].sum((1, 2)), "conv2": gradient["conv2"].sum((1, 2)), "fc": signal}
    return a, gradient, weights, biases


@pytest.mark.parametrize("target", [0, 3])
def test_activations_and_their_gradients_of_the_cross_entropy(target):
    a, gradient, *_ = by_hand(IMAGES[0], target)
    result = opsin.layers(MODEL, IMAGES[:1], target=target, tiles=EVERYTHING)
    for layer in ("conv1", "relu1", "pool", "conv2", "relu2"):
        np.testing.assert_allclose(found(result, layer, "activations")[:, 0], a[layer], rtol=1e-9, atol=1e-12)
        got = found(result, layer, "gradient of activations")[:, 0]
        np.testing.assert_allclose(got, gradient[layer], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found(result, "fc", "activations").ravel(), a["output"], rtol=1e-9)
    np.testing.assert_allclose(
        found(result, "fc", "gradient of activations").ravel(), gradient["output"], rtol=1e-9
    )


@pytest.mark.parametrize("target", [0, 3])
def test_weights_and_their_gradients_of_the_cross_entropy(target):
    *_, weights, biases = by_hand(IMAGES[0], target)
    result = opsin.layers(MODEL, IMAGES[:1], target=target, tiles=EVERYTHING)
    for layer in ("conv1", "conv2", "fc"):
        own = {n: reference.array(p) for n, p in NET.get_submodule(layer).named_parameters()}
        for title, expected in (
            ("weight", own["weight"]),
            ("gradient of weight", weights[layer]),
            ("bias", own["bias"]),
            ("gradient of bias", biases[layer]),
        ):
            np.testing.assert_allclose(
                found(result, layer, title).ravel(), expected.ravel(), rtol=1e-8, atol=1e-12
            )


def test_first_kernels_are_coloured_and_deeper_ones_a_tile_an_input():
    result = opsin.layers(MODEL, IMAGES[:1], tiles=EVERYTHING)
    assert found(result, "conv1", "weight").shape == (4, 3, 3, 3)
    assert found(result, "conv2", "weight").shape == (24, 1, 3, 3)


def test_tiles_limits_what_is_shown_but_not_what_the_caption_tells():
    few, all_of_it = (opsin.layers(MODEL, IMAGES[:1], target=0, tiles=n) for n in (2, EVERYTHING))
    assert len(found(few, "conv2", "activations")) == 2
    for key, panel in panels(few).items():
        whole = panels(all_of_it)[key]
        hidden = len(whole.values) > len(panel.values)
        shown = f"{len(panel.values)} of {len(whole.values)} shown: " if hidden else ""
        assert panel.caption == shown + whole.caption
        assert torch.equal(panel.values, whole.values[:2])


def test_layers_that_pass_on_what_they_are_given_are_left_out():
    net = nets.seeded(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity(), nn.Dropout(), nn.Flatten(), nn.Linear(16, 2))
    )
    shown = opsin.layers(nets.model(net, size=4), nets.images(1, h=4))
    assert {p.group for p in shown.panels} == {"0 (Conv2d)", "3 (Flatten)", "4 (Linear)"}


def test_captions_tell_the_shape_the_extremes_and_the_parameter_count_as_a_product():
    shown = panels(opsin.layers(MODEL, IMAGES[:1], target=0))
    weight, maps = NET.conv2.weight.detach(), reference.forward(NET, reference.array(IMAGES[0]))["conv2"]
    assert shown["conv2 (Conv2d)", "weight"].caption == (
        f"9 of 24 shown: 6×4×3×3 = 216, {weight.min().item():.3g} to {weight.max().item():.3g}"
    )
    assert shown["conv2 (Conv2d)", "activations"].caption == f"6×8×8, {maps.min():.3g} to {maps.max():.3g}"
    assert shown["conv2 (Conv2d)", "bias"].caption.startswith("6, ")


def test_by_default_the_loss_is_that_of_the_predicted_class_of_each_image():
    predicted = MODEL.run(IMAGES)["output"].argmax(1).tolist()
    assert predicted[0] != predicted[1]
    assert opsin.layers(MODEL, IMAGES).panels == opsin.layers(MODEL, IMAGES, target=predicted).panels


def test_a_tie_between_classes_is_no_reason_to_refuse_the_predicted_one():
    net = nets.plain()
    with torch.no_grad():
        net.fc.weight[1] = net.fc.weight[0]
        net.fc.bias[:2] = 100
    model = nets.model(net)
    assert opsin.layers(model, IMAGES[:1]).panels == opsin.layers(model, IMAGES[:1], target=0).panels


def test_every_layer_is_there_in_the_order_of_the_forward():
    groups = list(dict.fromkeys(p.group.split(" (")[0] for p in opsin.layers(MODEL, IMAGES[:1]).panels))
    assert groups == ["conv1", "relu1", "pool", "conv2", "relu2", "mean", "flat", "fc"]


def test_a_reused_module_is_shown_at_each_of_its_calls():
    a, gradient, *_ = by_hand(IMAGES[0], 0)
    result = opsin.layers(nets.model(nets.reused()), IMAGES[:1], target=0, tiles=EVERYTHING)
    for call, layer in (("relu1#1", "relu1"), ("relu1#2", "relu2")):
        np.testing.assert_allclose(found(result, call, "activations")[:, 0], a[layer], rtol=1e-9, atol=1e-12)
        got = found(result, call, "gradient of activations")[:, 0]
        np.testing.assert_allclose(got, gradient[layer], rtol=1e-9, atol=1e-12)


def test_an_activation_before_an_in_place_rectifier_is_what_the_layer_gave():
    a, *_ = by_hand(IMAGES[0], 0)
    result = opsin.layers(nets.model(nets.in_place()), IMAGES[:1], target=0, tiles=EVERYTHING)
    np.testing.assert_allclose(found(result, "conv2", "activations")[:, 0], a["conv2"], rtol=1e-9, atol=1e-12)


def test_a_target_that_is_not_one_class_is_refused():
    for target in ("conv2:1", "0 + 1", "2*0"):
        with pytest.raises(opsin.InputError, match="class"):
            opsin.layers(MODEL, IMAGES, target=target)
