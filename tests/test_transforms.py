import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Generator

import nets
from opsin.optimise.transforms import affine, blur, blurred, border, jitter, rotate, scale

ALL = {
    "jitter": jitter(3),
    "scale": scale(0.8, 1.2),
    "rotate": rotate(20),
    "affine": affine(15, 0.9, 1.3),
    "border": border(2),
    "blur": blur(1.5),
}
every_one = pytest.mark.parametrize("transform", ALL.values(), ids=ALL)


def seeded(seed=0):
    return Generator().manual_seed(seed)


def drawn(seed, degrees, low, high):
    """The angle and the factor that `affine` draws with this seed."""
    turn, zoom = torch.rand(2, generator=seeded(seed)).tolist()
    return math.radians(degrees * (2 * turn - 1)), low + (high - low) * zoom


def resampled(image, angle, factor):
    """Every pixel looked up in turn: the place it comes from, bilinear, mirrored at the edges."""
    h, w = image.shape[1:]
    made = np.zeros_like(image)
    for row in range(h):
        for column in range(w):
            y, x = row - (h - 1) / 2, column - (w - 1) / 2
            from_x = (math.cos(angle) * x - math.sin(angle) * y) / factor + (w - 1) / 2
            from_y = (math.sin(angle) * x + math.cos(angle) * y) / factor + (h - 1) / 2
            from_y, from_x = mirrored(from_y, h), mirrored(from_x, w)
            top, left = math.floor(from_y), math.floor(from_x)
            for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
                share = (1 - abs(from_y - top - i)) * (1 - abs(from_x - left - j))
                made[:, row, column] += share * image[:, min(top + i, h - 1), min(left + j, w - 1)]
    return made


def mirrored(place, side):
    """A place brought back inside by mirrors at the picture's outer edges, -1/2 and side - 1/2."""
    place = (place + 0.5) % (2 * side)
    place = min(place, 2 * side - place) - 0.5
    return min(max(place, 0.0), side - 1.0)


@every_one
@pytest.mark.parametrize("size", [(16, 16), (15, 18)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_size_and_the_dtype_stay(transform, size, dtype):
    images = nets.images(2, *size, dtype=dtype)
    changed = transform(images, seeded())
    assert (changed.shape, changed.dtype) == (images.shape, dtype)
    assert changed.isfinite().all()


@every_one
def test_the_same_draw_is_the_same_picture(transform):
    images = nets.images(2)
    before = torch.get_rng_state()
    assert torch.equal(transform(images, seeded(1)), transform(images, seeded(1)))
    assert torch.equal(before, torch.get_rng_state())


@every_one
def test_a_draw_holds_for_the_whole_batch(transform):
    images = nets.images(3)
    together = transform(images, seeded(2))
    for index in range(3):
        alone = transform(images[index : index + 1], seeded(2))
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-12)


@every_one
def test_a_change_can_be_differentiated(transform):
    images = nets.images(1, 6, 7).requires_grad_()
    torch.autograd.gradcheck(lambda x: transform(x, seeded(3)), (images,))


def test_jitter_rolls_by_at_most_so_many_pixels_in_all_directions():
    images, change, found = nets.images(1), jitter(2), set()
    generator = seeded()
    for _ in range(300):
        changed = change(images, generator)
        shifts = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.equal(changed, images.roll((dy, dx), (2, 3)))
        ]
        assert len(shifts) == 1
        found.add(shifts[0])
    assert len(found) == 25


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [(9, 9), (8, 11)])
def test_affine_is_a_bilinear_lookup_turned_and_enlarged_about_the_centre(seed, size):
    images = nets.images(1, *size)
    changed = affine(40, 0.7, 1.6)(images, seeded(seed))
    expected = resampled(images[0].numpy(), *drawn(seed, 40, 0.7, 1.6))
    np.testing.assert_allclose(changed[0], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("side", [8, 9])
def test_a_quarter_turn_is_a_turn_of_the_grid(side):
    images = nets.images(2, side)
    seed = next(s for s in range(100) if abs(drawn(s, 1, 1, 1)[0]) > math.radians(0.5))
    turn = drawn(seed, 1, 1, 1)[0]  # of one degree; so many degrees make a quarter
    changed = rotate(math.degrees(math.radians(90) / abs(turn) * math.radians(1)))(images, seeded(seed))
    expected = [torch.rot90(images, k, (2, 3)) for k in (1, 3)]
    assert any(torch.allclose(changed, one, rtol=0, atol=1e-9) for one in expected)


def test_turns_go_both_ways_and_no_further_than_asked():
    angles = [drawn(seed, 10, 1, 1)[0] for seed in range(50)]
    assert min(angles) < 0 < max(angles)
    assert max(map(abs, angles)) <= math.radians(10)


def test_a_zoom_of_two_shows_the_middle_at_twice_its_size():
    image = torch.zeros(1, 1, 16, 16, dtype=torch.float64).expand(1, 3, 16, 16).clone()
    image[..., 6:10, 6:10] = 1
    larger = scale(2, 2)(image, seeded())
    assert float(larger[..., 5:11, 5:11].min()) == 1
    assert float(larger.sum()) == pytest.approx(4 * float(image.sum()), rel=1e-6)
    smaller = scale(0.5, 0.5)(larger, seeded())
    assert float(smaller.mean()) > float(image.mean())  # what lies outside is mirrored in


def test_a_zoom_of_one_and_no_turn_change_nothing():
    images = nets.images(1, 9, 14)
    torch.testing.assert_close(affine(0, 1, 1)(images, seeded()), images, rtol=0, atol=1e-12)


def test_a_border_is_grey_and_what_is_inside_stays():
    images = nets.images(2, 9, 12)
    changed = border(2, grey=0.3)(images, seeded())
    assert torch.equal(changed[..., 2:-2, 2:-2], images[..., 2:-2, 2:-2])
    outside = torch.ones(9, 12, dtype=torch.bool)
    outside[2:-2, 2:-2] = False
    assert (changed[..., outside] == 0.3).all()
    assert (border(2)(images, seeded())[..., 0, :] == 0.5).all()


def test_a_border_of_nothing_is_the_image():
    images = nets.images(1)
    assert torch.equal(border(0)(images, seeded()), images)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.7, 3.0])
@pytest.mark.parametrize("size", [(24, 24), (23, 30)])
def test_blurred_is_scipys_gaussian_filter_to_three_deviations(sigma, size):
    images = nets.images(2, *size)
    found = blurred(images, sigma)
    for image, one in zip(images, found, strict=True):
        for channel, made in zip(image.numpy(), one, strict=True):
            expected = ndimage.gaussian_filter(channel, sigma, mode="mirror", radius=math.ceil(3 * sigma))
            np.testing.assert_allclose(made, expected, rtol=0, atol=1e-12)
    assert torch.equal(blur(sigma)(images, seeded()), found)


def test_no_blur_is_the_image():
    images = nets.images(1)
    assert blurred(images, 0.0) is images


def test_a_blur_wider_than_the_picture_is_cut_to_it():
    image = nets.images(1, 8)
    found = blurred(image, 20.0)
    assert found.isfinite().all()
    assert float(found.std()) < float(image.std())
    flat = torch.full((1, 3, 8, 8), 0.25)
    torch.testing.assert_close(blurred(flat, 20.0), flat)
