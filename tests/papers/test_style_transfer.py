import numpy as np
import pytest
import torch
from torch import nn

import nets
import opsin
import reference
from opsin.techniques.texture import style_transfer as module

NET = nets.plain()
MODEL = nets.model(NET)
PHOTO = nets.images(1, 16)
STYLES = [nets.images(1, 16, seed=seed) ** power for seed, power in ((7, 2), (8, 0.5))]
POOLING = {"average": reference.average_pool, "maximum": reference.pool}
ONE_STEP = {"size": 16, "steps": 1}
LEFT = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
LEFT[..., :4] = 1


def features(image, layer, pooling="average"):
    return reference.forward(NET, reference.array(image), pooling=POOLING[pooling])[layer]


def content_loss(image, pooling="average"):
    """½ mean (F - P)² at relu2, in units of the mean of P, the photo's features."""
    found, wanted = (features(one, "relu2", pooling) for one in (image, PHOTO[0]))
    return ((found - wanted) ** 2).mean() / wanted.mean() ** 2 / 2


def style_loss(image, style, mask=None, pooling="average"):
    """The mean over relu1, relu2 of 1/(4 N²) Σ_ij (G_ij - Ĝ_ij)², in units of the mean on the style."""
    terms = []
    for layer in ("relu1", "relu2"):
        found, wanted = (features(one, layer, pooling) for one in (image, style[0]))
        unit, weight = wanted.mean(), mask
        if mask is not None and layer == "relu2":
            weight = reference.average_pool(mask[None])[0]
        apart = reference.gram(found / unit, weight) - reference.gram(wanted / unit)
        terms.append((apart**2).sum() / (4 * len(found) ** 2))
    return np.mean(terms)


def first_loss(**settings):
    result = opsin.style_transfer(MODEL, PHOTO, **{"style": STYLES[0], **ONE_STEP, **settings})
    return float(result.numbers["0 loss 16x16"][0])


def noise(seed):
    drawn = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed)).double()
    return (PHOTO.mean((2, 3), keepdim=True) + 0.1 * drawn).clamp(0, 1)[0]


@pytest.mark.parametrize("pooling", ["average", "maximum"])
def test_the_loss_is_that_of_style_and_alpha_over_beta_of_content(pooling):
    image = noise(3)
    for ratio in (0.0, 0.5, 20.0):
        expected = ratio * content_loss(image, pooling) + style_loss(image, STYLES[0], pooling=pooling)
        found = first_loss(ratio=ratio, start="noise", seed=3, pooling=pooling)
        assert found == pytest.approx(expected, rel=1e-6)


def test_from_the_photo_itself_only_the_style_counts():
    assert first_loss(ratio=100.0) == pytest.approx(style_loss(PHOTO[0], STYLES[0]), rel=1e-6)


@pytest.mark.parametrize(("mix", "shares"), [(None, (0.5, 0.5)), ("3,1", (0.75, 0.25)), ("0, 2", (0.0, 1.0))])
def test_styles_are_mixed_by_their_weights(mix, shares):
    losses = [style_loss(PHOTO[0], style) for style in STYLES]
    expected = shares[0] * losses[0] + shares[1] * losses[1]
    assert first_loss(style=STYLES, mix=mix) == pytest.approx(expected, rel=1e-6)


def test_a_mask_weighs_the_positions_of_the_gram_matrix():
    mask = LEFT[0, 0].numpy()
    expected = style_loss(PHOTO[0], STYLES[0], mask)
    assert first_loss(masks=LEFT) == pytest.approx(expected, rel=1e-6)
    expected = 0.5 * expected + 0.5 * style_loss(PHOTO[0], STYLES[1], 1 - mask)
    assert first_loss(style=STYLES, masks=[LEFT, 1 - LEFT]) == pytest.approx(expected, rel=1e-6)


def test_where_the_mask_is_black_the_picture_stays_as_it_was():
    settings = {"ratio": 0.0, "optimiser": "gradient", **ONE_STEP, "steps": 3}
    changed = opsin.style_transfer(MODEL, PHOTO, style=STYLES[0], masks=LEFT, **settings).images - PHOTO
    assert (changed[..., :4] != 0).any()
    assert (changed[..., 8:] == 0).all()  # beyond what a unit of relu2 sees: 4 pixels to a side


def test_a_mask_may_have_another_size_than_the_photo():
    small = LEFT[..., ::4, ::4]
    assert first_loss(masks=small) == pytest.approx(first_loss(masks=LEFT), rel=0.2)


def test_the_loss_falls_and_style_comes_nearer():
    for optimiser in ("lbfgs", "adam", "gradient"):
        settings = {"size": 16, "steps": 20, "optimiser": optimiser}
        losses = opsin.style_transfer(MODEL, PHOTO, style=STYLES[0], **settings).numbers["0 loss 16x16"]
        assert losses.shape == (20, 1)
        assert losses[-1] < 0.7 * losses[0]


def test_more_content_stays_nearer_to_the_photo():
    near, far = (
        opsin.style_transfer(MODEL, PHOTO, style=STYLES[0], size=16, steps=20, ratio=ratio).images
        for ratio in (100.0, 0.0)
    )
    assert (near - PHOTO).norm() < (far - PHOTO).norm()


def test_the_photos_chrominance_is_kept_with_its_colours():
    middle = 0.3 + 0.4 * PHOTO  # away from black and white, where colours are cut off
    settings = {"style": STYLES[0], "size": 16, "steps": 3, "optimiser": "gradient", "rate": 0.01}
    plain = opsin.style_transfer(MODEL, middle, **settings).images[0].numpy()
    kept = opsin.style_transfer(MODEL, middle, keep_colours=True, **settings).images[0].numpy()
    grey = np.array([0.299, 0.587, 0.114])
    brightness = [np.tensordot(grey, one, 1) for one in (kept, plain, middle[0].numpy())]
    np.testing.assert_allclose(brightness[0], brightness[1], atol=1e-6)
    np.testing.assert_allclose(kept - brightness[0], middle[0].numpy() - brightness[2], atol=1e-6)
    assert np.abs(plain - brightness[1] - (kept - brightness[0])).max() > 1e-3


def test_sizes_double_from_coarse_to_fine_and_later_ones_take_half_the_steps(monkeypatch):
    monkeypatch.setattr(module, "FIRST_SCALE", 8)
    result = opsin.style_transfer(MODEL, nets.images(1, 40, 30), style=STYLES[0], size=40, steps=4)
    assert {key: len(losses) for key, losses in result.numbers.items()} == {
        "0 loss 7x10": 4,
        "0 loss 15x20": 2,
        "0 loss 30x40": 2,
    }
    assert result.images.shape == (1, 3, 40, 30)


def test_small_pictures_have_one_scale():
    assert list(opsin.style_transfer(MODEL, PHOTO, style=STYLES[0], size=40, steps=1).numbers) == [
        "0 loss 40x40"
    ]


@pytest.mark.parametrize("mix", ["1", "1,2,3", "1,-1", "0,0", "one,two", "nan,1", "inf,1"])
def test_weights_that_do_not_fit_the_styles_are_refused(mix):
    with pytest.raises(opsin.InputError, match=mix):
        opsin.style_transfer(MODEL, PHOTO, style=STYLES, mix=mix, **ONE_STEP)


def test_masks_that_do_not_fit_the_styles_are_refused():
    with pytest.raises(opsin.InputError, match="1 masks for 2 styles"):
        opsin.style_transfer(MODEL, PHOTO, style=STYLES, masks=LEFT, **ONE_STEP)
    with pytest.raises(opsin.InputError, match="mask 2 is black"):
        opsin.style_transfer(MODEL, PHOTO, style=STYLES, masks=[LEFT, 0 * LEFT], **ONE_STEP)


def test_no_style_or_one_of_a_single_pixel_is_refused():
    with pytest.raises(opsin.InputError, match="no style"):
        opsin.style_transfer(MODEL, PHOTO, style=[], **ONE_STEP)
    with pytest.raises(opsin.InputError, match="1x1 pixels"):
        opsin.style_transfer(MODEL, PHOTO, style=nets.images(1, 1), **ONE_STEP)


def test_a_photo_that_has_the_style_already_has_nothing_to_climb():
    with pytest.raises(opsin.InputError, match="exactly zero"):
        opsin.style_transfer(MODEL, PHOTO, style=PHOTO, **ONE_STEP)


def test_content_at_a_layer_without_positions_or_below_the_networks_least_size_is_refused():
    with pytest.raises(opsin.NetworkError, match=r"'fc'.*no spatial extent"):
        opsin.style_transfer(MODEL, PHOTO, style=STYLES[0], content="fc", **ONE_STEP)
    net = nets.chain(conv=nn.Conv2d(3, 2, 20), relu=nn.ReLU(), mean=nn.AdaptiveAvgPool2d(1))
    with pytest.raises(opsin.NetworkError, match="1x3x16x16"):
        opsin.style_transfer(nets.model(net, size=32), PHOTO, style=STYLES[0], **ONE_STEP)
