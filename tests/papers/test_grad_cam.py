import numpy as np
import pytest
import torch

import nets
import opsin
import reference

NET = nets.plain()
MODEL = nets.model(NET)
IMAGES = nets.images(2)
LAYERS = ["conv1", "relu1", "pool", "conv2", "relu2"]


def by_hand(image, signal, layer, *, relu=True):
    """alpha[k] = mean over positions of the gradient, L = ReLU(sum over k of alpha[k] A[k])."""
    a = reference.forward(NET, reference.array(image))
    gradient = reference.backward(NET, a, signal, to=layer)
    heat = np.zeros_like(a[layer][0])
    for maps, slopes in zip(a[layer], gradient, strict=True):
        heat += slopes.mean() * maps
    return np.maximum(heat, 0) if relu else heat


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("relu", [True, False])
def test_weighs_the_maps_by_their_mean_gradients(layer, relu):
    result = opsin.grad_cam(MODEL, IMAGES, target=0, layer=layer, relu=relu)
    for image, got in zip(IMAGES, result.values[:, 0], strict=True):
        expected = by_hand(image, reference.one_hot(0), layer, relu=relu)
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
    assert result.signed is not relu


def test_without_the_relu_negative_evidence_is_kept():
    both = opsin.grad_cam(MODEL, IMAGES, target=0, relu=False).values
    assert (both < 0).any()
    assert torch.equal(both.relu(), opsin.grad_cam(MODEL, IMAGES, target=0).values)


def test_by_default_takes_the_predicted_class_at_the_last_layer_with_a_spatial_extent():
    result = opsin.grad_cam(MODEL, IMAGES, relu=False)
    assert result.record.arguments["layer"] == "relu2"
    for image, got in zip(IMAGES, result.values[:, 0], strict=True):
        chosen = reference.forward(NET, reference.array(image))["output"].argmax()
        np.testing.assert_allclose(
            got, by_hand(image, reference.one_hot(chosen), "relu2", relu=False), rtol=1e-9
        )


def test_a_weighted_sum_of_classes_is_a_target():
    got = opsin.grad_cam(MODEL, IMAGES[:1], target="0 - 3*2", layer="conv2", relu=False).values[0, 0]
    expected = by_hand(IMAGES[0], np.array([1.0, 0, -3, 0, 0]), "conv2", relu=False)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_a_unit_of_a_later_layer_is_a_target():
    got = opsin.grad_cam(MODEL, IMAGES[:1], target="relu2:1@3,4", layer="pool", relu=False).values[0, 0]
    a = reference.forward(NET, reference.array(IMAGES[0]))
    signal = np.zeros_like(a["relu2"])
    signal[1, 3, 4] = 1
    gradient = reference.backward(NET, a, signal, start="relu2", to="pool")
    expected = sum(g.mean() * m for g, m in zip(gradient, a["pool"], strict=True))
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_a_channel_of_the_layer_itself_is_a_target():
    # dS/dA is 1/(h w) on the channel's positions, its mean 1/(h w): L = A[k] / (h w)
    got = opsin.grad_cam(MODEL, IMAGES[:1], target="relu2:3", layer="relu2").values[0, 0]
    expected = reference.forward(NET, reference.array(IMAGES[0]))["relu2"][3] / 64
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_a_target_before_the_layer_does_not_depend_on_it():
    with pytest.raises(opsin.InputError, match="does not depend"):
        opsin.grad_cam(MODEL, IMAGES, target="conv1:0", layer="conv2")


def test_a_layer_without_spatial_extent_is_refused():
    for layer in ("mean", "flat", "fc"):
        with pytest.raises(opsin.NetworkError, match=f"'{layer}'.*no spatial extent"):
            opsin.grad_cam(MODEL, IMAGES, target=0, layer=layer)


def test_before_an_in_place_operation_the_maps_are_those_that_the_layer_gave():
    expected = opsin.grad_cam(
        nets.model(nets.normed(inplace=False)), IMAGES, target=0, layer="bn2", relu=False
    )
    got = opsin.grad_cam(nets.model(nets.normed(inplace=True)), IMAGES, target=0, layer="bn2", relu=False)
    assert torch.equal(got.values, expected.values)


def test_tokens_and_channels_last_are_seen_as_maps():
    for net, layer in ((nets.vit(), "blocks.0"), (nets.channels_last(), "relu")):
        values = opsin.grad_cam(nets.model(net), IMAGES, target=0, layer=layer, relu=False).values
        assert values.shape == (2, 1, 4, 4)
        mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (nets.MEAN, nets.STD))
        kept = []
        hook = net.get_submodule(layer).register_forward_hook(lambda m, i, o: kept.append(o))  # noqa: B023
        score = net((IMAGES - mean) / std)[:, 0].sum()
        hook.remove()
        (gradient,) = torch.autograd.grad(score, kept[0])
        a, g = kept[0].detach(), gradient
        if a.ndim == 3:  # the class token stands first
            a, g = (t[:, 1:].unflatten(1, (4, 4)) for t in (a, g))
        torch.testing.assert_close(values[:, 0], (g.mean((1, 2), keepdim=True) * a).sum(-1))
