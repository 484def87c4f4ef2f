"""Histograms of pyramids: matching by rank, by the slow definition, and what must hold of every result."""

import numpy as np
import pytest
import torch

import nets
import opsin
from opsin.statistics.pyramids import by_rank, multiple, principal, quantiles, scales_of, steerable
from opsin.statistics.spectrum import periodic
from opsin.techniques.texture.heeger_bergen import _Passes


def values(count, seed):
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("count", "of"), [(12, 12), (7, 20), (20, 7), (5, 1), (1, 5)])
def test_quantiles_are_linear_between_the_values(count, of):
    wanted = values(of, 1)
    places = (np.arange(of) + 0.5) / of
    expected = np.interp((np.arange(count) + 0.5) / count, places, np.sort(wanted.numpy()))
    np.testing.assert_allclose(quantiles(wanted, count).numpy(), expected, atol=1e-12)


def test_matching_as_many_values_gives_a_permutation_in_the_same_order():
    given, wanted = values(30, 1), values(30, 2) ** 3
    found = by_rank(given, quantiles(wanted, 30))
    torch.testing.assert_close(found.sort().values, wanted.sort().values)
    assert torch.equal(found.argsort(), given.argsort())


def test_the_principal_colours_are_uncorrelated_and_give_the_picture_back():
    image = nets.images(1, 8, 9)
    image[:, 1] = 0.7 * image[:, 0] + 0.3 * image[:, 2]
    directions, mean = principal(image)
    assert directions.shape == (3, 2)  # the third has no variance
    turned = torch.einsum("dk,ndhw->nkhw", directions, image - mean)
    covariance = turned.flatten(2)[0] @ turned.flatten(2)[0].T / 72
    assert float(covariance[0, 1].abs()) < 1e-12
    assert covariance[0, 0] > covariance[1, 1]
    torch.testing.assert_close(torch.einsum("dk,nkhw->ndhw", directions, turned) + mean, image)
    assert principal(image[:, :1].expand(-1, 3, -1, -1))[0].shape == (3, 1)


def test_a_pass_gives_every_band_the_samples_histogram():
    sample = nets.images(1, 16, 32)[:, :1].expand(-1, 3, -1, -1).contiguous()
    passes = _Passes(sample, (16, 32), 2, 3, 0)
    directions, mean = principal(sample)
    grey = torch.einsum("dk,ndhw->nkhw", directions, sample - mean)
    pyramid = steerable((16, 32), 2, 4, sample)
    wanted = pyramid(periodic(grey))
    for name, band in pyramid(passes.picture).items():
        per_histogram = zip(band.flatten(0, -3), wanted[name].flatten(0, -3), passes.bands[name], strict=True)
        for one, other, ordered in per_histogram:
            matched = by_rank(one.flatten(), ordered)
            torch.testing.assert_close(matched.sort().values, other.flatten().sort().values)
    passes.advance()
    torch.testing.assert_close(passes.picture.flatten().sort().values, grey.flatten().sort().values)
    torch.testing.assert_close(pyramid.recon_pyr(pyramid(grey)), grey, atol=1e-4, rtol=1e-4)


def test_it_has_the_samples_pixels_and_comes_nearer_to_a_fixed_point():
    sample = nets.images(1, 32, 32)[:, :1].expand(-1, 3, -1, -1).contiguous()
    result = opsin.heeger_bergen(sample, size=32, steps=6)
    for channel in range(3):
        torch.testing.assert_close(
            result.images[0, channel].flatten().sort().values, sample[0, channel].flatten().sort().values
        )
    changes = -result.numbers["0 score"][:, 0]
    assert changes[-1] < 0.5 * changes[0]


@pytest.mark.parametrize("size", [(37, 51), (16, 100)])
def test_any_sizes_of_sample_and_texture(size):
    result = opsin.heeger_bergen(nets.images(1, 41, 23), size=size[0], width=size[1], steps=1)
    assert result.images.shape == (1, 3, *size)


def test_the_scales_that_fit():
    assert scales_of([(128, 256), (64, 64)], 4, 4) == 4
    assert scales_of([(40, 40)], 4, 7) == 2
    assert multiple((37, 48), 3, up=True) == (40, 48)
    assert multiple((37, 48), 3, up=False) == (32, 48)
    with pytest.raises(opsin.InputError, match="at least 14"):
        scales_of([(13, 40)], 4, 7)


def test_a_small_sample_is_refused_and_one_colour_stays_so():
    with pytest.raises(opsin.InputError, match="at least 8"):
        opsin.heeger_bergen(nets.images(1, 7, 40))
    plain = torch.full((1, 3, 16, 16), 0.3)
    torch.testing.assert_close(opsin.heeger_bergen(plain, size=16, steps=2).images, plain)
