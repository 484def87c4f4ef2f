"""Every technique keeps every promise: a new one is tested because it is registered."""

import random
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import nets
import opsin
from opsin import registry

SIZE = 40  # the default patch of occlusion fits in
TECHNIQUES = registry.techniques()
ON_IMAGES = {name: technique for name, technique in TECHNIQUES.items() if technique.takes_images}
LAYER = "conv2"  # there in every twin
REFUSES = {
    "cam",
    "deconvnet",
    "guided_backprop",
    "guided_grad_cam",
}  # networks of another kind than the paper's
LISTENS_FROM = 20  # forward passes from which on work is long enough to report its steps

every = pytest.mark.parametrize("name", TECHNIQUES)
every_on_images = pytest.mark.parametrize("name", ON_IMAGES)


@cache
def small() -> opsin.Model:
    """The plain net, one for all tests: tracing it takes longer than most techniques."""
    return fresh(nets.plain())


def fresh(net: nn.Module, **settings: object) -> opsin.Model:
    return nets.model(net, **{"size": SIZE, **settings})


def photos(n: int = 2, **settings: object) -> Tensor:
    return nets.images(n, **{"h": SIZE, **settings})


def run(name: str, model: opsin.Model, images: Tensor | None = None, **settings: object) -> opsin.Result:
    """The technique on two photos, with few samples where it takes any."""
    technique = TECHNIQUES[name]
    given = () if not technique.takes_images else (photos() if images is None else images,)
    few = {"samples": 3} if "samples" in technique.parameters else {}
    return technique.run(model, *given, **{**few, **settings})


def outcome(name: str, model: opsin.Model, **settings: object) -> opsin.Result | opsin.OpsinError:
    """The result, or the error that says why there is none."""
    try:
        return run(name, model, **settings)
    except opsin.OpsinError as error:
        return error


def at_layer(name: str) -> dict[str, str]:
    """The layer named, where the technique takes one: twins have different last layers."""
    return {"layer": LAYER} if "layer" in TECHNIQUES[name].parameters else {}


def arrays(result: opsin.Result) -> dict[str, Tensor]:
    """Every number of a result by what it is."""
    if isinstance(result, opsin.Gallery):
        return {f"{index} {p.group} {p.title}": p.values for index, p in enumerate(result.panels)}
    return result._take_apart()[0]


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


def close(one: opsin.Result, other: opsin.Result, tolerance: float = 1e-9) -> None:
    for a, b in shared(one, other):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def hooks(module: nn.Module) -> dict[str, list[int]]:
    return {
        key: sorted(map(id, value.values())) for key, value in vars(module).items() if key.endswith("_hooks")
    }


def state(net: nn.Module) -> dict[str, object]:
    """All that a technique might leave changed in a network; comparable."""
    parameters = dict(net.named_parameters())
    world = nn.modules.module
    return {
        "modules": [(name, id(module), type(module)) for name, module in net.named_modules()],
        "attributes": [sorted(vars(module)) for module in net.modules()],
        "training": [module.training for module in net.modules()],
        "hooks": [hooks(module) for module in net.modules()],
        "global hooks": [len(getattr(world, name)) for name in dir(world) if name.endswith("_hooks")],
        "parameters": [(name, id(p), p.requires_grad, p._version) for name, p in parameters.items()],
        "gradients": {name: p.grad if p.grad is None else p.grad.tolist() for name, p in parameters.items()},
        "buffers": [(name, id(b)) for name, b in net.named_buffers()],
        "values": {name: value.tolist() for name, value in net.state_dict().items()},
    }


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
    result = run(name, small(), **{k: p.default for k, p in TECHNIQUES[name].parameters.items()})
    assert isinstance(result, opsin.Result)
    assert arrays(result)
    for values in arrays(result).values():
        assert values.numel()
        assert values.isfinite().all()
    assert result.record.technique == name
    assert result.record.paper == TECHNIQUES[name].paper
    assert set(TECHNIQUES[name].parameters) <= set(result.record.arguments)
    assert result.record.model["sha256"] == small().weigh().fingerprint


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
    assert registry.names()[name] == technique.summary
    assert technique.summary.endswith(".")
    assert technique.reading.endswith(".")
    assert len(technique.paper) > 20
    assert any(character.isdigit() for character in technique.paper)  # at least its year
    for parameter in technique.parameters.values():
        assert len(parameter.arg.help) > 5
        assert parameter.default is None or isinstance(parameter.default, int | float | str)


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
    assert page.count("<img") == len(pictures)
    assert name in page


@every
def test_save_then_load_is_the_identity(name, tmp_path):
    result = run(name, small())
    folder = result.save(tmp_path / "out")
    loaded = opsin.Result.load(folder)
    assert loaded == result
    assert loaded.record == result.record
    assert type(loaded) is type(result)
    assert len(list(folder.glob("*.png"))) == len(result.pictures())
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


# --- it gives the same, whatever the way


@every
def test_the_same_call_gives_the_same_bits(name):
    first = run(name, fresh(nets.plain()))
    torch.rand(7), np.random.rand(7), random.random()
    again = run(name, fresh(nets.plain()))
    assert same_bits(first, again)
    assert first == again


@every
def test_a_model_may_be_used_again(name):
    model = small()
    assert run(name, model) == run(name, model)


@every_on_images
@pytest.mark.parametrize("target", [None, 1])
def test_a_batch_gives_what_single_images_give(name, target):
    model, images = small(), photos(3)
    together = arrays(run(name, model, images, target=target))
    alone = [arrays(run(name, model, image[None], target=target)) for image in images]
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


@every_on_images
def test_each_image_may_have_its_own_target(name):
    model, images = small(), photos(2)
    result = run(name, model, images, target=[3, "beagle"])
    if isinstance(result, opsin.Heatmap):
        for index, target in enumerate((3, 2)):
            alone = run(name, model, images[index : index + 1], target=target)
            torch.testing.assert_close(result.values[index : index + 1], alone.values, rtol=1e-9, atol=1e-9)


@every
@pytest.mark.parametrize("twin", nets.TWINS)
def test_a_twin_gives_the_same(name, twin):
    settings = at_layer(name)
    close(run(name, fresh(nets.TWINS[twin]()), **settings), run(name, small(), **settings))


@every
@pytest.mark.parametrize("layer", ["bn1", "bn2"])
def test_a_batch_normalisation_before_an_in_place_rectifier_is_not_overwritten(name, layer):
    settings = {"layer": layer} if TECHNIQUES[name].takes_images and at_layer(name) else {}
    kept, overwritten = (fresh(nets.normed(inplace=inplace)) for inplace in (False, True))
    close(run(name, overwritten, **settings), run(name, kept, **settings))


@every
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


@every
def test_training_mode_does_not_matter(name):
    evaluated, training = (nets.normed(inplace=False) for _ in range(2))
    assert same_bits(run(name, fresh(training.train())), run(name, fresh(evaluated)))


@every_on_images
@pytest.mark.parametrize("net", [nets.two_heads, nets.with_logits])
def test_an_output_that_is_a_tuple_or_an_object_is_like_a_plain_one(name, net):
    assert same_bits(run(name, fresh(net())), run(name, small()))


@every
def test_a_network_for_grey_images_works(name):
    result = run(name, nets.grey_model(size=SIZE))
    assert all(values.isfinite().all() for values in arrays(result).values())


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_of_half_precision_works_or_says_why_not(name, dtype):
    settings = {"target": 1} if TECHNIQUES[name].takes_images else {}
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


@every_on_images
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
    batches = [photos(1, seed=seed) for seed in range(4)]
    alone = [run(name, model, images) for images in batches]
    untraced = fresh(nets.plain())
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda images: run(name, untraced, images), batches * 2))
    for got, expected in zip(together, alone * 2, strict=True):
        assert same_bits(got, expected)
        assert got.record.notes == expected.record.notes


# --- it leaves everything as it was


@every
def test_the_model_is_left_as_it_was(name):
    net = troubled()
    before = state(net)
    run(name, fresh(net))
    assert state(net) == before


@every
@pytest.mark.parametrize("net", [nets.in_place, nets.vit])
def test_other_networks_are_left_as_they_were(name, net):
    net = net()
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
from opsin import registry
model = nets.model(nets.plain(), size=40)
for name, technique in registry.techniques().items():
    before = random.getstate()
    technique.run(model, *([nets.images(1, 40)] if technique.takes_images else []))
    assert random.getstate() == before, name
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


@every
def test_a_network_that_draws_random_numbers_moves_no_global_generator(name):
    model = fresh(nets.seeded(nets.Chain(noise=Noise(), plain=nets.plain())))
    before = world()
    run(name, model)
    assert world() == before


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01 * torch.randn_like(x)


@every_on_images
@pytest.mark.parametrize(
    ("when", "error", "raised"),
    [("first", ValueError("no"), opsin.NetworkError), ("last", KeyboardInterrupt(), KeyboardInterrupt)],
    ids=["the first, by an error", "the last, by an interrupt"],
)
def test_a_forward_that_fails_leaves_everything_as_it_was(name, when, error, raised):
    net = troubled()
    model = warmed(net)
    net.calls.clear()
    run(name, model)
    fails_at = 1 if when == "first" else len(net.calls)
    net.calls.clear()
    net.fuse[:] = [fails_at, error]
    before, outside = state(net), world()
    with pytest.raises(raised):
        run(name, model)
    assert state(net) == before
    assert world() == outside


@every_on_images
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


@every_on_images
def test_cancelling_at_any_step_leaves_everything_as_it_was(name):
    net = troubled()
    model = warmed(net)
    seen = []
    with opsin.listening(seen.append):
        expected = run(name, model)
    if ON_IMAGES[name].cost > LISTENS_FROM:
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


@every_on_images
def test_steps_count_up_to_their_total(name):
    seen = []
    with opsin.listening(seen.append):
        run(name, small())
    assert [step.done for step in seen] == list(range(len(seen)))
    assert {step.label for step in seen} <= {name}
    assert {step.total for step in seen} <= {len(seen) - 1}
    run(name, small())
    assert len(seen) == len({step.done for step in seen})  # nobody listens any more


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
    if about.arg.least is not None:
        bad.append(type(about.default)(about.arg.least - 1))
    if about.arg.most is not None:
        bad.append(type(about.default)(about.arg.most + 1))
    if isinstance(about.default, float):
        bad.append(float("nan") if about.arg.least is not None else "0.1")
    for value in bad:
        with pytest.raises(opsin.InputError):
            run(name, small(), **{parameter: value})


@pytest.mark.parametrize("name", [n for n, t in TECHNIQUES.items() if "layer" in t.parameters])
def test_an_unknown_layer_is_named_with_the_nearest(name):
    with pytest.raises(opsin.InputError, match=r"'conv9'.*conv"):
        run(name, small(), layer="conv9")


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
        ON_IMAGES[name].run(small(), images)


@every
def test_a_bare_network_is_refused(name):
    images = (photos(),) if TECHNIQUES[name].takes_images else ()
    with pytest.raises(opsin.InputError, match=r"opsin\.Model.*Plain"):
        TECHNIQUES[name].run(nets.plain(), *images)


# --- what it says is true


@every
def test_a_nan_among_the_weights_is_named_in_the_record(name):
    net = nets.plain()
    net.fc.weight.data[4, 0] = torch.nan  # the scores of the other classes are as before
    settings = {"target": 1} if TECHNIQUES[name].takes_images else {}
    result = run(name, fresh(net), **settings)
    assert any("NaN" in said for said in result.record.notes)
    assert not any("NaN" in said for said in run(name, small(), **settings).record.notes)


@every_on_images
def test_a_network_that_gives_nan_is_explained_with_a_warning_or_refused(name):
    net = nets.plain()
    net.conv1.weight.data[0] = torch.nan
    result = outcome(name, fresh(net))
    told = [str(result)] if isinstance(result, opsin.OpsinError) else result.record.notes
    assert any("NaN" in said for said in told)


class Counted(nn.Module):
    """Counts the images that go through it in either direction."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Counter()

    def forward(self, x: Tensor) -> Tensor:
        self.count["forward"] += len(x)
        return CountedBackward.apply(x, self.count)


class CountedBackward(torch.autograd.Function):
    @staticmethod
    def forward(context, x: Tensor, count: Counter) -> Tensor:
        context.count = count
        return x.clone()

    @staticmethod
    def backward(context, signal: Tensor) -> tuple[Tensor, None]:
        context.count["backward"] += len(signal)
        return signal, None


MEASURABLE = [name for name in ON_IMAGES if name != "score_cam"]  # its cost is the number of channels


@pytest.mark.parametrize("name", MEASURABLE)
def test_the_cost_is_what_is_counted_at_the_size_of_the_default_network(name):
    counted = Counted()
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
    model = warmed(net, size=224)
    counted.count.clear()
    ON_IMAGES[name].run(model, photos(2, h=224, dtype=torch.float32))
    spent = (counted.count["forward"] + 2 * counted.count["backward"]) / 2
    assert spent <= ON_IMAGES[name].cost
    assert spent >= 0.5 * ON_IMAGES[name].cost
