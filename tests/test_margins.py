"""What `margins` measures, and that the photos of the small networks keep the margin."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nets
from margins import MARGIN, clear_of_kinks, margin, without_copies

FAR = nets.images(1)
EVEN = FAR.clone()
EVEN[..., :4] = 0.5  # in the middle of what the functions below bend
GENERATOR = torch.Generator().manual_seed(0)
KERNEL = torch.randn(4, 3, 3, 3, generator=GENERATOR, dtype=torch.float64)
AS_IT_IS = torch.eye(3, dtype=torch.float64)[..., None, None]  # a kernel of 1 x 1

BENDS = {
    "a rectifier": lambda x: F.relu(x - 0.5),
    "a rectifier in place": lambda x: F.relu_(x - 0.5),
    "a leaky rectifier with weights": lambda x: F.prelu(x - 0.5, torch.full((3,), 0.1, dtype=x.dtype)),
    "a bounded rectifier at its bound": lambda x: F.relu6(x + 5.5),
    "a clamp": lambda x: (x - 0.5).clamp(min=0),
    "hardswish": lambda x: F.hardswish(x + 2.5),
    "a maximum of two": lambda x: torch.maximum(x, 1 - x),
    "a max pool": lambda x: F.max_pool2d(x, 2),
    "a max pool of what a convolution gives": lambda x: F.max_pool2d(F.conv2d(x, KERNEL), 2),
}


def scored(bend):
    """The function behind a convolution, with two classes that are far from each other."""

    def forward(images: Tensor) -> Tensor:
        total = bend(F.conv2d(images, AS_IT_IS)).abs().flatten(1).sum(1)
        return torch.stack([total, -total], 1)

    return forward


@pytest.mark.parametrize("name", BENDS)
def test_an_even_patch_at_a_kink_has_no_margin_and_another_photo_has(name):
    forward = scored(BENDS[name])
    assert margin(forward, EVEN).share < MARGIN
    assert margin(forward, FAR).share > 1e3 * MARGIN


def test_what_is_near_is_named():
    near = FAR.clone()
    near[0, 1, 2, 3] = 0.5 + 1e-13
    share, where = margin(scored(lambda x: F.relu(F.relu(x) - 0.5)), near)
    assert 0 < share < 1e-11
    assert where == "relu, call 2, unit (0, 1, 2, 3)"


def test_dead_units_and_copies_of_one_unit_are_passed_over():
    # the first pool hands on 0 and, where it overlaps, the same values twice
    forward = scored(lambda x: F.max_pool2d(F.max_pool2d(F.relu(F.relu(x - 0.6)), 3, 1), 2) + 1)
    values = F.max_pool2d((FAR - 0.6).relu(), 3, 1)
    assert (values[..., 1:] == values[..., :-1]).any()
    assert margin(forward, FAR).share > 1e3 * MARGIN


def test_what_is_computed_of_copies_ties_until_the_pools_that_copy_are_replaced():
    pool, mix = nn.MaxPool2d(3, 1, 1), nn.Conv2d(3, 3, 1)
    net = nets.seeded(nets.Chain(first=pool, mix=mix, second=nn.MaxPool2d(3, 1, 1), large=nn.MaxPool2d(2)))
    assert margin(scored(net), FAR).share < MARGIN
    assert margin(scored(without_copies(net)), FAR).share > 1e3 * MARGIN
    assert isinstance(net.large, nn.MaxPool2d)


def test_classes_that_tie_have_no_margin():
    assert margin(lambda x: torch.ones(len(x), 3, dtype=x.dtype), FAR) == (0, "the two best classes")


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": (2, 3), "stride": (3, 2), "padding": 1},
        {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    ],
    ids=["side by side", "overlapping", "oblong at the edge", "beyond the edge"],
)
def test_the_margin_of_a_max_pool_is_the_least_lead_in_any_window(settings):
    x = nets.images(1, 8) + 1
    values, places = F.max_pool2d(x, **settings, return_indices=True)
    leads = []
    for channel, best, place in zip(x[0], values[0], places[0], strict=True):
        for value, at in zip(best.flatten(), place.flatten(), strict=True):
            without = channel.clone()
            without.view(-1)[at] = -math.inf
            seconds = F.max_pool2d(without[None, None], **settings).flatten()
            window = (place.flatten() == at).nonzero()[:, 0]
            leads += [float(value - second) for second in seconds[window]]
    assert margin(scored(lambda x: F.max_pool2d(x + 1, **settings)), x - 1).share == pytest.approx(
        min(leads) / float(x.max()), rel=1e-6
    )


def test_single_precision_is_refused():
    with pytest.raises(AssertionError, match=r"relu was called on torch\.float32"):
        margin(scored(lambda x: F.relu(x.float() - 0.5)), FAR)


def test_the_first_candidate_that_keeps_the_margin_is_taken():
    forward = scored(BENDS["a rectifier"])
    assert clear_of_kinks(forward, [EVEN, FAR, EVEN]) is FAR
    other = nets.images(1, seed=1)
    assert (
        clear_of_kinks(forward, [FAR, other], shown=lambda images: EVEN if images is FAR else images) is other
    )


def test_without_a_candidate_that_keeps_the_margin_the_test_fails_and_says_where():
    with pytest.raises(pytest.fail.Exception, match=r"rounding.*at relu, call 1, unit \(0, .*; .*at relu"):
        clear_of_kinks(scored(BENDS["a rectifier"]), [EVEN, EVEN.flip(3)])


@pytest.mark.parametrize("size", [16, 40])
@pytest.mark.parametrize(("spelling", "net"), nets.rectified(), ids=nets.SPELLINGS)
def test_the_photos_of_the_small_networks_keep_the_margin(spelling, net, size):
    mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (nets.MEAN, nets.STD))
    assert margin(lambda images: net((images - mean) / std), nets.images(3, size)).share > MARGIN
