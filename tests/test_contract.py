"""Every technique keeps every promise: a new one is tested because it is registered."""

import inspect
import pydoc
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import nets
import opsin
from hostile import networks
from nets import state
from opsin.registry import catalogue

SIZE = 40
TECHNIQUES = catalogue.techniques()
WITH_MODEL = {name: technique for name, technique in TECHNIQUES.items() if technique.takes_model}
ON_IMAGES = {name: technique for name, technique in TECHNIQUES.items() if technique.takes_images}
ITERATIVE = {name: technique for name, technique in TECHNIQUES.items() if technique.iterative}
WORKING = ON_IMAGES | ITERATIVE  # all that do more than look at weights
RUNNING = {
    name: technique for name, technique in WORKING.items() if name in WITH_MODEL
}  # that call the network
# those whose record names a target for each image
EXPLAINING = [n for n, t in ON_IMAGES.items() if "target" in t.parameters and not t.iterative]
AT_LAYER = [n for n, t in TECHNIQUES.items() if any(p.arg.role == "layer" for p in t.parameters.values())]
TOGETHER = {name for name, technique in TECHNIQUES.items() if technique.photos == "together"}
LAYER = "conv2"  # there in every twin
# where a technique takes them
SHORT = {
    **{"samples": 3, "searches": 1, "steps": 2, "octaves": 2, "clusters": 2, "size": SIZE},
    **{"patch": 12, "scales": 1, "window": 7},
}
CLIMBED = 1e-3  # after two steps of Adam, which divides by small numbers, in single precision
REFUSES = {
    "cam",
    "deconvnet",
    "guided_backprop",
    "guided_grad_cam",
}  # networks of another kind than the paper's
FOOLING = set(catalogue.sections()["Fooling the network"])  # of which NaN makes no sense
LISTENS_FROM = 20  # forward passes from which on work is long enough to report its steps

every = pytest.mark.parametrize("name", TECHNIQUES)
every_with_model = pytest.mark.parametrize("name", WITH_MODEL)
every_working = pytest.mark.parametrize("name", WORKING)
every_on_images = pytest.mark.parametrize("name", ON_IMAGES)
every_running = pytest.mark.parametrize("name", RUNNING)
every_iterative = pytest.mark.parametrize("name", ITERATIVE)


@cache
def small() -> opsin.Model:
    """The plain net, one for all tests: tracing it takes longer than most techniques."""
    return fresh(nets.plain())


def fresh(net: nn.Module, **settings: object) -> opsin.Model:
    return nets.model(net, **{"size": SIZE, **settings})


def photos(n: int = 2, **settings: object) -> Tensor:
    return nets.images(n, **{"h": SIZE, **settings})


def needed(name: str) -> dict[str, object]:
    """A value for every setting without a default."""
    values = {"target": 1, "images": photos(1, seed=9)}
    required = {key: p.arg.role for key, p in TECHNIQUES[name].parameters.items() if p.required}
    return {key: values[role] for key, role in required.items()}


def run(name: str, model: opsin.Model, images: Tensor | None = None, **settings: object) -> opsin.Result:
    """The technique on two photos, with few samples or steps where it takes any."""
    technique = TECHNIQUES[name]
    given = technique.inputs(model, photos() if images is None else images)
    few = {key: value for key, value in SHORT.items() if key in technique.parameters}
    return technique.run(*given, **{**few, **needed(name), **settings})


def outcome(name: str, model: opsin.Model, **settings: object) -> opsin.Result | opsin.OpsinError:
    """The result, or the error that says why there is none."""
    try:
        return run(name, model, **settings)
    except opsin.OpsinError as error:
        return error


def at_layer(name: str, layer: str = LAYER) -> dict[str, str]:
    """The layers named, where the technique takes any: twins have different last layers."""
    roles = {key: p.arg.role for key, p in TECHNIQUES[name].parameters.items()}
    return {key: layer for key, role in roles.items() if role in ("layer", "layers")}


def towards(name: str, target: object) -> dict[str, object]:
    """The target, where the technique takes one."""
    return {"target": target} if "target" in TECHNIQUES[name].parameters else {}


def arrays(result: opsin.Result) -> dict[str, Tensor]:
    """Every number of a result by what it is."""
    if isinstance(result, opsin.Gallery):
        return {f"{index} {p.group} {p.title}": p.values for index, p in enumerate(result.panels)}
    return result._to_arrays()[0]


def made(result: opsin.Result) -> list[Tensor]:
    """What a climb made and measured, without the state that it would go on from."""
    assert isinstance(result, opsin.Pictures)
    return [*(p.image for p in result.panels), *result.numbers.values()]


def shared(one: opsin.Result, other: opsin.Result) -> list[tuple[Tensor, Tensor]]:
    """The numbers of two results that both have: a functional rectifier is no layer to show."""
    if isinstance(one, opsin.Gallery):
        a, b = ({(p.group, p.title): p.values for p in result.panels} for result in (one, other))
    else:
        a, b = arrays(one), arrays(other)
    both = [(a[key], b[key]) for key in a if key in b]
    assert len(both) > len(a) / 2
    return both


def same_bits(one: opsin.Result, other: opsin.Result) -> bool:
    a, b = arrays(one), arrays(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def same_numbers(one: opsin.Result, other: opsin.Result) -> bool:
    """Whatever the precision that they were given in."""
    a, b = arrays(one), arrays(other)
    return a.keys() == b.keys() and all(torch.equal(a[key].float(), b[key].float()) for key in a)


def close(one: opsin.Result, other: opsin.Result, tolerance: float = 1e-9) -> None:
    for a, b in shared(one, other):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def world() -> list[object]:
    """The global state that is not the network's.

    Without Python's own generator: the type checks of these tests draw from it.
    """
    numpy = np.random.get_state()
    return [
        torch.get_rng_state().tolist(),
        [part.tolist() if isinstance(part, np.ndarray) else part for part in numpy],
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
    ]


class Troubled(nets.Normed):
    """As training leaves a network: half frozen, with gradients, buffers and hooks; it fails on demand."""

    def __init__(self) -> None:
        super().__init__(nn.ReLU)
        self.drop = nn.Dropout(0.5)
        self.fuse: list[BaseException] = []
        self.backward_fuse: list[BaseException] = []
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        x = self.drop(self.relu1(self.bn1(self.conv1(x))))
        if self.fuse and len(self.calls) >= self.fuse[0]:
            raise self.fuse[1]
        x = self.relu2(self.bn2(self.conv2(x)))
        if x.requires_grad and self.backward_fuse:
            x = Fails.apply(x, self.backward_fuse[0])
        return self.fc(x.mean((2, 3)))


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(context, x: Tensor, error: BaseException) -> Tensor:
        context.error = error
        return x.clone()

    @staticmethod
    def backward(context, _signal: Tensor) -> tuple[Tensor, None]:
        raise context.error


def troubled() -> Troubled:
    net = nets.seeded(Troubled())
    net.train()
    net.bn2.eval()
    net.conv1.weight.requires_grad_(False)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    net.conv2.register_forward_hook(lambda *_: None)
    net.fc.register_full_backward_hook(lambda *_: None)
    return net


def warmed(net: nn.Module, **settings: object) -> opsin.Model:
    """A model whose layers have been traced, so that what is counted from now on is the technique's own."""
    model = fresh(net, **settings)
    assert model.calls
    assert model.default_layer
    return model


class StopError(Exception):
    pass


# --- it runs, and says what it is


@every
def test_runs_from_its_defaults_and_gives_a_finite_result_with_its_record(name):
    defaults = {key: p.default for key, p in TECHNIQUES[name].parameters.items() if not p.required}
    if name in ITERATIVE:
        defaults = {key: value for key, value in defaults.items() if key not in SHORT}
    result = run(name, small(), **defaults)
    assert isinstance(result, opsin.Result)
    assert arrays(result)
    for values in arrays(result).values():
        assert values.numel()
        assert values.isfinite().all()
    assert result.record.technique == name
    assert result.record.paper == TECHNIQUES[name].paper
    assert set(TECHNIQUES[name].parameters) <= set(result.record.arguments)
    if name in WITH_MODEL:
        assert result.record.model["sha256"] == small().weigh().fingerprint
    else:
        assert result.record.model == {}


@pytest.mark.parametrize("name", EXPLAINING)
@pytest.mark.parametrize("target", [None, "beagle", "conv2:1", "conv2:1 - 2*beagle", ["tiger cat", "beagle"]])
def test_the_record_names_what_was_explained_on_each_image(name, target):
    result = outcome(name, small(), target=target)
    if isinstance(result, opsin.OpsinError):
        assert name in {"cam", "layers", "deconvnet"}  # which say that they explain no such target
        return
    if name == "deconvnet" and target is None:  # whose own target is the strongest unit
        assert all(scored.name.startswith("relu2:") for scored in result.record.targets)
        return
    net, normed = (
        nets.plain(),
        (photos() - torch.tensor(nets.MEAN).view(-1, 1, 1)) / torch.tensor(nets.STD).view(-1, 1, 1),
    )
    with torch.no_grad():
        scores, units = net(normed), net.conv2(net.pool(net.relu1(net.conv1(normed))))
    units = units[:, 1].mean((1, 2))
    if target == "conv2:1":
        expected = [("conv2:1", unit, None) for unit in units]
    elif target == "conv2:1 - 2*beagle":
        expected = [("conv2:1 - 2*2 (beagle)", value, None) for value in units - 2 * scores[:, 2]]
    else:
        classes = scores.argmax(1) if target is None else [2, 2] if target == "beagle" else [1, 2]
        shares = scores.softmax(1)
        expected = [(nets.LABELS[c], scores[i, c], shares[i, c]) for i, c in enumerate(classes)]
    assert len(result.record.targets) == len(expected)
    for scored, (label, score, probability) in zip(result.record.targets, expected, strict=True):
        assert scored.name == label
        assert scored.score == pytest.approx(float(score), rel=1e-5)
        assert scored.probability == (
            None if probability is None else pytest.approx(float(probability), rel=1e-4)
        )


@pytest.mark.parametrize("name", [name for name in TECHNIQUES if name not in EXPLAINING])
def test_a_technique_without_a_target_or_images_scores_none(name):
    assert run(name, small()).record.targets == ()


@pytest.mark.parametrize("name", AT_LAYER)
def test_the_record_names_the_layer_that_was_taken(name):
    assert run(name, small()).record.arguments["layer"] == small().default_layer
    assert run(name, small(), layer="conv1").record.arguments["layer"] == "conv1"


@every_iterative
def test_a_climb_makes_pictures_and_keeps_what_it_measured_and_what_it_was_given(name):
    result = run(name, small())
    assert isinstance(result, opsin.Pictures)
    assert result.numbers
    for panel in result.panels:
        assert panel.image.shape[0] == 3
        assert panel.image.min() >= 0
        assert panel.image.max() <= 1
    arrays = {name.rpartition("/")[2] for name in result.state}
    assert {"parameters", "number", "generator", "scores", "finished"} <= arrays
    assert sum(not value for name, value in result.state.items() if name.endswith("/finished")) == 1
    if name in ON_IMAGES:
        assert torch.equal(result.state["given.images"], photos())
    for key, parameter in TECHNIQUES[name].parameters.items():
        if parameter.required and parameter.arg.role == "images":
            assert torch.equal(result.state[f"given.{key}.0"], needed(name)[key])


@every_on_images
def test_a_map_has_a_row_for_each_image_and_keeps_the_images(name):
    result = run(name, small(), photos(3))
    if isinstance(result, opsin.Heatmap):
        assert len(result.values) == 3
        assert result.values.ndim == 4
        assert torch.equal(result.images, photos(3))
        assert all(len(extra) == 3 for extra in result.extras.values())
        assert result.signed or not (result.values < 0).any()


@every
def test_is_public_documented_and_cited(name):
    technique = TECHNIQUES[name]
    assert technique.name == name
    assert getattr(opsin, name) is technique.run
    assert name in opsin.__all__
    assert catalogue.names()[name] == technique.summary
    assert technique.summary.endswith(".")
    assert technique.reading.endswith(".")
    assert len(technique.paper) > 20
    assert any(character.isdigit() for character in technique.paper)  # at least its year
    for parameter in technique.parameters.values():
        assert len(parameter.arg.help) > 5
        plain = parameter.default is None or isinstance(parameter.default, int | float | str)
        assert plain or parameter.required or parameter.default == ()


@every
def test_draws_itself(name):
    result = run(name, fresh(nets.plain(dtype=torch.float32)), photos(dtype=torch.float32))
    pictures = result.pictures()
    assert pictures
    for caption, picture in pictures:
        assert caption
        assert isinstance(picture, Image.Image)
        assert picture.mode == "RGB"
    if isinstance(result, opsin.Heatmap):
        assert [picture.size for _, picture in pictures] == [(SIZE, SIZE)] * 2
    page = result._repr_html_()
    each = 3 if isinstance(result, opsin.Heatmap) else 1  # of a map also the photo and the scale
    assert page.count("<img") == each * min(len(pictures), 9)
    assert name in page
    assert len(page) < 300_000
    lines = repr(result).splitlines()
    assert 2 <= len(lines) <= 5
    assert (f"{name} on {result.record.model['name']}" if name in WITH_MODEL else name) in lines[0]
    assert all(len(line) <= 100 for line in lines)


@every
def test_its_files_say_what_they_are(name, tmp_path):
    result = run(name, small(), **(towards(name, ["tiger cat", "beagle"]) if name in EXPLAINING else {}))
    result.save(tmp_path / "out")
    names = [file for file, _ in result.files()]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == sorted(names)
    assert len(set(names)) == len(names)
    for file in names:
        assert re.fullmatch(r"[a-z][a-z0-9_]*(-[a-z0-9_]+)*\.png", file)
    if isinstance(result, opsin.Heatmap) and name in EXPLAINING:
        assert names == [f"{name}-tiger_cat.png", f"{name}-beagle.png"]


@every
def test_its_parts_are_results_too(name, tmp_path):
    result = run(name, small())
    parts = list(result)
    assert len(parts) == len(result)
    for part in (parts[-1], result[0]):
        assert type(part) is type(result)
        assert len(part) == 1
        part.save(tmp_path / "out")
        assert opsin.Result.load(tmp_path / "out") == part
    if isinstance(result, opsin.Heatmap | opsin.Pictures):
        whole = np.asarray(result)
        assert len(whole) == len(result)
        for row, part in zip(whole, parts, strict=True):
            np.testing.assert_array_equal(np.asarray(part)[0], row)
    if name in EXPLAINING and isinstance(result, opsin.Heatmap):
        assert [part.record.targets for part in parts] == [(target,) for target in result.record.targets]


@pytest.mark.parametrize("name", AT_LAYER)
def test_a_list_of_layers_gives_a_result_for_each(name):
    results = run(name, small(), layer=["relu2", "conv1"])
    assert results == [run(name, small(), layer="relu2"), run(name, small(), layer="conv1")]
    with pytest.raises(opsin.InputError, match=r"'conv9'.*conv"):
        run(name, small(), layer=["conv1", "conv9"])
    for bad in ([], [3], ["conv1", None]):
        with pytest.raises(opsin.InputError, match="layers' names"):
            run(name, small(), layer=bad)


@every
def test_help_has_its_equation_settings_and_paper_in_plain_words(name):
    technique = TECHNIQUES[name]
    text = pydoc.plain(pydoc.render_doc(technique.run))
    flat = " ".join(text.split())
    assert "Annotated" not in text
    assert "jaxtyping" not in text
    assert "Objective" not in text.splitlines()[2]
    assert " ".join(technique.docstring.split()) in flat
    assert technique.paper in flat
    assert technique.reading in flat
    for key, parameter in technique.parameters.items():
        assert f"{key}: {parameter.arg.help}" in flat
        if parameter.arg.role == "value" and parameter.default is not None and not parameter.required:
            assert f"(default {parameter.default!r})" in flat
    assert ("list of layers" in text) == (name in AT_LAYER)
    assert list(inspect.signature(technique.run).parameters)[
        : technique.takes_model + technique.takes_images
    ] == technique.inputs("model", "images")


@every
def test_save_then_load_is_the_identity(name, tmp_path):
    result = run(name, small())
    folder = result.save(tmp_path / "out")
    loaded = opsin.Result.load(folder)
    assert loaded == result
    assert loaded.record == result.record
    assert type(loaded) is type(result)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


# --- it gives the same, whatever the way


@every
def test_the_same_call_gives_the_same_bits(name):
    first = run(name, fresh(nets.plain()))
    torch.rand(7), np.random.rand(7), random.random()
    again = run(name, fresh(nets.plain()))
    assert same_bits(first, again)
    assert first == again


@every_with_model
def test_a_model_may_be_used_again(name):
    model = small()
    assert run(name, model) == run(name, model)


@every_on_images
@pytest.mark.parametrize("target", [None, 1])
def test_a_batch_gives_what_single_images_give(name, target):
    if name in TOGETHER:
        pytest.skip("one result of the whole batch")
    model, images, settings = small(), photos(3), towards(name, target)
    together = run(name, model, images, **settings)
    alone = [run(name, model, image[None], **settings) for image in images]
    if name in ITERATIVE:
        same_pictures_as_alone(together, alone)
        return
    together, alone = arrays(together), [arrays(one) for one in alone]
    if len(together) > len(alone[0]):  # panels, one image after the other
        together = list(together.values())
        alone = [panel for one in alone for panel in one.values()]
    else:
        together, alone = (
            [together[key] for key in together],
            [torch.cat([one[key] for one in alone]) for key in together],
        )
    assert len(together) == len(alone)
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def same_pictures_as_alone(together: opsin.Pictures, alone: list[opsin.Pictures]) -> None:
    for group in {panel.group for panel in together.panels}:
        a = [panel.image for panel in together.panels if panel.group == group]
        b = [panel.image for one in alone for panel in one.panels if panel.group == group]
        torch.testing.assert_close(torch.stack(a), torch.stack(b), rtol=CLIMBED, atol=CLIMBED)


@every_on_images
def test_each_image_may_have_its_own_target(name):
    model, images = small(), photos(2)
    if name in TOGETHER and "target" in ON_IMAGES[name].parameters:
        with pytest.raises(opsin.InputError, match="one target"):
            run(name, model, images, target=[3, "beagle"])
        return
    result = run(name, model, images, **towards(name, [3, "beagle"]))
    if isinstance(result, opsin.Heatmap):
        for index, target in enumerate((3, 2)):
            alone = run(name, model, images[index : index + 1], **towards(name, target))
            torch.testing.assert_close(result.values[index : index + 1], alone.values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in ITERATIVE if n not in ON_IMAGES])
def test_each_target_has_its_own_picture(name):
    # without a max pool: on the even picture that a class model starts from, all its windows would be ties
    model = fresh(nets.normed(inplace=False))
    result = run(name, model, target="3; beagle")
    assert [panel.group for panel in result.panels] == ["3 (goldfish, Carassius auratus)", "2 (beagle)"]
    if name != "feature_visualization":  # its noise is another for every picture
        for panel, target in zip(result.panels, (3, 2), strict=True):
            alone = run(name, model, target=target).images[0]
            torch.testing.assert_close(panel.image, alone, rtol=CLIMBED, atol=CLIMBED)


@every_with_model
@pytest.mark.parametrize("twin", nets.TWINS)
def test_a_twin_gives_the_same(name, twin):
    settings = at_layer(name)
    tolerance = CLIMBED if name in ITERATIVE else 1e-9
    close(run(name, fresh(nets.TWINS[twin]()), **settings), run(name, small(), **settings), tolerance)


@every_with_model
@pytest.mark.parametrize("layer", ["conv1", "relu2"])
@pytest.mark.parametrize("layout", [layout for layout in nets.PERMUTED if layout != "maps"])
def test_a_twin_whose_layers_lie_otherwise_gives_the_same(name, layout, layer):
    model, twin = fresh(nets.permuted("maps")), fresh(nets.permuted(layout))
    assert twin.call(layer).layout == layout
    settings = at_layer(name, layer) | towards(name, "3; 1" if name not in ITERATIVE else f"{layer}:4")
    tolerance = CLIMBED if name in ITERATIVE else 1e-9
    expected, result = (outcome(name, one, **settings) for one in (model, twin))
    assert type(result) is type(expected)
    if isinstance(expected, opsin.OpsinError):
        assert str(result) == str(expected)
    elif name == "layers":  # shows tokens that are no positions among the rest
        maps = {(p.group, p.title): p.values for p in expected.panels if "activations" in p.title}
        others = {(p.group, p.title): p.values for p in result.panels if "activations" in p.title}
        assert maps.keys() == others.keys()
        for key, values in maps.items():
            torch.testing.assert_close(others[key], values, rtol=tolerance, atol=tolerance)
    else:
        close(result, expected, tolerance)


def test_no_two_of_size_channels_and_tokens_are_equal_in_a_network_of_the_contract():
    for net in (nets.plain(), nets.vit(), nets.channels_last(), *map(nets.permuted, nets.PERMUTED)):
        for call in fresh(net).calls.values():
            if call.layout != "vector" and call.extent not in (None, (1, 1)):
                sides = set(call.extent) | ({call.shape[1]} if call.layout == "tokens" else set())
                channels = call.shape[1] if call.layout == "maps" else call.shape[-1]
                assert channels not in sides


@every_with_model
@pytest.mark.parametrize("layer", ["bn1", "bn2"])
def test_a_batch_normalisation_before_an_in_place_rectifier_is_not_overwritten(name, layer):
    settings = at_layer(name, layer) if name in RUNNING else {}
    kept, overwritten = (fresh(nets.normed(inplace=inplace)) for inplace in (False, True))
    tolerance = CLIMBED if name in ITERATIVE else 1e-9
    close(run(name, overwritten, **settings), run(name, kept, **settings), tolerance)


@every_with_model
def test_a_frozen_network_gives_what_a_trainable_one_gives(name):
    frozen = nets.plain().requires_grad_(False)
    assert same_bits(run(name, fresh(frozen)), run(name, small()))


@every
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(name, mode):
    expected = run(name, small())
    with mode():
        result = run(name, fresh(nets.plain() if mode is torch.no_grad else MADE_OUTSIDE), photos())
    assert same_bits(result, expected)


MADE_OUTSIDE = nets.plain()  # weights that are made under inference_mode cannot be differentiated


@every_on_images
def test_images_that_require_a_gradient_are_like_others(name):
    images = photos().requires_grad_()
    assert same_bits(run(name, small(), images), run(name, small()))
    assert images.grad is None


@every_on_images
def test_images_of_half_precision_give_what_they_give_in_single(name):
    model, images = fresh(nets.plain(dtype=torch.float32)), photos().half()
    assert same_numbers(run(name, model, images), run(name, model, images.float()))


@every_with_model
def test_training_mode_does_not_matter(name):
    evaluated, training = (nets.normed(inplace=False) for _ in range(2))
    assert same_bits(run(name, fresh(training.train())), run(name, fresh(evaluated)))


@every_running
@pytest.mark.parametrize("net", [nets.two_heads, nets.with_logits])
def test_an_output_that_is_a_tuple_or_an_object_is_like_a_plain_one(name, net):
    assert same_bits(run(name, fresh(net())), run(name, small()))


@every_with_model
def test_a_network_for_grey_images_works(name):
    result = run(name, nets.grey_model(size=SIZE))
    assert all(values.isfinite().all() for values in arrays(result).values())


@every_with_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_of_half_precision_works_or_says_why_not(name, dtype):
    # few points of a path, and squares that change little, differ by rounding alone
    steadier = {"integrated_gradients": {"samples": 64}, "occlusion": {"patch": 16, "stride": 8}}
    settings = towards(name, 1) | steadier.get(name, {})
    expected = run(name, small(), **settings)
    result = outcome(name, fresh(nets.plain(dtype=dtype)), **settings)
    if isinstance(result, opsin.OpsinError):
        assert "float" in str(result)
        return
    for half, whole in shared(result, expected):
        assert half.shape == whole.shape
        assert half.isfinite().all()
    if isinstance(result, opsin.Heatmap):
        half, whole = result.values.double(), expected.values
        assert (half - whole).norm() < 0.2 * whole.norm()


@every_on_images
@pytest.mark.parametrize(
    "settings", [{}, {"size": (37, 45)}], ids=["of a square model", "of the model's size"]
)
def test_odd_image_sizes_work(name, settings):
    result = run(name, fresh(nets.plain(), **settings), photos(2, h=37, w=45))
    assert all(values.isfinite().all() for values in arrays(result).values())
    if isinstance(result, opsin.Heatmap):
        coarse = tuple(result.values.shape[-2:])
        assert coarse in {(37, 45), (18, 22)}
        assert [picture.size for _, picture in result.pictures()] == [(45, 37)] * 2


@every_running
def test_a_transformer_and_a_channels_last_network_work_or_are_refused(name):
    for net in (nets.vit(), nets.channels_last()):
        result = outcome(name, fresh(net))
        if isinstance(result, opsin.Result):
            assert all(values.isfinite().all() for values in arrays(result).values())
        else:
            assert isinstance(result, opsin.NetworkError)
            assert name in REFUSES


@every
def test_threads_that_share_a_model_get_what_one_alone_gets(name):
    model = small()
    batches = [photos(3 if name in TOGETHER else 1, seed=seed) for seed in range(4)]
    alone = [run(name, model, images) for images in batches]
    untraced = fresh(nets.plain())
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda images: run(name, untraced, images), batches * 2))
    for got, expected in zip(together, alone * 2, strict=True):
        assert same_bits(got, expected)
        assert got.record.notes == expected.record.notes


# --- it leaves everything as it was


@every_with_model
def test_the_model_is_left_as_it_was(name):
    net = troubled()
    before = state(net)
    run(name, fresh(net))
    assert state(net) == before


@every_with_model
@pytest.mark.parametrize("net", [nets.in_place, nets.vit])
def test_other_networks_are_left_as_they_were(name, net):
    net = net()
    before = state(net)
    outcome(name, fresh(net))
    assert state(net) == before


@every_with_model
def test_a_network_that_changes_itself_is_left_as_it_was(name):
    net = networks.editing()
    before = state(net)
    outcome(name, fresh(net))
    assert state(net) == before


@every_with_model
@pytest.mark.parametrize("kind", networks.NORMS)
def test_weights_that_are_computed_anew_are_left_as_they_were(name, kind):
    net = networks.normed(kind)
    before = state(net)
    outcome(name, fresh(net))
    assert state(net) == before


@every
def test_the_global_state_is_left_as_it_was(name):
    model = fresh(troubled())
    before = world()
    run(name, model)
    assert world() == before


def test_pythons_generator_is_left_as_it_was():
    code = """
import random
import nets
import test_contract
from opsin.registry import catalogue
model = nets.model(nets.plain(), size=40)
for name, technique in catalogue.techniques().items():
    before = random.getstate()
    test_contract.run(name, model)
    assert random.getstate() == before, name
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


@every_with_model
def test_a_network_that_draws_random_numbers_moves_no_global_generator(name):
    model = fresh(nets.seeded(nets.Chain(noise=Noise(), plain=nets.plain())))
    before = world()
    run(name, model)
    assert world() == before


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01 * torch.randn_like(x)


@every_running
@pytest.mark.parametrize(
    ("when", "error", "raised"),
    [("first", ValueError("no"), opsin.NetworkError), ("last", KeyboardInterrupt(), KeyboardInterrupt)],
    ids=["the first, by an error", "the last, by an interrupt"],
)
def test_a_forward_that_fails_leaves_everything_as_it_was(name, when, error, raised):
    net = troubled()
    model = warmed(net)
    net.calls.clear()
    settings = at_layer(name) if name in ITERATIVE else {}  # behind the place that fails
    run(name, model, **settings)
    fails_at = 1 if when == "first" else len(net.calls)
    net.calls.clear()
    net.fuse[:] = [fails_at, error]
    before, outside = state(net), world()
    with pytest.raises(raised):
        run(name, model, **settings)
    assert state(net) == before
    assert world() == outside


@every_running
def test_a_backward_that_fails_leaves_everything_as_it_was(name):
    net = troubled()
    model = warmed(net)
    before, outside = state(net), world()
    net.backward_fuse.append(StopError())
    with suppress(StopError):  # a technique without gradients does not meet it
        run(name, model)
    net.backward_fuse.clear()
    assert state(net) == before
    assert world() == outside


@every_working
def test_cancelling_at_any_step_leaves_everything_as_it_was(name):
    net = troubled()
    model = warmed(net)
    seen = []
    with opsin.listening(seen.append):
        expected = run(name, model)
    if WORKING[name].cost > LISTENS_FROM:
        assert seen
    before, outside = state(net), world()
    for stop_at in {0, len(seen) // 2, len(seen) - 1} if seen else ():
        steps = iter(range(len(seen)))

        def listener(_step, steps=steps, stop_at=stop_at):
            if next(steps) == stop_at:
                raise StopError

        with pytest.raises(StopError), opsin.listening(listener):
            run(name, model)
        assert state(net) == before
        assert world() == outside
    assert same_bits(run(name, model), expected)


@every_working
def test_steps_count_up_to_their_total(name):
    seen = []
    with opsin.listening(seen.append):
        run(name, small())
    heard = len(seen)
    if name in ITERATIVE and "steps" in TECHNIQUES[name].parameters:
        assert [(step.done, step.total) for step in seen] == [(1, 2), (2, 2)] * (heard // 2)
    elif name in ITERATIVE:
        for label in dict.fromkeys(step.label for step in seen):
            own = [step for step in seen if step.label == label]
            assert [step.done for step in own] == sorted({step.done for step in own})
            assert {step.total for step in own} == {own[-1].done}
    else:
        assert [step.done for step in seen] == list(range(heard))
        assert {step.label for step in seen} <= {name}
        assert {step.total for step in seen} <= {heard - 1}
    run(name, small())
    assert len(seen) == heard  # nobody listens any more


@every_iterative
def test_a_step_of_a_climb_says_what_it_is_and_shows_its_score_and_pictures(name):
    seen = []

    def listener(step):
        images = step.images()
        assert images.shape[1] == 3
        assert images.min() >= 0
        assert images.max() <= 1
        assert isinstance(step.score, float)
        assert step.label
        seen.append(images)

    with opsin.listening(listener):
        result = run(name, small())
    assert any(torch.equal(panel.image, seen[-1][-1]) for panel in result.panels)


@every_iterative
def test_a_listener_that_has_seen_enough_gets_the_picture_so_far(name):
    net = troubled()
    model = warmed(net)
    before, outside = state(net), world()
    for stop_at in (1, 2):
        seen = []

        def listener(step, seen=seen, stop_at=stop_at):
            seen.append(step)
            if len(seen) == stop_at:
                raise opsin.StopEarly

        with opsin.listening(listener):
            result = run(name, model)
        assert len(seen) == stop_at
        at = f"stopped at step {seen[-1].done} of {seen[-1].total}"
        assert any(at in said for said in result.record.notes)
        assert result.panels
        assert all(panel.image.isfinite().all() for panel in result.panels)
        assert result._repr_html_()
        (scores,) = (value for name, value in result.state.items() if name.endswith("/scores"))
        assert len(scores) == stop_at
    assert state(net) == before
    assert world() == outside


@every
def test_a_result_does_not_change_with_the_weights_and_images_that_it_came_from(name):
    net = nets.plain(dtype=torch.float32)
    images = photos(dtype=torch.float32)
    result = run(name, fresh(net), images)
    before = {key: values.clone() for key, values in arrays(result).items()}
    with torch.no_grad():
        images.zero_()
        for parameter in net.parameters():
            parameter.zero_()
    assert all(torch.equal(values, before[key]) for key, values in arrays(result).items())


# --- what cannot be used is refused by name


@pytest.mark.parametrize(
    ("name", "parameter"), [(name, parameter) for name, t in TECHNIQUES.items() for parameter in t.parameters]
)
def test_a_setting_of_the_wrong_kind_or_out_of_range_is_refused(name, parameter):
    about = TECHNIQUES[name].parameters[parameter]
    bad: list[object] = [object(), 1.5j]
    kind = (get_args(about.type) or (about.type,))[0]  # of X | None the X
    if about.arg.least is not None:
        bad.append(kind(about.arg.least - 1))
    if about.arg.most is not None:
        bad.append(kind(about.arg.most + 1))
    if kind is int:
        bad.append(2**70)
    if kind is float:
        bad.append(float("nan") if about.arg.least is not None else "0.1")
    for value in bad:
        with pytest.raises(opsin.InputError):
            run(name, small(), **{parameter: value})


@pytest.mark.parametrize(
    ("name", "parameter"), [(name, parameter) for name in RUNNING for parameter in at_layer(name)]
)
def test_an_unknown_layer_is_named_with_the_nearest(name, parameter):
    with pytest.raises(opsin.InputError, match=r"'conv9'.*conv"):
        run(name, small(), **{parameter: "conv9"})


@pytest.mark.parametrize("name", [n for n, t in TECHNIQUES.items() if "target" in t.parameters])
def test_an_unknown_class_is_named_with_the_nearest(name):
    with pytest.raises(opsin.InputError, match=r"'beagel'.*beagle"):
        run(name, small(), target="beagel")
    with pytest.raises(opsin.InputError, match=r"5.*0 to 4"):
        run(name, small(), target=5)
    with pytest.raises(opsin.InputError, match=r"'conv9'.*conv"):
        run(name, small(), target="conv9:0")


@every_on_images
@pytest.mark.parametrize(
    ("images", "said"),
    [
        (photos() + 1, r"\[0, 1\]"),
        (photos() - 0.5, r"\[0, 1\]"),
        (photos() * torch.nan, r"\[0, 1\]"),
        (photos()[0], r"\(3, 40, 40\)"),
        (photos()[:, :1], r"\(2, 1, 40, 40\)"),
        (photos()[:0], r"\(0, 3, 40, 40\)"),
        ((photos() * 255).byte(), "uint8"),
        (photos().numpy(), "ndarray"),
        ("photo.jpg", "str"),
    ],
    ids=["above", "below", "NaN", "three axes", "one channel", "none", "bytes", "NumPy", "a name"],
)
def test_images_that_are_none_are_refused(name, images, said):
    with pytest.raises(opsin.InputError, match=said):
        ON_IMAGES[name].run(*ON_IMAGES[name].inputs(small(), images), **needed(name))


@every_with_model
def test_a_bare_network_is_refused(name):
    images = (photos(),) if TECHNIQUES[name].takes_images else ()
    with pytest.raises(opsin.InputError, match=r"opsin\.Model.*Plain"):
        TECHNIQUES[name].run(nets.plain(), *images, **needed(name))


# --- what it says is true


@every_with_model
def test_a_nan_among_the_weights_is_named_in_the_record(name):
    net = nets.plain()
    net.fc.weight.data[4, 0] = torch.nan  # the scores of the other classes are as before, not their gradients
    settings = towards(name, 1) | (at_layer(name) if name in ITERATIVE else {})
    result = outcome(name, fresh(net), **settings)
    if name in {*ITERATIVE, *FOOLING} and isinstance(result, opsin.NetworkError):
        assert "nan" in str(result).lower()
        return
    assert any("NaN" in said for said in result.record.notes)
    assert not any("NaN" in said for said in run(name, small(), **settings).record.notes)


@every_running
def test_a_network_that_gives_nan_is_explained_with_a_warning_or_refused(name):
    net = nets.plain()
    net.conv1.weight.data[0] = torch.nan
    result = outcome(name, fresh(net))
    told = [str(result)] if isinstance(result, opsin.OpsinError) else result.record.notes
    assert any("nan" in said.lower() for said in told)


@every_running
@pytest.mark.parametrize("kind", networks.NOT_FINITE)
def test_what_is_not_finite_is_named_with_the_layer_where_it_begins_or_refused(name, kind):
    settings = towards(name, 1) | at_layer(name)  # behind the layer where it begins
    result = outcome(name, fresh(networks.NOT_FINITE[kind]()), **settings)
    if name in {*ITERATIVE, *FOOLING}:
        assert isinstance(result, opsin.NetworkError)
        assert "nan" in str(result).lower() or "inf" in str(result)
        return
    (said,) = [note for note in result.record.notes if "NaN" in note]
    assert said.startswith("Caution: NaN or infinite numbers in the target's score")
    assert said.endswith("; on image 0, 1 they begin in layer 'mid' (Giving)")
    for part in result.not_finite()[:3]:
        assert part in said


@every_with_model
@pytest.mark.parametrize("kind", networks.STRANGE)
def test_a_strange_network_is_explained_or_refused_with_an_error_of_opsins(name, kind):
    with suppress(opsin.OpsinError):
        assert run(name, fresh(networks.STRANGE[kind]()))._repr_html_()


@every_with_model
def test_a_map_of_zeros_is_named_in_the_record(name):
    net = nets.plain()
    net.fc.weight.data.zero_()  # the scores are the same whatever is seen
    settings = towards(name, 1) | (at_layer(name) if name in ITERATIVE else {})
    result = outcome(name, fresh(net), **settings)
    if isinstance(result, opsin.Heatmap):
        blank = [str(i) for i, values in enumerate(result.values) if float(values.abs().max()) == 0]
        said = [note for note in result.record.notes if "zero everywhere" in note]
        assert said == [f"Caution: the map is zero everywhere for image {', '.join(blank)}"] * bool(blank)
        assert blank
        assert not any("zero everywhere" in note for note in run(name, small(), **settings).record.notes)


def share(x: Tensor) -> float:
    """Of photos of the default network's size; a larger one counts as one."""
    return len(x) * min(1, x[0, 0].numel() / 224**2)


class Counted(nn.Module):
    """Counts the images that go through it in either direction."""

    def __init__(self, measure: Callable[[Tensor], float] = len) -> None:
        super().__init__()
        self.count = Counter()
        self.measure = measure

    def forward(self, x: Tensor) -> Tensor:
        self.count["forward"] += self.measure(x)
        return CountedBackward.apply(x, self)


class CountedBackward(torch.autograd.Function):
    @staticmethod
    def forward(context, x: Tensor, counted: Counted) -> Tensor:
        context.counted = counted
        return x.clone()

    @staticmethod
    def backward(context, signal: Tensor) -> tuple[Tensor, None]:
        context.counted.count["backward"] += context.counted.measure(signal)
        return signal, None


# the cost of inversion depends on how deep its layers lie, of integrated gradients on how the score bends
DEPENDING = ("inversion", "integrated_gradients")
LEAVING = (
    "apgd",
    "deepfool",
    "lbfgs_attack",
    "square",
    "universal",
)  # whose photos leave the batch once they are fooled
MEASURABLE = [
    name for name, about in RUNNING.items() if name not in DEPENDING + LEAVING and not about.per_channel
]
LINE_SEARCH = 1.3  # what L-BFGS may take in place of one evaluation a step
ONCE = 6  # passes before and after the steps of a climb, which its cost leaves out


@pytest.mark.parametrize("name", MEASURABLE)
def test_the_cost_is_what_is_counted_at_the_size_of_the_default_network(name):
    counted = Counted(share if name in ITERATIVE else len)
    net = nets.seeded(
        nets.Chain(
            counted=counted,
            conv=nn.Conv2d(3, 4, 16, stride=16),
            relu=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(4, 5),
        ),
        dtype=torch.float32,
    )
    model, technique = warmed(net, size=224), RUNNING[name]
    n = 1 if not technique.takes_images else 4 if name in TOGETHER else 2
    images = (photos(n, h=224, dtype=torch.float32),) if technique.takes_images else ()

    def spent(**settings):
        counted.count.clear()
        technique.run(model, *images, **needed(name), **settings)
        return (counted.count["forward"] + 2 * counted.count["backward"]) / n

    if name in ITERATIVE:  # its steps cost the same, so that a few of them tell
        few, more = spent(steps=2), spent(steps=6)
        total = few + (more - few) / 4 * (technique.parameters["steps"].default - 2)
    else:
        total = spent()
    allowed = LINE_SEARCH if "optimiser" in technique.parameters else 1
    assert total <= allowed * technique.cost + (ONCE if name in ITERATIVE else 0)
    assert total >= 0.5 * technique.cost
