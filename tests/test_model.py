import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import nets
import opsin
import reference
from hostile import networks

IMAGES = nets.images(2)
LAYERS = ("conv1", "relu1", "pool", "conv2", "relu2")
PLAIN = nets.model(nets.plain())


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values, dtype=images.dtype).view(-1, 1, 1) for values in (nets.MEAN, nets.STD))
    return (images - mean) / std


def differentiated(score: Tensor, *at: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(score.sum(), at)


class Spy(nn.Module):
    """Counts its calls, in a list: what a forward binds to a name of the module is put back."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[torch.Size] = []

    @property
    def calls(self) -> int:
        return len(self.heard)

    def forward(self, x: Tensor) -> Tensor:
        self.heard.append(x.shape)
        return x


# --- what a run returns


def test_activations_and_output_are_those_computed_by_hand():
    run = nets.model(nets.plain()).run(IMAGES, ("output", *LAYERS))
    assert set(run) == {"image", "output", *LAYERS}
    for index, image in enumerate(IMAGES):
        a = reference.forward(nets.plain(), reference.array(image))
        for name in run:
            torch.testing.assert_close(run[name][index], torch.from_numpy(a[name]), rtol=1e-9, atol=1e-12)


def test_without_a_start_nothing_is_recorded():
    run = nets.model(nets.plain()).run(IMAGES, ("output", "conv1"))
    assert not any(value.requires_grad for value in run.values())


def test_started_at_the_image_the_gradient_reaches_it():
    run = nets.model(nets.plain()).run(IMAGES, ("output",), start="image")
    (gradient,) = differentiated(run["output"][:, 0], run["image"])
    a = reference.forward(nets.plain(), reference.array(IMAGES[0]))
    expected = reference.backward(nets.plain(), a, reference.one_hot(0))
    torch.testing.assert_close(gradient[0], torch.from_numpy(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("start", LAYERS)
def test_started_at_a_layer_the_graph_begins_there(start):
    run = nets.model(nets.plain()).run(IMAGES, ("output", *LAYERS), start=start)
    where = LAYERS.index(start)
    assert not run["image"].requires_grad
    assert not any(run[layer].requires_grad for layer in LAYERS[:where])
    assert run[start].is_leaf
    assert all(run[layer].grad_fn is not None for layer in LAYERS[where + 1 :])
    (gradient,) = differentiated(run["output"][:, 3], run[start])
    a = reference.forward(nets.plain(), reference.array(IMAGES[0]))
    expected = reference.backward(nets.plain(), a, reference.one_hot(3), to=start)
    torch.testing.assert_close(gradient[0], torch.from_numpy(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("start", [None, "image", "conv1"])
def test_it_stops_behind_the_last_wanted_layer(start):
    early, late = Spy(), Spy()
    net = nets.seeded(nets.Chain(conv1=nn.Conv2d(3, 4, 3), early=early, conv2=nn.Conv2d(4, 4, 3), late=late))
    model = nets.model(net)
    assert model.calls
    before = early.calls, late.calls
    assert set(model.run(IMAGES, ("conv2", "conv1"), start=start)) == {"image", "conv1", "conv2"}
    assert (early.calls - before[0], late.calls - before[1]) == (1, 0)
    model.run(IMAGES, ("conv1",), start=start)
    assert (early.calls - before[0], late.calls - before[1]) == (1, 0)
    model.run(IMAGES, ("output", "conv1"), start=start)
    assert (early.calls - before[0], late.calls - before[1]) == (2, 1)


@pytest.mark.parametrize("start", [None, "image", "conv1", "conv2"])
@pytest.mark.parametrize("layers", [("conv1", "conv2"), ("output", "conv1", "conv2"), ("conv1", "relu1")])
def test_an_in_place_operation_does_not_reach_what_was_captured(start, layers):
    kept, overwritten = (
        nets.model(net).run(IMAGES, layers, start=start) for net in (nets.plain(), nets.in_place())
    )
    assert kept.keys() == overwritten.keys()
    for name in kept:
        assert torch.equal(kept[name], overwritten[name])
    assert (overwritten["conv1"] < 0).any()


@pytest.mark.parametrize("start", ["image", "bn1", "bn2"])
def test_gradients_before_in_place_operations_are_those_of_the_twin(start):
    gradients = []
    for inplace in (False, True):
        run = nets.model(nets.normed(inplace=inplace)).run(IMAGES, ("output",), start=start)
        gradients += differentiated(run["output"][:, 0], run[start])
    assert gradients[0].any()
    assert torch.equal(*gradients)


def test_a_network_that_overwrites_its_input_does_not_reach_the_images():
    model = nets.model(nets.seeded(nets.Chain(relu=nn.ReLU(inplace=True), conv=nn.Conv2d(3, 5, 16))))
    images = IMAGES.clone()
    run = model.run(images, start="image")
    assert torch.equal(images, IMAGES)
    assert torch.equal(run["image"], IMAGES)
    (gradient,) = differentiated(run["output"], run["image"])
    assert not gradient[normalised(IMAGES) <= 0].any()


def test_the_users_images_get_no_graph_and_no_gradient():
    images = IMAGES.clone().requires_grad_()
    run = nets.model(nets.plain()).run(images, start="image")
    run["output"].sum().backward()
    assert images.grad is None
    assert run["image"] is not images


def test_calls_of_one_module_are_told_apart():
    model = nets.model(nets.reused())
    assert list(model.calls) == ["conv1", "relu1#1", "pool", "conv2", "relu1#2", "mean", "flat", "fc"]
    run = model.run(IMAGES, ("relu1#1", "relu1#2"))
    twin = nets.model(nets.plain()).run(IMAGES, ("relu1", "relu2"))
    assert torch.equal(run["relu1#1"], twin["relu1"])
    assert torch.equal(run["relu1#2"], twin["relu2"])
    with pytest.raises(opsin.InputError, match="called 2 times; specify one: relu1#1, relu1#2"):
        model.run(IMAGES, ("relu1",))


@pytest.mark.parametrize(("start", "alone"), [("relu1#1", "relu1"), ("relu1#2", "relu2")])
def test_the_graph_may_begin_at_a_later_call(start, alone):
    run = nets.model(nets.reused()).run(IMAGES, ("output",), start=start)
    twin = nets.model(nets.plain()).run(IMAGES, ("output",), start=alone)
    assert torch.equal(
        *differentiated(run["output"], run[start]), *differentiated(twin["output"], twin[alone])
    )


def test_a_container_is_a_layer_too():
    net = nets.chain(
        stage=nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)), pool=nn.AdaptiveMaxPool2d(1)
    )
    model = nets.model(net, labels=None)
    assert list(model.calls) == ["stage.0", "stage.1", "stage", "pool"]
    run = model.run(IMAGES, ("stage", "stage.0", "stage.1", "output"), start="image")
    assert torch.equal(run["stage"], run["stage.1"])
    assert torch.equal(run["stage"], run["stage.0"].relu())
    (gradient,) = differentiated(run["output"], run["stage"])
    assert int((gradient != 0).sum()) == 2 * 4  # one maximum for each image and channel


def test_with_parameters_the_weights_are_differentiable_and_returned_by_name():
    net = nets.plain()
    net.conv1.weight.requires_grad_(False)
    model = nets.model(net)
    run = model.run(IMAGES[:1], ("output", "conv2"), start="image", parameters=True)
    assert {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "fc.weight", "fc.bias"} <= set(run)
    weight, bias, kernel = differentiated(
        run["output"][:, 1], run["fc.weight"], run["fc.bias"], run["conv1.weight"]
    )
    a = reference.forward(net, reference.array(IMAGES[0]))
    torch.testing.assert_close(weight[1], torch.from_numpy(a["mean"]), rtol=1e-9, atol=1e-12)
    assert bias.tolist() == [0, 1, 0, 0, 0]
    signal = reference.backward(net, a, reference.one_hot(1), to="conv1")
    expected = reference.kernel_gradient(signal, reference.normalised(a["image"]))
    torch.testing.assert_close(kernel, torch.from_numpy(expected), rtol=1e-9, atol=1e-12)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not net.conv1.weight.requires_grad
    assert net.fc.weight.requires_grad


@pytest.mark.parametrize("net", [nets.two_heads, nets.with_logits])
def test_the_output_may_be_a_tuple_or_an_object_with_logits(net):
    model = nets.model(net())
    assert torch.equal(model.run(IMAGES)["output"], nets.model(nets.plain()).run(IMAGES)["output"])
    assert model.classes == 5


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return x * 2, {"unused": x}


class First(nn.Module):
    def forward(self, pair: tuple[Tensor, object]) -> Tensor:
        return pair[0]


def test_a_layer_may_return_a_tuple():
    net = nets.seeded(nets.Chain(conv=nn.Conv2d(3, 5, 16), pair=Pair(), first=First(), flat=nn.Flatten()))
    run = nets.model(net).run(IMAGES, ("output", "pair"), start="pair")
    assert torch.equal(run["pair"].flatten(1), run["output"])
    (gradient,) = differentiated(run["output"], run["pair"])
    assert torch.equal(gradient, torch.ones_like(gradient))


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> None:
        return None


def test_an_output_without_a_tensor_is_an_error():
    with pytest.raises(opsin.NetworkError, match="no tensor but NoneType"):
        nets.model(nets.chain(conv=nn.Conv2d(3, 4, 3), nothing=Nothing())).run(IMAGES)


def test_grey_networks_get_the_mean_of_the_colours():
    net = nets.grey()
    output = nets.grey_model(net).run(IMAGES)["output"]
    torch.testing.assert_close(
        output, net((IMAGES.mean(1, keepdim=True) - 0.5) / 0.25), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_network_is_run_in_its_own_dtype(dtype):
    model = nets.model(nets.plain(dtype=dtype))
    assert model.dtype is dtype
    run = model.run(IMAGES, ("output", "conv1"), start="image")
    assert run["output"].dtype is run["conv1"].dtype is dtype
    assert run["image"].dtype is IMAGES.dtype
    assert run["image"].requires_grad


def test_a_network_that_views_its_maps_is_run_on_contiguous_ones():
    net = nets.viewing()
    model = nets.model(net)
    torch.testing.assert_close(model.run(IMAGES)["output"], net(normalised(IMAGES)), rtol=1e-9, atol=1e-12)
    run = model.run(IMAGES, ("output",), start="relu")
    assert differentiated(run["output"], run["relu"])[0].any()


@pytest.mark.parametrize("made", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("used", [torch.no_grad, torch.inference_mode])
def test_runs_record_under_any_gradient_mode(made, used):
    with made():
        images = IMAGES + 0
    model = nets.model(nets.plain())
    with used():
        run = model.run(images, ("output", "conv1"), start="image")
    (gradient,) = differentiated(run["output"], run["image"])
    expected = model.run(IMAGES, start="image")
    assert torch.equal(gradient, *differentiated(expected["output"], expected["image"]))


# --- what it leaves behind


def test_an_interrupted_forward_leaves_no_hook_and_the_next_run_is_as_ever():
    net = nets.plain()
    model = nets.model(net)
    expected = model.run(IMAGES)["output"]
    handle = net.conv2.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(ValueError("no")))
    with pytest.raises(opsin.NetworkError, match="Plain failed on an input of 2x3x16x16: no") as caught:
        model.run(IMAGES, ("output", "relu1", "relu2"), start="relu1")
    assert isinstance(caught.value.__cause__, ValueError)
    handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert torch.equal(model.run(IMAGES)["output"], expected)


class Counting(nn.Module):
    """Changes its buffers in every forward, one in place and one by a new tensor."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.register_buffer("inside", torch.zeros(1))
        self.register_buffer("replaced", torch.zeros(1), persistent=False)
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        self.inside += 1
        self.replaced = self.replaced + 1
        if self.fails:
            raise ValueError("no")
        return x + self.inside + self.replaced


@pytest.mark.parametrize("fails", [False, True])
def test_buffers_that_the_forward_changes_come_back(fails):
    net = nets.chain(counting=Counting(fails=fails), conv=nn.Conv2d(3, 5, 16))
    inside, replaced = net.counting.inside, net.counting.replaced
    model = nets.model(net)
    for _ in range(2):
        try:
            model.run(IMAGES, ("output", "counting"), start="image")
        except opsin.NetworkError:
            assert fails
    assert net.counting.inside is inside
    assert net.counting.replaced is replaced
    assert not inside.any()
    assert not replaced.any()


@pytest.mark.parametrize("kind", networks.EDITS)
def test_a_forward_that_edits_its_network_leaves_it_as_it_was_and_gives_what_it_gives(kind):
    net, twin = networks.editing(kind), networks.editing(kind)
    x = normalised(IMAGES).requires_grad_()
    expected = twin.eval().requires_grad_(False)(x)
    (slope,) = differentiated(expected[:, 1], x)
    before = nets.state(net)
    model = nets.model(net)
    for _ in range(2):
        run = model.run(IMAGES, ("output", "mid"), start="image")
        assert nets.state(net) == before
        torch.testing.assert_close(run["output"], expected, rtol=1e-9, atol=1e-12)
        (gradient,) = differentiated(run["output"][:, 1], run["image"])
        std = torch.tensor(nets.STD, dtype=slope.dtype).view(-1, 1, 1)
        torch.testing.assert_close(gradient, slope / std, rtol=1e-9, atol=1e-12)
        assert nets.state(net) == before


@pytest.mark.parametrize("kind", networks.EDITS)
def test_differentiable_weights_are_edited_no_more_than_others(kind):
    net = networks.editing(kind)
    before = nets.state(net)
    run = nets.model(net).run(IMAGES, ("output",), start="image", parameters=True)
    assert nets.state(net) == before
    assert set(dict(net.named_parameters())) <= set(run)
    (gradient,) = differentiated(run["output"], run["fc.bias"])
    assert gradient.tolist() == [len(IMAGES)] * 5


def test_the_first_forward_edits_nothing_where_it_fails():
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("no")

    net = networks.around(mid=networks.Edits(*networks.EDITS.values()), end=Failing())
    before = nets.state(net)
    for _ in range(2):
        with pytest.raises(opsin.NetworkError, match="no"):
            nets.model(net).run(IMAGES)
        assert nets.state(net) == before


def test_tied_weights_stay_tied_where_a_forward_edits_them():
    class Tied(networks.Edits):
        def __init__(self) -> None:
            super().__init__(networks.add_in_place)
            self.other = nn.Conv2d(4, 4, 3, padding=1)
            self.other.weight = self.conv.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.other(x) - super().forward(x) + self.other(x)

    net, twin = (networks.around(mid=Tied()) for _ in range(2))
    before = nets.state(net)
    expected = twin(normalised(IMAGES))
    model = nets.model(net)
    for _ in range(2):
        torch.testing.assert_close(model.run(IMAGES)["output"], expected, rtol=1e-9, atol=1e-12)
    assert nets.state(net) == before


def test_a_weight_that_only_a_later_forward_edits_is_an_error_and_the_next_forward_edits_none():
    net = networks.editing("in place")
    edit, net.mid.edits = net.mid.edits[0], []
    model = nets.model(net)
    assert model.calls
    net.mid.edits = [edit]
    with pytest.raises(opsin.NetworkError, match=r"changed its own weights \(mid.conv.weight\)"):
        model.run(IMAGES)
    before = nets.state(net)
    model.run(IMAGES, ("output",), start="image")
    assert nets.state(net) == before


def test_a_buffer_that_only_a_later_forward_edits_comes_back():
    net = networks.editing("a buffer in place")
    edits, net.mid.edits = net.mid.edits, []
    model = nets.model(net)
    assert model.calls
    net.mid.edits = edits
    for _ in range(2):
        model.run(IMAGES)
        assert not net.mid.conv.seen.any()


@pytest.mark.parametrize("leave", [SystemExit(0), SystemExit("no"), OSError("gone")])
def test_a_forward_that_wants_to_leave_is_the_network_s_error(leave):
    class Leaving(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise leave

    with pytest.raises(opsin.NetworkError, match="Leaving failed on an input of"):
        nets.model(Leaving()).run(IMAGES)


@pytest.mark.parametrize("error", [KeyError("mine"), ValueError("mine"), opsin.InputError("mine")])
def test_an_error_of_what_replaces_a_layer_is_not_the_network_s(error):
    def replacing(_: Tensor) -> Tensor:
        raise error

    with pytest.raises(type(error)) as raised:
        PLAIN.run(IMAGES, ("output",), replace={"pool": replacing})
    assert raised.value is error
    assert torch.equal(PLAIN.run(IMAGES)["output"], nets.model(nets.plain()).run(IMAGES)["output"])


@pytest.mark.parametrize("name", ["image", "output"])
def test_what_is_no_layer_is_not_replaced(name):
    with pytest.raises(opsin.InputError, match=f"'{name}' is not a layer"):
        PLAIN.run(IMAGES, ("output",), replace={name: torch.zeros_like})


def test_a_network_that_is_not_edited_is_copied_once_only():
    net = nets.plain()
    model = nets.model(net)
    assert model.calls
    kept = net.conv1.weight
    seen = []
    net.conv1.register_forward_hook(lambda module, *_: seen.append(module.weight is kept))
    nets.model(net).run(IMAGES)
    model.run(IMAGES)
    assert seen[0] is False
    assert len(seen) > 3
    assert all(seen[1:])


@pytest.mark.parametrize("kind", networks.NORMS)
def test_weights_are_read_as_a_forward_finds_them_and_nothing_is_moved(kind):
    net, twin = networks.normed(kind), networks.normed(kind)
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(-2)
    twin.load_state_dict(net.state_dict())  # what hooks set is from before
    before = nets.state(twin)
    read = nets.model(twin).weights(["conv1", "fc", "relu1"])
    assert nets.state(twin) == before
    net.eval()(normalised(IMAGES))
    assert read.keys() == {"conv1", "fc"}
    for name, weight in read.items():
        assert torch.equal(weight, net.get_submodule(name).weight)
        assert not weight.requires_grad


@pytest.mark.parametrize("kind", networks.NORMS)
def test_what_computes_a_weight_is_no_layer(kind):
    assert list(nets.model(networks.normed(kind)).calls) == list(nets.model(nets.plain()).calls)


def test_batch_statistics_of_training_are_neither_used_nor_moved():
    net = nets.normed(inplace=True)
    expected = net(normalised(IMAGES))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    output = nets.model(net).run(IMAGES)["output"]
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-12)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class Checkpointed(nets.Normed):
    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(lambda x: self.relu1(self.bn1(self.conv1(x))), x, use_reentrant=False)
        return self.fc(self.relu2(self.bn2(self.conv2(x))).mean((2, 3)))


def test_a_checkpointed_network_in_training_is_explained_as_in_evaluation_or_refused():
    net = nets.seeded(Checkpointed(nn.ReLU)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    expected = opsin.saliency(nets.model(nets.normed(inplace=False)), IMAGES, target=0).values
    try:
        assert torch.equal(opsin.saliency(nets.model(net), IMAGES, target=0).values, expected)
    except opsin.NetworkError as error:
        said = str(error)
        assert "checkpointing" in said
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())


def test_two_models_of_one_network_do_not_meet():
    net = nets.plain()
    square, large = nets.model(net), nets.model(net, size=32)
    assert square.calls["conv1"].shape == (1, 4, 16, 16)
    assert large.calls["conv1"].shape == (1, 4, 32, 32)


def test_a_model_does_not_keep_a_dropped_network_alive():
    model = nets.model(nets.plain())
    model.run(IMAGES, ("output", "conv1"), start="conv1")
    assert model.weigh().fingerprint
    kept = weakref.ref(model.network)
    del model
    gc.collect()
    assert kept() is None


# --- which layers there are


def test_calls_tell_the_shape_and_the_layout_of_each_layer():
    calls = nets.model(nets.plain()).calls
    assert list(calls) == ["conv1", "relu1", "pool", "conv2", "relu2", "mean", "flat", "fc"]
    told = {name: (call.kind, call.shape, call.layout, call.extent) for name, call in calls.items()}
    assert told["conv1"] == ("Conv2d", (1, 4, 16, 16), "maps", (16, 16))
    assert told["pool"] == ("MaxPool2d", (1, 4, 8, 8), "maps", (8, 8))
    assert told["mean"] == ("AdaptiveAvgPool2d", (1, 6, 1, 1), "maps", (1, 1))
    assert told["flat"] == ("Flatten", (1, 6), "vector", None)
    assert told["fc"] == ("Linear", (1, 5), "vector", None)
    assert [name for name, call in calls.items() if call.passive] == ["pool", "mean", "flat"]
    assert all(call.layer == name and call.index == 1 for name, call in calls.items())


def test_an_oblong_model_has_oblong_layers():
    calls = nets.model(nets.plain(), size=(16, 28)).calls
    assert calls["conv2"].extent == (8, 14)


def test_channels_last_maps_are_seen_as_maps():
    model = nets.model(nets.channels_last())
    calls = model.calls
    assert (calls["stem"].layout, calls["stem"].extent) == ("maps", (4, 4))
    for name in ("last", "norm", "wide", "relu"):
        assert (calls[name].shape, calls[name].layout, calls[name].extent) == (
            (1, 4, 4, 9),
            "maps_last",
            (4, 4),
        )
    run = model.run(IMAGES, ("stem", "last"))
    assert torch.equal(run.maps("last"), run["stem"])
    assert torch.equal(run.channels("last"), run["stem"])
    assert model.default_layer == "relu"


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (32, 20)])
def test_tokens_are_seen_as_maps_behind_their_prefix(size):
    model = nets.model(nets.vit(), size=size)
    call = model.calls["blocks.0"]
    h, w = size[0] // 4, size[1] // 4
    assert (call.layout, call.extent, call.prefix) == ("tokens", (h, w), 1)
    run = model.run(nets.images(2, *size), ("embed", "blocks.0.norm1", "blocks.0"))
    assert run.maps("blocks.0").shape == (2, 8, h, w)
    # the first block's input norm, by hand: each position of the embedding over its own channels
    maps = run["embed"]
    mean, var = maps.mean(1, keepdim=True), maps.var(1, keepdim=True, correction=0)
    norm = model.network.blocks[0].norm1
    weight, bias = norm.weight.view(-1, 1, 1), norm.bias.view(-1, 1, 1)
    expected = (maps - mean) / (var + norm.eps).sqrt() * weight + bias
    torch.testing.assert_close(run.maps("blocks.0.norm1"), expected, rtol=1e-9, atol=1e-12)


def test_tokens_of_photos_of_another_size_than_the_models_are_seen_as_maps():
    run = nets.model(nets.vit()).run(nets.images(2, 24, 32), ("blocks.0",))
    assert run.maps("blocks.0").shape == (2, 8, 6, 8)


def test_what_has_no_extent_is_no_map():
    model = nets.model(nets.plain())
    run = model.run(IMAGES, ("fc", "conv1", "output"))
    with pytest.raises(opsin.NetworkError, match=r"'fc' gives .* no spatial extent"):
        run.maps("fc")
    assert torch.equal(run.channels("fc"), run["output"])
    assert torch.equal(run.channels("output"), run["output"])
    assert torch.equal(run.maps("image"), IMAGES)


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (nets.plain, "relu2"),
        (nets.functional, "conv2"),
        (nets.reused, "relu1#2"),
        (nets.viewing, "relu"),
        (nets.channels_last, "relu"),
    ],
)
def test_the_default_layer_is_the_last_with_an_extent(net, expected):
    assert nets.model(net()).default_layer == expected


def test_the_default_layer_of_a_transformer_is_the_last_whose_patches_reach_the_class_token():
    model = nets.model(nets.vit())
    assert model.default_layer == "blocks.1.norm1"
    run = model.run(IMAGES, ("output",), start="blocks.1")
    (gradient,) = differentiated(run["output"], run["blocks.1"])
    assert not gradient[:, 1:].any()  # what a user who names the last block would get


def test_the_default_layer_is_none_that_only_an_unused_branch_has():
    class Branched(nets.Plain):
        def forward(self, x: Tensor) -> Tensor:
            scores = super().forward(x)
            self.conv2(self.pool(x)[:, :1].expand(-1, 4, -1, -1))
            return scores

    assert nets.model(nets.seeded(Branched())).default_layer == "relu2"


def test_a_network_without_maps_has_no_default_layer():
    model = nets.model(nets.seeded(nets.Chain(flat=nn.Flatten(), fc=nn.Linear(768, 5))))
    with pytest.raises(opsin.NetworkError, match="no layer with a spatial extent"):
        _ = model.default_layer


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_default_layer_is_found_under_any_gradient_mode(mode):
    model = nets.model(nets.plain())
    with mode():
        assert model.default_layer == "relu2"


def test_an_unknown_layer_is_named_with_the_nearest_and_with_why():
    model = nets.model(nets.plain())
    with pytest.raises(opsin.InputError, match=r"unknown layer 'conv3'; nearest: conv"):
        model.run(IMAGES, ("conv3",))
    with pytest.raises(opsin.InputError, match="unknown layer 'relu9'"):
        model.run(IMAGES, ("output",), start="relu9")
    net = nets.plain()
    net.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(opsin.InputError, match=r"'spare'.*never calls"):
        nets.model(net.double()).run(IMAGES, ("spare",))


class Sometimes(nets.Plain):
    """Leaves out its second half on large photos."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[-1] == nets.SIZE else self.conv1(x).mean((2, 3))


def test_a_layer_that_this_input_does_not_reach_is_an_error():
    with pytest.raises(opsin.NetworkError, match="did not reach conv2"):
        nets.model(nets.seeded(Sometimes())).run(nets.images(1, 32), ("output", "conv2"))


# --- weights


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.conv1.weight.detach().add_(1e-6),
        lambda net: net.conv1.weight.data.add_(1e-6),
        lambda net: net.load_state_dict(nets.normed(inplace=True, seed=1).state_dict()),
        lambda net: setattr(net.conv1, "weight", nn.Parameter(net.conv1.weight.detach() + 1e-6)),
        lambda net: net.bn1.running_mean.add_(1e-6),
        lambda net: net.float(),
    ],
    ids=["in place", "through data", "loaded", "a new one", "a buffer", "another dtype"],
)
def test_the_fingerprint_changes_with_any_weight(change):
    net = nets.normed(inplace=True)
    model = nets.model(net)
    before = model.weigh().fingerprint
    assert model.weigh().fingerprint == before
    change(net)
    assert model.weigh().fingerprint != before
    assert len(model.weigh().fingerprint) == 64


def test_the_fingerprint_is_of_the_weights_and_of_nothing_else():
    one, same, other = (
        nets.model(nets.plain()),
        nets.model(nets.plain().train(), size=32),
        nets.model(nets.plain(seed=1)),
    )
    assert one.weigh().fingerprint == same.weigh().fingerprint
    assert one.weigh().fingerprint != other.weigh().fingerprint
    one.run(IMAGES, ("output", "conv1"), start="conv1", parameters=True)
    assert one.weigh().fingerprint == same.weigh().fingerprint


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_is_no_number_is_noticed(value, dtype):
    net = nets.plain(dtype=dtype)
    model = nets.model(net)
    assert model.weigh().finite
    with torch.no_grad():
        net.conv2.bias[3] = value
    assert not model.weigh().finite


def test_quantised_weights_have_a_fingerprint_of_their_own():
    net, other = networks.quantised(), networks.quantised(bias=1)
    model = nets.model(net)
    before = model.weigh()
    assert model.weigh() is before
    assert before.finite
    assert before.fingerprint != nets.model(other).weigh().fingerprint
    net.load_state_dict(other.state_dict())
    assert model.weigh().fingerprint == nets.model(other).weigh().fingerprint


# --- what is no model


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("lazy", "'0.weight' of the lazy network has no shape yet: run it on an example"),
        ("on the meta device", "'conv1.weight' of the network is on the meta device: load its weights"),
    ],
)
def test_a_network_whose_weights_are_not_there_yet_is_refused(kind, said):
    with pytest.raises(opsin.InputError, match=said):
        nets.model(networks.STRANGE[kind]())


UNREADABLE = {
    "complex numbers": "complex numbers",
    "a sparse tensor": "a sparse tensor",
    "a tensor without numbers": "a tensor on the meta device",
    "quantised numbers": "quantised numbers",
    "nothing": "no tensor but NoneType",
    "an empty tensor": "an empty tensor",
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_layer_whose_numbers_cannot_be_read_is_named_when_it_is_asked_for(kind):
    model = nets.model(networks.STRANGE[f"{kind} beside"]())
    assert torch.equal(model.run(IMAGES, ("output", "conv2"))["output"], PLAIN.run(IMAGES)["output"])
    gives = f"'mid.layer' gives {UNREADABLE[kind]}" if kind != "nothing" else "'mid.layer'.* gets no tensor"
    with pytest.raises(opsin.OpsinError, match=gives):
        model.run(IMAGES, ("mid.layer",))


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_output_whose_numbers_cannot_be_read_is_an_error_and_its_layers_can_be_seen(kind):
    model = nets.model(networks.STRANGE[f"{kind} at the end"]())
    with pytest.raises(opsin.NetworkError, match=f"Chain gives {UNREADABLE[kind]}"):
        model.run(IMAGES)
    assert torch.equal(model.run(IMAGES, ("fc",))["fc"], PLAIN.run(IMAGES)["output"])


@pytest.mark.parametrize("kind", ["whole numbers", "true and false"])
def test_whole_numbers_are_read_as_others(kind):
    run = nets.model(networks.STRANGE[f"{kind} at the end"]()).run(IMAGES, ("output", "fc"))
    assert run["output"].is_floating_point()
    assert torch.equal(run["output"], networks.ODD[kind](run["fc"]).float())


def test_a_gradient_through_quantised_layers_is_refused_and_other_techniques_are_not():
    for kind, layer in (("quantised", "Quantize"), ("quantised weights", "Linear")):
        model = nets.model(networks.STRANGE[kind]())
        with pytest.raises(opsin.NetworkError, match=rf"no gradient .* quantised layer \({layer}\)"):
            opsin.saliency(model, IMAGES, target=1)
        scores = opsin.occlusion(model, IMAGES, target=1, patch=8, stride=8).extras["score"]
        covered = IMAGES.clone()
        covered[:, :, 8:, :8] = 0.5
        expected = model.network(normalised(covered).float())[:, 1]
        torch.testing.assert_close(scores[:, 1, 0], expected, rtol=0.1, atol=0.1)  # some steps of eight bits
    assert opsin.saliency(model, IMAGES, target="conv2:1").values.any()  # before the quantised layer


@pytest.mark.parametrize(
    ("images", "said"),
    [(IMAGES.to("meta"), "meta device"), (IMAGES.to_sparse(), "sparse"), (IMAGES[:0], "empty")],
)
def test_what_is_no_dense_tensor_of_numbers_is_not_run(images, said):
    with pytest.raises(opsin.InputError, match=said):
        PLAIN.run(images)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mean": [torch.nan] * 3}, "mean and std must be finite"),
        ({"std": [0, 1, 1]}, "std not zero"),
        ({"size": 0}, "size must be one or two positive whole numbers, not 0"),
        ({"crop": 0}, "crop must be above 0 and at most 1, not 0"),
        ({"crop": torch.nan}, "crop must be above 0"),
    ],
)
def test_preprocessing_that_cannot_be_is_refused(settings, said):
    with pytest.raises(opsin.InputError, match=said):
        nets.model(nets.plain(), **settings)


def test_preprocessing_of_the_wrong_length_is_refused():
    with pytest.raises(opsin.InputError, match="1 or 3 numbers each, got 2 and 3"):
        nets.model(nets.plain(), mean=[0.5, 0.5])
    with pytest.raises(opsin.InputError, match="1 or 3 numbers each, got 1 and 3"):
        nets.model(nets.plain(), mean=[0.5])


def test_a_network_made_under_inference_mode_is_refused_or_works_and_stays_as_it_was():
    with torch.inference_mode():
        net = nets.plain()
    before = [parameter.requires_grad for parameter in net.parameters()]
    try:
        opsin.saliency(nets.model(net), IMAGES)
    except opsin.OpsinError as error:
        said = str(error)
        assert "inference" in said
    assert [parameter.requires_grad for parameter in net.parameters()] == before


def test_a_compiled_network_is_unwrapped():
    net = nets.plain()
    model = nets.model(torch.compile(net, backend="eager"))
    assert model.network is net
    assert torch.equal(model.run(IMAGES)["output"], nets.model(net).run(IMAGES)["output"])


@pytest.mark.parametrize("count", [1, 4, 6])
def test_more_or_fewer_labels_than_classes_are_told_at_the_first_use(count):
    model = nets.model(nets.plain(), labels=["cat"] * count)
    said = f"Plain has 5 classes, and the number of labels is {count}: give one per class"
    for use in (
        lambda: model.run(nets.images(1)),
        lambda: model.classes,
        lambda: opsin.saliency(model, IMAGES),
    ):
        with pytest.raises(opsin.InputError, match=said):
            use()


def test_labels_of_an_output_that_is_no_list_of_classes_are_not_counted():
    net = nets.seeded(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)))
    assert nets.model(net, labels=["cat"]).classes is None


def test_labels_and_probabilities():
    model = nets.model(nets.plain())
    assert model.classes == 5
    assert model.label(2) == "beagle"
    assert nets.model(nets.plain(), labels=None).label(2) == "class 2"
    scores = torch.tensor([[0.0, 0.0], [0.0, torch.log(torch.tensor(3.0))]])
    expected = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    torch.testing.assert_close(model.probabilities(scores), expected)
    torch.testing.assert_close(model.probabilities(expected), expected)  # a network that ends in a softmax


def test_the_probability_of_a_single_score_is_its_sigmoid():
    single = nets.seeded(nets.Chain(**{**dict(nets.Plain().named_children()), "fc": nn.Linear(6, 1)}))
    model = nets.model(single)
    scores = model.run(IMAGES)["output"]
    expected = 1 / (1 + (-scores.float()).exp())
    assert not expected.eq(1).any()
    torch.testing.assert_close(model.probabilities(scores), expected)
