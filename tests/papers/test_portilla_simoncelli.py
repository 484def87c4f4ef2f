"""Wavelet statistics: the paper's number of them, plenoptic's own loss, and what a synthesis reaches."""

import plenoptic
import pytest
import torch

import nets
import opsin
from opsin.statistics.pyramids import Statistics
from opsin.techniques.texture.portilla_simoncelli import _Synthesis


def stripes(side, seed=0):
    """Slanted stripes with noise: structure that noise with the same spectrum has not."""
    place = torch.arange(side, dtype=torch.float64)
    wave = torch.sin(2 * torch.pi * (place[:, None] + 2 * place) / 16).sign()
    noise = nets.images(1, side, side, seed=seed)[0, 0] - 0.5
    return (0.5 + 0.25 * wave + 0.2 * noise).expand(1, 3, side, side).contiguous()


def test_has_the_papers_710_statistics():
    statistics = Statistics((128, 128), 4, 4, torch.zeros(1))
    assert len(statistics.of(torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(0)))) == 710


def test_the_distance_is_plenoptics_loss():
    like = torch.zeros(1, dtype=torch.float64)
    one, other = (nets.images(1, 32, 32, seed=seed)[:, :1] for seed in (0, 1))
    statistics = Statistics((32, 32), 2, 4, like)
    model = plenoptic.models.PortillaSimoncelli((32, 32), 2, 4, 7).to(torch.float64)
    loss = plenoptic.loss.portilla_simoncelli_loss_factory(model, one)
    expected = loss(model(one), model(other))
    found = (statistics.of(one) - statistics.of(other)).square().sum().sqrt()
    torch.testing.assert_close(found, expected)


def test_colours_have_correlations_of_every_two_of_their_bands():
    like = torch.zeros(1, dtype=torch.float64)
    images = nets.images(1, 16, 16)
    statistics = Statistics((16, 16), 1, 2, like)
    own = len(statistics.of(images[:, :1]))
    found = statistics.of(images)[3 * own :]
    bands = statistics.pyramid(images)[0][0].flatten(2)
    expected = []
    for kind in (bands.abs(), bands.real):
        for one, other in ((0, 1), (0, 2), (1, 2)):
            for first in kind[one]:
                for second in kind[other]:
                    expected.append(torch.corrcoef(torch.stack([first, second]))[0, 1])
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-6, rtol=1e-6)


def test_comes_near_the_samples_statistics_and_differs_from_it():
    sample = stripes(32)
    result = opsin.portilla_simoncelli(sample, size=32, scales=2, steps=9)
    losses = -result.numbers["0 score"][:, 0]
    assert losses[-1] < 0.1 * losses[0]
    assert float((result.images - sample).abs().mean()) > 0.05
    assert torch.equal(result.images[:, 0], result.images[:, 1])  # a grey sample gives a grey texture


def test_the_size_may_be_any():
    result = opsin.portilla_simoncelli(nets.images(1, 35, 43), size=30, width=37, scales=1, steps=1)
    assert result.images.shape == (1, 3, 30, 37)


def test_the_goal_is_the_same_whatever_the_size_of_the_texture():
    sample = stripes(32)
    goals = [_Synthesis(sample, size, 2, 4, 1, 0).goal for size in ((32, 32), (44, 64))]
    assert torch.equal(*goals)


@pytest.mark.parametrize(
    ("sample", "said"),
    [(torch.full((1, 3, 32, 32), 0.3), "one colour"), (nets.images(1, 13, 40), "at least 14")],
)
def test_a_sample_without_statistics_is_refused(sample, said):
    with pytest.raises(opsin.InputError, match=said):
        opsin.portilla_simoncelli(sample, size=32)
