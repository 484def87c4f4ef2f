import numpy as np
import pytest
import torch
from torch import nn

import nets
import opsin
import reference
from opsin.images.tensors import enlarged, resized
from opsin.optimise.transforms import affine

NET = nets.plain()
MODEL = nets.model(NET)
IMAGES = nets.images(2, 40)
STILL = {"shift": 0, "layers": "relu2"}


def energy(image, layer="relu2"):
    """½ mean(A²) and its gradient, which is A over the number of its values, carried down."""
    a = reference.forward(NET, image)
    signal = a[layer] / a[layer].size
    return (a[layer] ** 2).mean() / 2, reference.backward(NET, a, signal, start=layer)


def stepped(image, gradient, rate):
    """y + rate · g / mean|g|, kept from 0 to π/2, with x = sin² y and g the gradient in y."""
    angles = np.arcsin(np.sqrt(image))
    gradient = gradient * np.sin(2 * angles)
    angles = (angles + rate * gradient / np.abs(gradient).mean()).clip(0, np.pi / 2)
    return np.sin(angles) ** 2


def dreamt(result):
    return [panel.image for panel in result.panels if panel.group == "dream"]


def test_a_step_adds_the_gradient_of_the_energy_divided_by_its_mean_size():
    result = opsin.deepdream(MODEL, IMAGES, steps=1, octaves=1, rate=0.01, **STILL)
    for index, (image, dream) in enumerate(zip(IMAGES, dreamt(result), strict=True)):
        score, gradient = energy(reference.array(image))
        np.testing.assert_allclose(dream, stepped(reference.array(image), gradient, 0.01), atol=1e-9)
        found = float(result.numbers["frame 1, octave 1"][0, index])
        assert found == pytest.approx(score, rel=1e-9)


def test_what_an_octave_added_is_enlarged_and_carried_into_the_next():
    result = opsin.deepdream(MODEL, IMAGES[:1], steps=1, octaves=2, ratio=2.0, rate=0.01, **STILL)
    small = resized(IMAGES[:1], (20, 20))
    first = stepped(reference.array(small[0]), energy(reference.array(small[0]))[1], 0.01)
    detail = enlarged(torch.from_numpy(first)[None] - small, (40, 40))
    start = reference.array((IMAGES[:1] + detail).clamp(0, 1)[0])
    np.testing.assert_allclose(dreamt(result)[0], stepped(start, energy(start)[1], 0.01), atol=1e-8)


def test_octaves_are_smaller_by_the_ratio_and_never_below_their_least_side():
    result = opsin.deepdream(MODEL, nets.images(1, 40, 30), steps=1, octaves=4, ratio=1.4, layers="relu2")
    sizes = [tuple(result.state[f"octave {k + 1}/parameters"].shape[2:]) for k in range(4)]
    assert sizes == [(16, 16), (20, 16), (29, 21), (40, 30)]  # 40 / 1.4³ = 14.6 -> 16, 30 / 1.4² = 15.3 -> 16


def test_the_dream_may_have_another_size_than_the_photo():
    result = opsin.deepdream(MODEL, nets.images(1, 40, 30), steps=1, octaves=1, size=60, layers="relu2")
    assert result.images.shape == (1, 3, 60, 45)


def test_several_layers_are_added():
    result = opsin.deepdream(MODEL, IMAGES[:1], steps=1, octaves=1, shift=0, layers="conv1, relu2")
    found = float(result.numbers["frame 1, octave 1"])
    image = reference.array(IMAGES[0])
    assert found == pytest.approx(energy(image, "conv1")[0] + energy(image)[0], rel=1e-9)


def test_a_dream_may_begin_from_noise_which_the_seed_draws():
    dreams = [
        opsin.deepdream(MODEL, IMAGES, start=start, seed=seed, steps=1, octaves=1, rate=1e-9, **STILL).images
        for start, seed in (("photo", 1), ("noise", 1), ("noise", 1), ("noise", 2))
    ]
    assert torch.allclose(dreams[0], IMAGES, atol=1e-6)
    assert torch.equal(dreams[1], dreams[2])
    assert (dreams[1] - dreams[3]).abs().mean() > 0.05
    assert (dreams[1] - IMAGES).abs().mean() > 0.05


def test_only_the_dreams_are_said_to_be_made():
    result = opsin.deepdream(MODEL, IMAGES, steps=1, octaves=1, **STILL)
    assert [panel.made for panel in result.panels] == [False, False, True, True]
    assert torch.equal(result.images, torch.stack(dreamt(result)))


def test_a_channel_takes_the_place_of_the_energy():
    result = opsin.deepdream(MODEL, IMAGES[:1], channel=4, steps=1, octaves=1, **STILL)
    mean = reference.forward(NET, reference.array(IMAGES[0]))["relu2"][4].mean()
    assert float(result.numbers["frame 1, octave 1"]) == pytest.approx(mean, rel=1e-9)


def matched(features, guide):
    """For every position the guide's features of the largest product, position by position."""
    wanted = np.zeros_like(features)
    for i in range(features.shape[1]):
        for j in range(features.shape[2]):
            products = np.tensordot(features[:, i, j], guide, 1)
            a, b = divmod(int(products.argmax()), guide.shape[2])
            wanted[:, i, j] = guide[:, a, b]
    return wanted


def test_a_guide_is_matched_position_by_position():
    guide = nets.images(1, 24, 32, seed=3)
    result = opsin.deepdream(MODEL, IMAGES, guide=guide, steps=1, octaves=1, rate=0.01, **STILL)
    theirs = reference.forward(NET, reference.array(guide[0]))["relu2"]
    for index, (image, dream) in enumerate(zip(IMAGES, dreamt(result), strict=True)):
        x = reference.array(image)
        a = reference.forward(NET, x)
        wanted = matched(a["relu2"], theirs)
        score = float(result.numbers["frame 1, octave 1"][0, index])
        assert score == pytest.approx((a["relu2"] * wanted).mean(), rel=1e-9)
        gradient = reference.backward(NET, a, wanted / wanted.size, start="relu2")
        np.testing.assert_allclose(dream, stepped(x, gradient, 0.01), atol=1e-9)


def sizes_seen(net, **settings):
    seen = []
    model = nets.model(net)
    assert model.calls
    net.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    result = opsin.deepdream(model, **{"steps": 1, "octaves": 1, **STILL, **settings})
    return seen, result


def test_pictures_above_the_tile_size_are_dreamt_tile_by_tile():
    image = nets.images(1, 70, 100)
    seen, result = sizes_seen(nets.plain(), images=image, tile=64, rate=0.01)
    assert seen == [(35, 50)] * 4
    parts = [image[0, :, i : i + 35, j : j + 50] for i in (0, 35) for j in (0, 50)]
    scores, gradients = zip(*(energy(reference.array(part)) for part in parts), strict=True)
    whole = np.concatenate([np.concatenate(gradients[k : k + 2], 2) for k in (0, 2)], 1)
    np.testing.assert_allclose(dreamt(result)[0], stepped(reference.array(image[0]), whole, 0.01), atol=1e-9)
    assert float(result.numbers["frame 1, octave 1"]) == pytest.approx(np.mean(scores), rel=1e-9)


def test_pictures_up_to_the_tile_size_are_dreamt_whole():
    assert sizes_seen(nets.plain(), images=nets.images(1, 64), tile=64)[0] == [(64, 64)]


def test_a_film_has_its_frames_each_dreamt_from_the_enlarged_one_before(tmp_path):
    settings = {"steps": 1, "octaves": 1, **STILL}
    film = opsin.deepdream(MODEL, IMAGES[:1], frames=3, zoom=1.2, **settings)
    assert film.film
    assert film.images.shape == (3, 3, 40, 40)
    assert [panel.caption for panel in film.panels[1:]] == ["frame 1", "frame 2", "frame 3"]
    picture = IMAGES[:1]
    for frame in film.images:
        dream = opsin.deepdream(MODEL, picture, **settings).images
        torch.testing.assert_close(frame, dream[0], rtol=1e-9, atol=1e-9)
        picture = affine(0.0, 1.2, 1.2)(dream, torch.Generator())
    assert (film.save(tmp_path / "film") / "animation.webp").is_file()


def test_the_score_rises_in_every_octave():
    result = opsin.deepdream(MODEL, IMAGES, steps=6, octaves=3, layers="relu2")
    assert len(result.numbers) == 3
    for scores in result.numbers.values():
        assert (scores[-1] > scores[0]).all()


def test_by_default_dreams_of_the_last_layer_at_the_last_resolution_but_one():
    result = opsin.deepdream(MODEL, IMAGES[:1], steps=1, octaves=1)
    assert result.panels[-1].caption == "energy(relu1)"


def test_a_guide_and_a_channel_two_guides_or_a_film_of_two_photos_are_refused():
    guide = nets.images(1, 24)
    with pytest.raises(opsin.InputError, match="a guide or a channel"):
        opsin.deepdream(MODEL, IMAGES, guide=guide, channel=1, **STILL)
    with pytest.raises(opsin.InputError, match="one guide, not 2"):
        opsin.deepdream(MODEL, IMAGES, guide=[guide, guide], **STILL)
    with pytest.raises(opsin.InputError, match="one photo, not of 2"):
        opsin.deepdream(MODEL, IMAGES, frames=2, **STILL)


def test_a_guide_at_a_layer_without_positions_is_refused_by_name():
    with pytest.raises(opsin.NetworkError, match=r"'fc'.*no spatial extent"):
        opsin.deepdream(MODEL, IMAGES, guide=nets.images(1, 24), layers="fc")


def test_an_unknown_channel_is_refused_with_those_that_there_are():
    with pytest.raises(opsin.InputError, match="0 to 5, not 6"):
        opsin.deepdream(MODEL, IMAGES, channel=6, **STILL)


def test_a_layer_that_is_off_everywhere_is_refused_by_name():
    net = nets.plain()
    net.conv2.bias.data[:] = -1000
    with pytest.raises(opsin.InputError, match=r"'energy\(relu2\)' is exactly zero"):
        opsin.deepdream(nets.model(net), IMAGES, layers="relu2")


def test_a_network_without_positions_is_refused():
    net = nets.chain(flat=nn.Flatten(), fc=nn.Linear(3 * 16 * 16, 5))
    with pytest.raises(opsin.NetworkError, match="no layer with a spatial extent"):
        opsin.deepdream(nets.model(net), nets.images(1))
