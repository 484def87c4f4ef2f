import numpy as np
import pytest
import torch

import nets
from opsin.optimise.canvas import COLOUR, EDGE, SPREAD, Fourier, Pixels, Toned

SIZES = [(16, 16), (15, 15), (12, 17), (17, 12), (2, 5)]
BOTH = [torch.float32, torch.float64]
every_size = pytest.mark.parametrize("size", SIZES)


def by_hand(parameters, height, width, decay=1.0):
    """σ(C F⁻¹(s ŷ) / 4), every frequency's wave added up on its own."""
    spectrum = parameters[..., 0] + 1j * parameters[..., 1]
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    flat = np.zeros((3, height, width))
    for i in range(height):
        for j in range(width // 2 + 1):
            down = i if i < (height + 1) / 2 else i - height  # cycles over the picture
            size = np.hypot(down / height, j / width)
            scale = 1 / max(size, 1 / max(height, width)) ** decay
            wave = np.exp(2j * np.pi * (down * rows / height + j * columns / width))
            times = 1 if j == 0 or 2 * j == width else 2  # the other half of the spectrum is its conjugate
            for c in range(3):
                flat[c] += times * (scale * spectrum[c, i, j] * wave).real / np.sqrt(height * width)
    mix = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
    mix = mix / max(np.sqrt((mix[:, k] ** 2).sum()) for k in range(3))
    mixed = np.zeros_like(flat)
    for out in range(3):
        for into in range(3):
            mixed[out] += mix[out, into] * flat[into] / 4
    return 1 / (1 + np.exp(-mixed))


def parameters(n, height, width, dtype=torch.float64):
    drawn = torch.randn(n, 3, height, width // 2 + 1, 2, generator=torch.Generator().manual_seed(1))
    return (0.3 * drawn).to(dtype)


@pytest.mark.parametrize("dtype", BOTH)
@every_size
def test_pixels_are_the_images_themselves(size, dtype):
    images = nets.images(2, *size, dtype=dtype)
    encoded = Pixels().encode(images)
    assert encoded is not images
    assert torch.equal(encoded, images)
    assert Pixels().decode(encoded) is encoded
    assert encoded.dtype == dtype


def test_pixels_are_clipped_in_place():
    values = torch.tensor([-0.5, 0.0, 0.3, 1.0, 1.5])
    Pixels().project(values)
    assert values.tolist() == pytest.approx([0, 0, 0.3, 1, 1])


@pytest.mark.parametrize("dtype", BOTH)
@every_size
def test_a_spectrum_gives_the_images_back(size, dtype):
    images = nets.images(2, *size, dtype=dtype) * 0.9 + 0.05
    canvas = Fourier(*size)
    back = canvas.decode(canvas.encode(images))
    assert back.dtype == dtype
    torch.testing.assert_close(back, images, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-7)


@every_size
def test_parameters_of_decoded_images_decode_to_the_same(size):
    canvas = Fourier(*size)
    images = canvas.decode(parameters(1, *size))
    torch.testing.assert_close(canvas.decode(canvas.encode(images)), images, rtol=0, atol=1e-7)


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5])
@every_size
def test_a_spectrum_is_decoded_as_the_formula_says(size, decay):
    drawn = parameters(2, *size)
    found = Fourier(*size, decay).decode(drawn)
    for image, one in zip(found, drawn, strict=True):
        np.testing.assert_allclose(image, by_hand(one.numpy(), *size, decay), rtol=0, atol=1e-6)


@every_size
def test_the_scale_is_one_over_the_frequency_and_largest_at_none(size):
    height, width = size
    scale = Fourier(height, width)._scale
    assert scale.shape == (height, width // 2 + 1)
    for i in range(height):
        for j in range(width // 2 + 1):
            down = min(i, height - i) / height
            expected = 1 / max(np.hypot(down, j / width), 1 / max(height, width))
            assert float(scale[i, j]) == pytest.approx(expected, rel=1e-6)
    assert float(scale.max()) == pytest.approx(max(height, width))


def test_colours_are_mixed_by_lucids_matrix_over_its_largest_column_norm():
    assert COLOUR == ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
    assert SPREAD == 4
    mixed = Fourier(8, 8).mix(torch.zeros(1, dtype=torch.float64)).numpy()
    largest = np.sqrt(0.26**2 + 0.27**2 + 0.27**2)  # the first column
    np.testing.assert_allclose(mixed * largest, COLOUR, rtol=1e-12)


@every_size
def test_whatever_the_spectrum_the_image_lies_between_0_and_1(size):
    canvas = Fourier(*size)
    for times in (1, 1000):
        images = canvas.decode(times * parameters(2, *size, torch.float32))
        assert float(images.min()) >= 0
        assert float(images.max()) <= 1
    before = parameters(1, *size)
    after = before.clone()
    canvas.project(after)
    assert torch.equal(before, after)


def test_black_and_white_come_back_within_their_edge():
    images = torch.zeros(1, 3, 15, 16)
    images[..., 8:] = 1
    back = Fourier(15, 16).decode(Fourier(15, 16).encode(images))
    assert EDGE == 1e-4
    torch.testing.assert_close(back, images, rtol=0, atol=1.2e-4)
    assert back.isfinite().all()


def test_noise_is_its_generators():
    canvas = Fourier(16, 17)
    first, again = (canvas.noise(2, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, canvas.noise(2, torch.Generator().manual_seed(4)))
    assert first.shape == (2, 3, 16, 17)
    before = torch.get_rng_state()
    canvas.noise(1, torch.Generator())
    assert torch.equal(before, torch.get_rng_state())


def test_noise_is_faint_and_grey_on_the_whole():
    noise = Fourier(64, 64).noise(4, torch.Generator().manual_seed(0))
    assert float((noise - 0.5).abs().mean()) < 0.05
    louder = Fourier(64, 64).noise(4, torch.Generator().manual_seed(0), deviation=0.1)
    assert float(louder.std()) > 5 * float(noise.std())


def test_an_image_of_a_spectrum_can_be_differentiated():
    drawn = parameters(1, 3, 4).requires_grad_()
    torch.autograd.gradcheck(Fourier(3, 4).decode, (drawn,))


def test_a_toned_picture_is_the_squared_sine_of_its_angles_which_are_kept_from_black_to_white():
    images = nets.images(2)
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    canvas = Toned()
    angles = canvas.encode(images)
    np.testing.assert_allclose(np.sin(angles.numpy()) ** 2, images, atol=1e-12)
    np.testing.assert_allclose(canvas.decode(angles), images, atol=1e-12)
    moved = angles + torch.tensor([-0.5, 0.5]).view(2, 1, 1, 1)
    canvas.project(moved)
    assert float(moved.min()) == 0
    assert float(canvas.decode(moved).max()) == 1
    np.testing.assert_allclose(
        moved, (angles + torch.tensor([-0.5, 0.5]).view(2, 1, 1, 1)).clamp(0, np.pi / 2)
    )
