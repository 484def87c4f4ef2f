"""A texture with the sample's mean and spectrum, by the slow formulas."""

import numpy as np
import pytest
import torch

import nets
import opsin
from opsin.statistics.spectrum import periodic, radial_power


def pale(h, w, seed=0):
    """A photo without strong contrast, so that nothing is clipped."""
    return 0.45 + 0.1 * nets.images(1, h, w, seed=seed)


def laplacian(image):
    """The sum over four neighbours, beyond an edge on the opposite side, minus four times itself."""
    return sum(np.roll(image, step, axis) for axis in (0, 1) for step in (-1, 1)) - 4 * image


@pytest.mark.parametrize("size", [(8, 11), (7, 6), (1, 5), (9, 2)])
def test_the_smooth_part_holds_the_jumps_over_the_edges_and_nothing_else(size):
    image = nets.images(1, *size)[0, 0].numpy()
    smooth = image - periodic(torch.tensor(image)[None, None])[0, 0].numpy()
    jumps = np.zeros(size)
    for row in range(size[0]):
        jumps[row, 0] += image[row, -1] - image[row, 0]
        jumps[row, -1] += image[row, 0] - image[row, -1]
    for column in range(size[1]):
        jumps[0, column] += image[-1, column] - image[0, column]
        jumps[-1, column] += image[0, column] - image[-1, column]
    np.testing.assert_allclose(laplacian(smooth), jumps, atol=1e-12)
    assert smooth.mean() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("size", [(16, 24), (17, 23)])
def test_has_the_mean_the_spectrum_and_the_cross_spectra_of_the_sample(size):
    image = pale(*size)
    result = opsin.random_phase(image, size=size[0], width=size[1])
    part, made = periodic(image)[0].numpy(), result.images[0].numpy()
    assert not np.allclose(part, made)
    before, after = (np.fft.fft2(each) for each in (part, made))
    for one in range(3):
        for other in range(3):
            np.testing.assert_allclose(
                before[one] * before[other].conj(), after[one] * after[other].conj(), atol=1e-9
            )
    np.testing.assert_allclose(made.mean((1, 2)), image[0].mean((1, 2)), atol=1e-12)


def test_a_larger_texture_has_the_samples_autocorrelation_on_average():
    image = pale(16, 16, seed=3)
    part = periodic(image)[0, 0].numpy()
    field = np.zeros((48, 64))
    field[:16, :16] = part - part.mean()
    expected = np.fft.ifft2(np.abs(np.fft.fft2(field)) ** 2).real / 16**2
    made = opsin.random_phase(image, size=48, width=64).images[0, 0].numpy()
    found = np.fft.ifft2(np.abs(np.fft.fft2(made - made.mean())) ** 2).real / made.size
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_smaller_texture_is_a_part_of_one_of_the_samples_size():
    image = pale(40, 30)
    whole = opsin.random_phase(image, size=40, width=30).images
    assert torch.equal(opsin.random_phase(image, size=20, width=16).images, whole[..., :20, :16])


def test_seeds_differ_and_a_sample_of_one_colour_stays_so():
    image = pale(16, 16)
    assert not torch.equal(opsin.random_phase(image, seed=1).images, opsin.random_phase(image, seed=2).images)
    plain = torch.full((1, 3, 16, 16), 0.3, dtype=torch.float64)
    torch.testing.assert_close(
        opsin.random_phase(plain, size=32).images, torch.full((1, 3, 32, 32), 0.3).double()
    )


def test_the_power_in_rings_is_that_of_the_frequencies_in_them():
    image = pale(12, 10)
    power = np.abs(np.fft.fft2(periodic(image)[0].numpy())) ** 2 / 120
    rings = [[] for _ in range(4)]
    for row in range(12):
        for column in range(10):
            frequency = np.hypot(np.fft.fftfreq(12)[row], np.fft.fftfreq(10)[column])
            if (row, column) == (0, 0):
                rings[0].append(np.zeros(3))
            elif frequency <= 0.5:
                rings[min(3, int(frequency * 8))].append(power[:, row, column])
    expected = np.stack([np.mean(ring, 0) for ring in rings], 1)
    np.testing.assert_allclose(radial_power(image, 4).numpy(), expected, rtol=1e-9)
