"""A network whose own code ends the graph is told so, by every technique that differentiates."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nets
import opsin
from opsin.registry import catalogue

IMAGES = nets.images(2)


class Split(nn.Module):
    """The plain net, which hands on what its first rectifier gives in a way of its own."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.parts = nets.Plain()
        self.way = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self.parts, x)


def rest(parts, x):
    return parts.fc(parts.flat(parts.mean(parts.relu2(parts.conv2(parts.pool(x))))))


def begin(parts, x):
    return parts.relu1(parts.conv1(x))


def under_no_grad(parts, x):
    with torch.no_grad():
        x = begin(parts, x)
    return rest(parts, x)


def all_under_no_grad(parts, x):
    with torch.no_grad():
        return parts(x)


def under_inference_mode(parts, x):
    with torch.inference_mode():
        return parts(x)


def detached(parts, x):
    return rest(parts, begin(parts, x).detach())


def begun_again(parts, x):
    return rest(parts, begin(parts, x).detach().requires_grad_())


def by_data(parts, x):
    return rest(parts, begin(parts, x).data)


def assigned(parts, x):
    copy = torch.zeros_like(x)
    with torch.no_grad():
        copy[:] = x
    return parts(copy)


def one_hot(parts, x):
    return F.one_hot(parts(x).argmax(1), 5).to(x)


def by_numpy(parts, x):
    return torch.from_numpy(np.array(parts(x).detach().numpy()))


CUTS = {
    under_no_grad: r"conv2d under torch\.no_grad\(\); the first layer without a gradient is 'parts\.conv1'",
    all_under_no_grad: r"conv2d under torch\.no_grad\(\)",
    under_inference_mode: r"conv2d under torch\.inference_mode\(\)",
    detached: r"calls \.detach\(\); the first layer without a gradient is 'parts\.pool'",
    begun_again: r"calls \.detach\(\); the first layer without a gradient is 'parts\.pool'",
    by_data: r"reads \.data; the first layer without a gradient is 'parts\.pool'",
    assigned: r"__setitem__ under torch\.no_grad\(\)",
    one_hot: r"argmax, whose result \(torch\.int64\) has no derivative",
    by_numpy: r"takes values out of torch with \.numpy\(\)",
}
# of the image; all others begin at a layer, and may begin behind the cut
OF_THE_IMAGE = ("saliency", "guided_backprop", "deconvnet", "integrated_gradients", "smooth_grad")
SHORT = {"samples": 2, "steps": 2}
every_cut = pytest.mark.parametrize("way", CUTS, ids=lambda way: way.__name__)


def model(way) -> opsin.Model:
    return nets.model(nets.seeded(Split(way)))


def run(name, way, **settings):
    technique = catalogue.get(name)
    few = {key: value for key, value in SHORT.items() if key in technique.parameters}
    given = (IMAGES,) if technique.takes_images else ()
    return technique.run(model(way), *given, **{**few, **settings})


@every_cut
@pytest.mark.parametrize("name", OF_THE_IMAGE)
def test_the_error_says_how_the_graph_is_cut_and_what_works_without_it(name, way):
    with pytest.raises(opsin.NetworkError, match=CUTS[way]) as caught:
        run(name, way, target=1)
    assert "between the image and the output" in str(caught.value)
    assert "occlusion" in str(caught.value)


@every_cut
@pytest.mark.parametrize("name", ["grad_cam", "layer_cam", "guided_grad_cam"])
def test_a_map_of_a_layer_before_the_cut_says_it_too(name, way):
    layers = {assigned: None, by_numpy: "parts.relu2", one_hot: "parts.relu2"}
    before = layers.get(way, "parts.relu1")
    if before is None or way in (under_no_grad, all_under_no_grad, under_inference_mode):
        pytest.skip("no layer before the cut")
    with pytest.raises(opsin.NetworkError, match=CUTS[way].partition(";")[0]):
        run(name, way, target=1, layer=before)


@pytest.mark.parametrize("name", ["class_model", "feature_visualization"])
@pytest.mark.parametrize("way", [all_under_no_grad, detached, one_hot])
def test_climbs_say_it_too(name, way):
    with pytest.raises(opsin.NetworkError, match=CUTS[way].partition(";")[0]):
        run(name, way, target=1)


@pytest.mark.parametrize("way", [all_under_no_grad, under_inference_mode, one_hot])
def test_it_is_no_untrained_classifier(way):
    with pytest.raises(opsin.NetworkError, match=CUTS[way].partition(";")[0]):
        run("grad_cam", way, target=1)
    with pytest.raises(opsin.NetworkError, match=CUTS[way].partition(";")[0]):
        _ = model(way).default_layer


def test_layers_says_it_where_nothing_of_the_output_has_a_gradient():
    with pytest.raises(opsin.NetworkError, match=r"torch\.no_grad"):
        run("layers", all_under_no_grad, target=1)


@pytest.mark.parametrize("way", [under_no_grad, detached, by_data])
def test_behind_the_cut_maps_are_what_they_are_without_it(way):
    expected = opsin.grad_cam(nets.model(nets.plain()), IMAGES, target=1, layer="relu2")
    got = opsin.grad_cam(model(way), IMAGES, target=1)
    assert got.record.arguments["layer"] == "parts.relu2"
    assert torch.equal(got.values, expected.values)


def test_occlusion_works_on_a_network_of_inference_mode():
    got = run("occlusion", under_inference_mode, target=1, patch=8)
    expected = opsin.occlusion(nets.model(nets.plain()), IMAGES, target=1, patch=8)
    torch.testing.assert_close(got.values, expected.values)


def test_a_part_that_is_cut_from_a_sum_is_not_left_out_silently():
    with pytest.raises(opsin.NetworkError, match=r"between the image and the output.*\.detach"):
        run("saliency", detached, target="parts.conv1:0 + 3")


@pytest.mark.parametrize("name", ["saliency", "grad_cam"])
def test_a_detached_side_path_is_no_cut(name):
    def side(parts, x):
        return parts(x) + 0 * parts(x.detach())

    settings = {"layer": "parts.relu2#1"} if name == "grad_cam" else {}
    values = run(name, side, target=1, **settings).values
    expected = catalogue.get(name).run(nets.model(nets.plain()), IMAGES, target=1).values
    assert torch.equal(values, expected)


def test_a_target_above_the_layer_has_its_own_error():
    with pytest.raises(opsin.InputError, match="does not depend on the image or layer"):
        opsin.grad_cam(nets.model(nets.plain()), IMAGES, target="conv1:1", layer="relu2")


def test_zeros_are_still_called_zeros():
    net = nets.plain()
    net.fc.weight.data.zero_()
    with pytest.raises(opsin.NetworkError, match="an untrained classifier of zeros"):
        _ = nets.model(net).default_layer


class Doubled(torch.autograd.Function):
    """Whose forward runs without a graph, and whose result has one."""

    @staticmethod
    def forward(_context, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(_context, signal: Tensor) -> Tensor:
        return 2 * signal


def test_a_custom_function_is_not_taken_for_the_cut_behind_it():
    def behind_a_custom_function(parts, x):
        return rest(parts, begin(parts, Doubled.apply(x)).detach())

    with pytest.raises(opsin.NetworkError, match=r"calls \.detach\(\); the first layer .* 'parts\.pool'"):
        run("saliency", behind_a_custom_function, target=1)


def test_what_inference_mode_overwrites_is_captured_before():
    def in_place(parts, x):
        with torch.inference_mode():
            return rest(parts, F.relu(parts.conv1(x), inplace=True))

    expected = nets.model(nets.plain()).run(IMAGES, ("conv1",))["conv1"]
    assert torch.equal(model(in_place).run(IMAGES, ("parts.conv1", "output"))["parts.conv1"], expected)
    assert (expected < 0).any()
