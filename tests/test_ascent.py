import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nets
import opsin
from opsin import objectives
from opsin.network.shortcuts.pooling import AveragePooling
from opsin.objectives.features import gram, gram_match
from opsin.objectives.objective import Objective
from opsin.objectives.units import channel, each, energy
from opsin.optimise import ascent
from opsin.optimise.ascent import ascend
from opsin.optimise.canvas import Fourier, Pixels
from opsin.optimise.recipe import Recipe
from opsin.optimise.transforms import affine, jitter

NET = nets.plain()
MODEL = nets.model(NET)
IMAGES = nets.images(2) * 0.5 + 0.25
CANVASES = {"pixels": Pixels(), "fourier": Fourier(16, 16)}
BRIGHTNESS = Objective("brightness", ("image",), lambda a: a["image"].mean((1, 2, 3)))


def climb(objective=None, start=IMAGES, model=MODEL, **settings):
    state = settings.pop("state", None)
    recipe = Recipe(**{"steps": 4, "rate": 0.01, **settings})
    return list(ascend(model, objective or channel("conv2", 1), start, recipe, state=state))


def gradient(objective, images, model=MODEL):
    run = model.run(images, objective.layers, start="image")
    return torch.autograd.grad(objective.score(run).sum(), run["image"])[0]


def bowl(images=IMAGES):
    """A quadratic with its top at 0.4 and curvatures from 1 to 30; counts how often it is asked."""
    weight = torch.linspace(1, 30, images[0].numel(), dtype=images.dtype).view_as(images[0])
    asked = []

    def score(a):
        asked.append(1)
        return -(weight * (a["image"] - 0.4).square()).flatten(1).sum(1)

    return Objective("bowl", ("image",), score), asked


# --- the way up


@pytest.mark.parametrize("canvas", CANVASES)
@pytest.mark.parametrize(("optimiser", "rate"), [("adam", 0.01), ("gradient", 0.005), ("lbfgs", 1.0)])
def test_every_optimiser_climbs(optimiser, rate, canvas):
    steps = climb(optimiser=optimiser, rate=rate, canvas=CANVASES[canvas], steps=6)
    scores = torch.stack([step.scores for step in steps[1:]])
    assert (scores[-1] > scores[0]).all()
    objective = channel("conv2", 1)
    ends = objective.score(MODEL.run(steps[-1].images(), objective.layers))
    assert (ends > scores[0]).all()


def test_it_tells_of_the_start_and_of_every_step():
    steps = climb(steps=3)
    assert [step.number for step in steps] == [0, 1, 2, 3]
    assert steps[0].scores is None
    first = next(ascend(MODEL, channel("conv2", 1), IMAGES, Recipe(steps=1, rate=0.01)))
    assert torch.equal(first.images(), IMAGES)


@pytest.mark.parametrize("optimiser", ["adam", "gradient", "lbfgs"])
def test_a_steps_scores_are_those_that_it_started_from(optimiser):
    objective, _ = bowl()
    stream = ascend(MODEL, objective, IMAGES, Recipe(steps=4, rate=0.01, optimiser=optimiser))
    pictures = next(stream).images().clone()
    for step in stream:
        torch.testing.assert_close(step.scores, objective.score(MODEL.run(pictures, objective.layers)))
        pictures = step.images().clone()


def test_plain_gradients_are_divided_by_their_mean_size_in_each_image():
    objective = each([channel("conv2", 1), 1000 * channel("conv2", 3)])
    found = climb(objective, optimiser="gradient", rate=0.003, steps=1)[-1].images()
    for before, after, g in zip(IMAGES, found, gradient(objective, IMAGES), strict=True):
        expected = (before + 0.003 * g / g.abs().mean()).clamp(0, 1)
        torch.testing.assert_close(after, expected, rtol=0, atol=1e-12)


def test_adams_first_two_steps_by_hand():
    objective, rate = channel("conv2", 1), 0.01
    x, m, v = IMAGES.numpy(), 0.0, 0.0
    for t in (1, 2):
        g = -gradient(objective, torch.from_numpy(x)).numpy()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        x = np.clip(x - rate * step, 0, 1)
    np.testing.assert_allclose(climb(objective, rate=rate, steps=2)[-1].images(), x, rtol=0, atol=1e-9)


def test_lbfgs_finds_the_top_of_a_quadratic_and_asks_about_once_a_step():
    objective, asked = bowl()
    steps = climb(objective, optimiser="lbfgs", rate=1.0, steps=40)
    torch.testing.assert_close(steps[-1].images(), torch.full_like(IMAGES, 0.4), rtol=0, atol=1e-5)
    assert len(asked) <= 1.5 * 40


@pytest.mark.parametrize("optimiser", ["adam", "gradient"])
def test_the_others_ask_once_a_step(optimiser):
    objective, asked = bowl()
    climb(objective, optimiser=optimiser, steps=7)
    assert len(asked) == 7


def test_lbfgs_refuses_what_changes_between_evaluations():
    with pytest.raises(opsin.InputError, match=r"lbfgs.*use adam"):
        climb(optimiser="lbfgs", transforms=[jitter(2)])


def test_the_rate_declines_geometrically():
    grey = torch.full((1, 3, 16, 16), 0.5, dtype=torch.float64)
    stream = ascend(MODEL, BRIGHTNESS, grey, Recipe(optimiser="gradient", rate=0.01, decline=0.1, steps=5))
    means = [float(step.images().mean()) for step in stream]
    assert np.diff(means) == pytest.approx([0.01 * 0.1 ** (k / 5) for k in range(5)], rel=1e-6)


def test_images_stay_between_0_and_1():
    for optimiser in ("adam", "gradient", "lbfgs"):
        found = climb(BRIGHTNESS, optimiser=optimiser, rate=1.0, steps=3)[-1].images()
        assert float(found.min()) >= 0
        assert float(found.max()) <= 1


def test_what_is_kept_after_every_step_is_up_to_the_constraint():
    seen = []

    def constrain(parameters, towards, number):
        seen.append((number, towards.clone()))
        parameters.fill_(0.25)

    steps = climb(steps=3, optimiser="gradient", constrain=constrain)
    assert [number for number, _ in seen] == [1, 2, 3]
    assert all((step.images() == 0.25).all() for step in steps)  # read at the end, all are the last
    g = gradient(channel("conv2", 1), IMAGES)
    expected = g / g.abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(seen[0][1], expected, rtol=1e-9, atol=1e-9)


# --- the same again


def test_the_same_seed_is_the_same_picture_to_the_bit():
    settings = {"transforms": [jitter(3), affine(10, 0.9, 1.1)], "canvas": Fourier(16, 16)}
    first, again, other = (climb(seed=seed, **settings)[-1].images() for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("canvas", CANVASES)
@pytest.mark.parametrize("optimiser", ["adam", "gradient"])
def test_a_batch_gives_what_single_images_give(optimiser, canvas):
    settings = {"optimiser": optimiser, "canvas": CANVASES[canvas], "transforms": [jitter(2)], "seed": 5}
    together = climb(**settings)[-1]
    for index in range(2):
        alone = climb(start=IMAGES[index : index + 1], **settings)[-1]
        torch.testing.assert_close(together.images()[index], alone.images()[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(together.scores[index], alone.scores[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("canvas", CANVASES)
@pytest.mark.parametrize("optimiser", ["adam", "gradient"])
def test_a_climb_goes_on_from_its_state_with_the_same_bits(optimiser, canvas):
    settings = {"optimiser": optimiser, "canvas": CANVASES[canvas], "transforms": [jitter(2)], "steps": 5}
    settings["decline"] = 0.3
    whole = climb(**settings)[-1]
    stream = ascend(MODEL, channel("conv2", 1), IMAGES, Recipe(rate=0.01, **settings))
    state = next(step.state() for step in stream if step.number == 2)
    rest = climb(state=state, **settings)
    assert [step.number for step in rest] == [2, 3, 4, 5]
    assert torch.equal(rest[-1].images(), whole.images())
    assert torch.equal(rest[-1].scores, whole.scores)


# --- what cannot be climbed


def test_an_exactly_zero_gradient_at_the_start_is_told():
    constant = nets.chain(conv=nets.conv([[[[0.0]], [[0.0]], [[0.0]]]], [1.0]), relu=nn.ReLU())
    with pytest.raises(opsin.InputError, match=r"'relu:0' is exactly zero at the start of picture 0"):
        climb(channel("relu", 0), model=nets.model(constant, labels=None))
    half = each([BRIGHTNESS, 0.0 * BRIGHTNESS])
    with pytest.raises(opsin.InputError, match="start of picture 1"):
        climb(half)


def test_a_unit_that_is_off_is_climbed_through_its_closed_rectifier():
    """A unit that is the sum of the pixels, minus 1000: the gradient is that without the rectifier.

    The second picture's unit fires, so its gradient is its own.
    """
    weight = [[[[1.0]], [[2.0]], [[-1.0]]]]
    off = nets.model(nets.chain(conv=nets.conv(weight, [-1000.0]), relu=nn.ReLU()), labels=None)
    climbed = climb(channel("relu", 0), model=off, optimiser="gradient", rate=0.01, steps=1)[-1].images()
    linear = climb(channel("conv", 0), model=off, optimiser="gradient", rate=0.01, steps=1)[-1].images()
    assert torch.equal(climbed, linear)
    assert not torch.equal(climbed, IMAGES)


def test_a_unit_that_fires_keeps_its_own_gradient_beside_one_that_is_off():
    """Units at the threshold of brightness: a bright picture fires, a dark one does not."""
    net = nets.chain(conv=nets.conv([[[[1.0]], [[1.0]], [[1.0]]]], [-1.5]), relu=nn.ReLU())
    model = nets.model(net, labels=None)
    images = torch.cat([torch.full((1, 3, 8, 8), 0.1), torch.full((1, 3, 8, 8), 0.9)]).double()
    images[1, :, 0, 0] = 0.1  # a position of the bright picture that is off has no gradient there
    scored, signal = ascent._signal(model, channel("relu", 0), images)
    assert scored[0] == 0
    assert signal[0].all()
    assert signal[1, :, 0, 0].eq(0).all()
    assert signal[1, :, 1:].all()


def test_a_score_without_the_image_is_told():
    with pytest.raises(opsin.InputError, match="'constant' does not depend on the image"):
        climb(Objective("constant", ("image",), lambda a: torch.ones(len(a["image"]))))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("optimiser", ["adam", "gradient", "lbfgs"])
def test_a_score_that_is_no_number_is_told(wrong, optimiser):
    bad = Objective("bad", ("image",), lambda a: wrong * a["image"].mean((1, 2, 3)))
    with pytest.raises(opsin.NetworkError, match="score of 'bad' is"):
        climb(bad, optimiser=optimiser)


def test_a_score_that_ceases_to_be_a_number_is_told_with_its_step():
    grey = torch.full((1, 3, 16, 16), 0.5, dtype=torch.float64)
    falling = Objective("log", ("image",), lambda a: -(a["image"].mean((1, 2, 3)) - 0.485).log())
    with pytest.raises(opsin.NetworkError, match="at step 3"):
        climb(falling, grey, optimiser="gradient", rate=0.01)


# --- as little of the network as needed


@pytest.fixture
def counted():
    """A model with the names of the layers whose forward was called."""
    net, seen = nets.plain(), []
    model = nets.model(net)
    assert model.calls
    for name, module in net.named_children():
        module.register_forward_pre_hook(lambda *_, name=name: seen.append(name))
    return model, seen


def test_an_objective_of_the_image_alone_does_not_run_the_network(counted):
    model, seen = counted
    climb(objectives.total_variation(), model=model, steps=2)
    assert seen == []


def test_the_forward_stops_behind_the_last_wanted_layer(counted):
    model, seen = counted
    climb(channel("relu1", 1) + energy("conv1"), model=model, steps=2)
    assert seen == ["conv1", "relu1"] * 2


def test_the_network_is_left_as_it_was():
    net = nets.plain().train()
    model = nets.model(net)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    climb(model=model)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks for m in net.modules())


# --- pictures larger than a tile


def test_a_picture_larger_than_the_tile_is_climbed_tile_by_tile():
    large, objective = nets.images(2, 30, 33), energy("conv2")
    assert not objective.terms
    found = climb(objective, large, optimiser="gradient", tile=16, steps=1)[-1]
    bands = [large[:, :, :15], large[:, :, 15:]]
    parts = [[b[..., :11], b[..., 11:22], b[..., 22:]] for b in bands]
    g = torch.cat([torch.cat([gradient(objective, p) for p in row], 3) for row in parts], 2)
    expected = (large + 0.01 * g / g.abs().mean((1, 2, 3), keepdim=True)).clamp(0, 1)
    torch.testing.assert_close(found.images(), expected, rtol=0, atol=1e-9)
    scores = [objective.score(MODEL.run(p, objective.layers)) for row in parts for p in row]
    torch.testing.assert_close(found.scores, torch.stack(scores).mean(0))


def test_a_picture_no_larger_than_the_tile_is_climbed_whole():
    whole, tiled = (climb(energy("conv2"), tile=tile)[-1].images() for tile in (None, 16))
    assert torch.equal(whole, tiled)


@pytest.mark.parametrize("size", [(40, 48), (37, 45)])
def test_objectives_of_sums_over_positions_are_exact_in_tiles(size):
    large = nets.images(1, *size)
    wanted = {layer: gram(MODEL.run(IMAGES[:1], (layer,)).maps(layer)) for layer in ("relu1", "conv2")}
    objective = 2.0 * gram_match("relu1", wanted["relu1"]) + gram_match("conv2", wanted["conv2"])
    assert objective.terms
    whole, tiled = (
        climb(objective, large, optimiser="gradient", tile=tile, steps=2)[-1] for tile in (None, 16)
    )
    torch.testing.assert_close(whole.images(), tiled.images(), rtol=0, atol=1e-9)
    torch.testing.assert_close(whole.scores, tiled.scores, rtol=1e-9, atol=1e-12)


# --- means in place of maxima


POOLS = {
    "nn.MaxPool2d(2)": (nn.MaxPool2d(2), {"kernel_size": 2}),
    "nn.MaxPool2d(3, 2, 1)": (nn.MaxPool2d(3, 2, 1), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "nn.MaxPool2d((2, 3), ceil_mode=True)": (
        nn.MaxPool2d((2, 3), ceil_mode=True),
        {"kernel_size": (2, 3), "ceil_mode": True},
    ),
    "F.max_pool2d(x, 2)": (lambda x: F.max_pool2d(x, 2), {"kernel_size": 2}),
    "F.max_pool2d(x, 3, 1)": (lambda x: F.max_pool2d(x, 3, 1), {"kernel_size": 3, "stride": 1}),
    "F.max_pool2d by names": (
        lambda x: F.max_pool2d(input=x, kernel_size=3, stride=(2, 1), padding=1, dilation=1),
        {"kernel_size": 3, "stride": (2, 1), "padding": 1},
    ),
    "F.max_pool2d(x, 3, 2, 1, 1, True)": (
        lambda x: F.max_pool2d(x, 3, 2, 1, 1, True),
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    ),
    "torch.max_pool2d": (lambda x: torch.max_pool2d(x, 2), {"kernel_size": 2}),
    "torch.max_pool2d with lists": (
        lambda x: torch.max_pool2d(x, [3, 3], [2, 2], [1, 1], [1, 1]),
        {"kernel_size": 3, "stride": 2, "padding": 1},
    ),
}


@pytest.mark.parametrize("name", POOLS)
def test_maximum_pooling_takes_means_in_the_block(name):
    pool, same = POOLS[name]
    x = nets.images(2, 11, 13)
    before = pool(x)
    with AveragePooling():
        found = pool(x)
    torch.testing.assert_close(found, F.avg_pool2d(x, count_include_pad=False, **same), rtol=0, atol=1e-12)
    assert torch.equal(pool(x), before)


@pytest.mark.parametrize("settings", [{"dilation": 2}, {"return_indices": True}])
def test_maxima_without_a_mean_of_the_kind_stay(settings):
    x = nets.images(1)
    with AveragePooling():
        found = F.max_pool2d(x, 2, **settings)
    expected = F.max_pool2d(x, 2, **settings)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_average_pooling_leaves_the_network_alone():
    net = nets.plain()
    model = nets.model(net)
    before, module = model.run(IMAGES)["output"], net.pool
    with AveragePooling():
        inside = model.run(IMAGES, ("relu1", "pool"))
    torch.testing.assert_close(inside["pool"], F.avg_pool2d(inside["relu1"], 2))
    assert net.pool is module
    assert torch.equal(model.run(IMAGES)["output"], before)
