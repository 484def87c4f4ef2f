import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nets
import opsin
import reference
from opsin.network.shortcuts.pooling import AveragePooling
from opsin.optimise.textures import first_activations, spectrum_match
from opsin.statistics.spectrum import periodic

NET = nets.plain()
MODEL = nets.model(NET)
PHOTO = nets.images(1, 24, seed=2) ** 2


POOLING = {"average": reference.average_pool, "maximum": reference.pool}


def features(image, pooling):
    run = reference.forward(NET, reference.array(image), pooling=POOLING[pooling])
    return [run["relu1"], run["relu2"]]


def loss(image, photo, pooling="average"):
    """The mean over layers of E_l = 1/(4 N²) Σ_ij (G_ij - Ĝ_ij)², F in units of its mean on the photo."""
    terms = []
    for found, wanted in zip(features(image, pooling), features(photo, pooling), strict=True):
        unit = wanted.mean()
        apart = reference.gram(found / unit) - reference.gram(wanted / unit)
        terms.append((apart**2).sum() / (4 * len(found) ** 2))
    return np.mean(terms)


def start(photo, size, seed=0):
    drawn = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed)).double()
    return (photo.mean((2, 3), keepdim=True) + 0.1 * drawn).clamp(0, 1)[0]


@pytest.mark.parametrize("pooling", ["average", "maximum"])
def test_the_loss_is_the_distance_of_gram_matrices(pooling):
    result = opsin.texture(MODEL, PHOTO, steps=1, size=32, seed=4, pooling=pooling)
    expected = loss(start(PHOTO, 32, 4), PHOTO[0], pooling)
    assert float(result.numbers["0 loss"]) == pytest.approx(expected, rel=1e-6)
    assert float(result.numbers["0 share"]) == 1


def test_the_loss_of_the_texture_is_what_was_measured():
    few = opsin.texture(MODEL, PHOTO, steps=3, size=24, optimiser="adam")
    more = opsin.texture(MODEL, PHOTO, steps=4, size=24, optimiser="adam")
    assert float(more.numbers["0 loss"][3, 0]) == pytest.approx(loss(few.images[0], PHOTO[0]), rel=1e-6)


@pytest.mark.parametrize(("height", "width"), [(11, 9), (11, 24), (30, 9)])
def test_a_small_sample_is_continued_by_its_mirror_images(height, width):
    sample = nets.images(1, height, width, seed=5)
    rows, columns = (
        [i % (2 * n) if i % (2 * n) < n else 2 * n - 1 - i % (2 * n) for i in range(24 if n < 12 else n)]
        for n in (height, width)
    )
    whole = sample[0][:, rows][:, :, columns]
    result = opsin.texture(MODEL, sample, steps=1, size=24)
    expected = loss(start(sample, 24), whole)
    assert float(result.numbers["0 loss"]) == pytest.approx(expected, rel=1e-6)
    told = f"the sample of {height}x{width} was continued by mirror images to {len(rows)}x{len(columns)}"
    assert told in result.record.notes
    assert result.panels[0].image.shape == sample.shape[1:]


@pytest.mark.parametrize(("optimiser", "steps"), [("lbfgs", 20), ("adam", 40), ("gradient", 20)])
def test_the_loss_falls_and_the_share_is_of_the_noise(optimiser, steps):
    numbers = opsin.texture(MODEL, PHOTO, steps=steps, size=24, optimiser=optimiser).numbers
    assert numbers["0 loss"].shape == (steps, 1)
    assert numbers["0 loss"][-1] < 0.7 * numbers["0 loss"][0]
    torch.testing.assert_close(numbers["0 share"], numbers["0 loss"] / numbers["0 loss"][0])


def test_lbfgs_comes_near_to_a_match():
    shares = opsin.texture(MODEL, PHOTO, steps=60, size=24).numbers["0 share"]
    assert shares[-1] < 1e-2
    assert (shares.diff(dim=0) <= 1e-9).all()  # its line search never goes up


def test_the_texture_and_its_source_may_have_any_size():
    result = opsin.texture(MODEL, nets.images(1, 40, 20), steps=1, size=17, source=30)
    assert [tuple(panel.image.shape) for panel in result.panels] == [(3, 30, 15), (3, 17, 17)]


def test_a_rate_of_zero_is_zero():
    result = opsin.texture(MODEL, PHOTO, steps=2, size=24, optimiser="adam", rate=0.0)
    torch.testing.assert_close(result.images[0], start(PHOTO, 24))


def test_a_rate_of_zero_is_nothing_for_lbfgs():
    with pytest.raises(opsin.InputError, match="rate above zero"):
        opsin.texture(MODEL, PHOTO, steps=2, size=24, rate=0.0)


@pytest.mark.parametrize(
    "settings", [{}, {"stride": 1, "padding": 1}, {"ceil_mode": True}, {"stride": (2, 3)}]
)
def test_pooling_takes_the_mean_of_what_the_maximum_is_taken_of(settings):
    maps = nets.images(1, 7) - 0.5
    with AveragePooling():
        found = torch.nn.MaxPool2d(2, **settings)(maps)
    stride, padding = settings.get("stride", 2), settings.get("padding", 0)
    rows, columns = stride if isinstance(stride, tuple) else (stride, stride)
    for i in range(found.shape[2]):
        for j in range(found.shape[3]):
            top, left = i * rows - padding, j * columns - padding
            window = maps[0, :, max(top, 0) : top + 2, max(left, 0) : left + 2]
            torch.testing.assert_close(found[0, :, i, j], window.mean((1, 2)))


def test_a_maximum_whose_places_are_asked_for_stays_one():
    maps = nets.images(1, 8)
    with AveragePooling():
        values, places = F.max_pool2d(maps, 2, return_indices=True)
    assert torch.equal(values, F.max_pool2d(maps, 2))
    assert places.shape == values.shape


@pytest.mark.parametrize("optimiser", ["lbfgs", "gradient"])
def test_tiles_give_what_the_whole_gives(optimiser):
    whole, tiled = (
        opsin.texture(MODEL, PHOTO, steps=2, size=80, optimiser=optimiser, tile=tile) for tile in (768, 64)
    )
    torch.testing.assert_close(tiled.numbers["0 loss"], whole.numbers["0 loss"], rtol=1e-9, atol=0)
    torch.testing.assert_close(tiled.images, whole.images, rtol=1e-7, atol=1e-9)


def test_by_default_the_first_activation_at_every_resolution():
    assert first_activations(MODEL) == ["relu1", "relu2"]
    named = opsin.texture(MODEL, PHOTO, layers="relu1, relu2", steps=2, size=24)
    assert torch.equal(named.images, opsin.texture(MODEL, PHOTO, steps=2, size=24).images)


def test_average_pooling_leaves_the_network_and_a_maximum_elsewhere_alone():
    before = MODEL.run(PHOTO)["output"]
    opsin.texture(MODEL, PHOTO, steps=1, size=24)
    assert torch.equal(MODEL.run(PHOTO)["output"], before)


def test_a_layer_without_positions_is_refused_by_name():
    with pytest.raises(opsin.InputError, match=r"'mean' is 1x1"):
        opsin.texture(MODEL, PHOTO, layers="mean")
    with pytest.raises(opsin.NetworkError, match=r"'fc'.*no spatial extent"):
        opsin.texture(MODEL, PHOTO, layers="fc")


def test_a_network_without_positions_is_refused():
    net = nets.chain(flat=nn.Flatten(), fc=nn.Linear(3 * 16 * 16, 5))
    with pytest.raises(opsin.NetworkError, match="no layer with a spatial extent"):
        opsin.texture(nets.model(net), nets.images(1))


def test_a_photo_below_the_networks_least_size_is_refused_with_its_size():
    net = nets.chain(conv=nn.Conv2d(3, 2, 9), relu=nn.ReLU(), mean=nn.AdaptiveAvgPool2d(1))
    with pytest.raises(opsin.NetworkError, match="1x3x8x8"):
        opsin.texture(nets.model(net), nets.images(1, 8), layers="conv", size=16)


def spectrum_term(image, photo):
    """½ mean (x - x̃)² / variance, x̃ of the photo's amplitudes and phases between colours."""
    mean = photo.mean((1, 2), keepdims=True)
    x, wanted = np.fft.fft2(image - mean), np.fft.fft2(periodic(torch.tensor(photo)[None])[0].numpy() - mean)
    along = (x * wanted.conj()).sum(0)
    turned = along / np.maximum(np.abs(along), 1e-12)
    nearest = np.fft.ifft2(wanted * turned).real + mean
    variance = photo.var((1, 2), ddof=1).mean()
    return ((image - nearest) ** 2).mean() / (2 * variance)


def test_a_weight_adds_the_distance_to_the_photos_spectrum():
    result = opsin.texture(MODEL, PHOTO, steps=1, size=24, seed=4, spectrum=3.0)
    image, photo = start(PHOTO, 24, 4), PHOTO[0]
    expected = loss(image, photo) + 3 * spectrum_term(image.numpy(), photo.numpy())
    assert float(result.numbers["0 loss"]) == pytest.approx(expected, rel=1e-6)


def test_a_picture_with_the_photos_spectrum_is_at_no_distance():
    photo = 0.45 + 0.1 * PHOTO
    shaken = opsin.random_phase(photo, size=24).images
    target = spectrum_match(photo, (24, 24))
    near, far = (float(target.score(MODEL.run(image, ("image",)))) for image in (shaken, photo.flip(2) ** 2))
    assert near == pytest.approx(0, abs=1e-12)
    assert far < -0.1


def test_a_spectrum_is_that_of_the_whole_picture():
    with pytest.raises(opsin.InputError, match="tile must be at least 80"):
        opsin.texture(MODEL, PHOTO, steps=1, size=80, tile=64, spectrum=1.0)
