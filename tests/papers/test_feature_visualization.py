import numpy as np
import pytest
import torch

import nets
import opsin
import reference
from opsin.optimise.canvas import COLOUR
from opsin.optimise.cppn import Cppn
from opsin.optimise.natural import MAGNITUDES

NET = nets.plain()
MODEL = nets.model(NET)
UNCHANGED = {"shift": 0, "turn": 0.0, "zoom": 0.0}  # no random changes
STILL = {**UNCHANGED, "canvas": "fourier"}
PHASES = {**UNCHANGED, "canvas": "maco"}


MIX = np.array(COLOUR) / np.linalg.norm(COLOUR, axis=0).max()


def logit(image):
    return np.log(image / (1 - image))


def noise(seed, n=1):
    """The spectrum that a climb starts from."""
    drawn = torch.randn(n, 3, 16, 9, 2, generator=torch.Generator().manual_seed(seed))
    return 0.01 * drawn.double().numpy()


def decoded(spectrum):
    """x = σ(C F⁻¹(s ŷ) / 4), frequency by frequency."""
    scaled = np.zeros((3, 16, 9), complex)
    for i in range(16):
        for j in range(9):
            size = np.hypot(min(i, 16 - i) / 16, j / 16)
            scaled[:, i, j] = (spectrum[:, i, j, 0] + 1j * spectrum[:, i, j, 1]) / max(size, 1 / 16)
    flat = np.fft.irfft2(scaled, (16, 16), norm="ortho") / 4
    return 1 / (1 + np.exp(-np.tensordot(MIX, flat, 1)))


def class_score(image, index=3):
    return reference.forward(NET, image)["output"][index]


def test_starts_from_faint_noise_in_the_spectrum_of_decorrelated_colours():
    result = opsin.feature_visualization(MODEL, target=3, steps=1, rate=0.0, seed=5, **STILL)
    image = decoded(noise(5)[0])
    np.testing.assert_allclose(result.images[0], image, atol=1e-5)
    np.testing.assert_allclose(result.numbers["scores"], [[class_score(image)]], rtol=1e-4)


def test_the_first_step_of_adam_moves_every_number_of_the_spectrum_uphill_by_the_rate():
    start, rate = noise(0)[0], 0.05
    result = opsin.feature_visualization(MODEL, target=3, steps=1, rate=rate, **STILL)
    after = result.state["feature visualization/parameters"][0].numpy()
    for place in [(0, 0, 0, 0), (0, 1, 2, 1), (1, 3, 1, 0), (2, 0, 4, 1), (1, 15, 2, 0)]:
        moved = start.copy()
        moved[place] += 1e-5
        uphill = np.sign(class_score(decoded(moved)) - class_score(decoded(start)))
        assert after[place] - start[place] == pytest.approx(rate * uphill, abs=1e-3)


def photos_magnitudes(size=16):
    """r at every frequency: on straight lines between the measured ones, in logarithms; 0 of the mean."""
    known = np.log(np.array(MAGNITUDES))
    found = np.zeros((3, size, size // 2 + 1))
    for i in range(size):
        for j in range(size // 2 + 1):
            at = np.hypot(min(i, size - i) / size, j / size)
            for channel in range(3):
                if at:
                    found[channel, i, j] = np.exp(np.interp(np.log(at), known[:, 0], known[:, 1 + channel]))
    return found


def of_phases(phases):
    """x = σ(C F⁻¹(r e^{iφ}) / 4)."""
    spectrum = photos_magnitudes() * (np.cos(phases) + 1j * np.sin(phases))
    flat = np.fft.irfft2(spectrum, (16, 16), norm="ortho") / 4
    return 1 / (1 + np.exp(-np.tensordot(MIX, flat, 1)))


def test_maco_starts_from_random_phases_and_moves_every_phase_uphill_by_the_rate():
    rate = 0.02
    drawn = torch.rand(1, 3, 16, 9, generator=torch.Generator().manual_seed(5))[0].double().numpy()
    flat = np.tensordot(np.linalg.inv(MIX), logit(of_phases(np.pi * (2 * drawn - 1))), 1)
    image = of_phases(np.angle(np.fft.rfft2(flat)))  # which are those of real numbers, at every frequency
    still = opsin.feature_visualization(MODEL, target=3, steps=1, rate=0.0, seed=5, **PHASES)
    np.testing.assert_allclose(still.images[0], image, atol=1e-4)
    result = opsin.feature_visualization(MODEL, target=3, steps=1, rate=rate, seed=5, **PHASES)
    start, after = (
        one.state["feature visualization/parameters"][0].double().numpy() for one in (still, result)
    )
    np.testing.assert_allclose(of_phases(start), image, atol=1e-4)
    for place in [(0, 1, 2), (1, 3, 1), (2, 0, 4), (1, 15, 2)]:
        moved = start.copy()
        moved[place] += 1e-4
        uphill = np.sign(class_score(of_phases(moved)) - class_score(of_phases(start)))
        assert after[place] - start[place] == pytest.approx(rate * uphill, abs=1e-3)


def test_maco_keeps_the_magnitudes_of_photos():
    image = opsin.feature_visualization(MODEL, target=3, steps=20, canvas="maco").images[0].double().numpy()
    flat = 4 * np.tensordot(np.linalg.inv(MIX), logit(image), 1)
    found = np.abs(np.fft.rfft2(flat, norm="ortho"))
    inner = (slice(None), slice(1, 8), slice(1, 8))  # where a phase is free
    np.testing.assert_allclose(found[inner], photos_magnitudes()[inner], rtol=1e-2)


def test_a_network_of_coordinates_begins_otherwise_for_each_picture_and_gives_what_it_decodes():
    chosen = {"canvas": "cppn", "steps": 1, "rate": 0.0, "pictures": 2, "seed": 4, **UNCHANGED}
    result = opsin.feature_visualization(MODEL, target=3, **chosen)
    canvas = Cppn(16, 16, seed=4)
    weights = canvas.encode(torch.zeros(2, 3, 16, 16))
    assert not torch.equal(*weights)
    torch.testing.assert_close(result.images, canvas.decode(weights), rtol=1e-4, atol=1e-4)


def test_the_magnitudes_of_photos_fall_with_the_frequency():
    table = np.array(MAGNITUDES)
    assert (np.diff(table[:, 0]) > 0).all()
    assert (np.diff(table[:, 1:], axis=0) < 0).all()


def test_scores_the_picture_after_a_random_shift():
    result = opsin.feature_visualization(MODEL, target=3, steps=1, **{**STILL, "shift": 1})
    image = decoded(noise(0)[0])
    shifted = [class_score(np.roll(image, (i, j), (1, 2))) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    assert min(abs(float(result.numbers["scores"]) - score) for score in shifted) < 1e-5


@pytest.mark.parametrize("change", [{"shift": 3}, {"turn": 30.0}, {"zoom": 0.3}])
def test_every_random_change_is_drawn_from_the_seed(change):
    settings = {**STILL, **change, "steps": 3, "target": 3}
    still = opsin.feature_visualization(MODEL, **{**settings, **STILL}).images
    changed = opsin.feature_visualization(MODEL, **settings).images
    assert not torch.equal(changed, still)
    assert torch.equal(changed, opsin.feature_visualization(MODEL, **settings).images)
    assert not torch.equal(changed, opsin.feature_visualization(MODEL, **settings, seed=1).images)


@pytest.mark.parametrize("canvas", ["maco", "fourier", "cppn"])
@pytest.mark.parametrize("target", [3, "conv2:4", "neuron(conv2, 4)", "energy(relu2)"])
def test_the_score_rises(target, canvas):
    # one place, of which a shift leaves little; and all of a small picture, which it changes
    changes = UNCHANGED if "neuron" in str(target) or canvas != "fourier" else {}
    scores = opsin.feature_visualization(MODEL, target=target, steps=30, canvas=canvas, **changes).numbers[
        "scores"
    ]
    assert scores[-3:].mean() > scores[:3].mean()


def test_several_targets_make_a_picture_each():
    result = opsin.feature_visualization(MODEL, target="beagle; conv2:4", steps=20, **STILL)
    assert [panel.group for panel in result.panels] == ["2 (beagle)", "conv2:4"]
    assert len({float(image.mean()) for image in (panel.image for panel in result.panels)}) == 2
    assert (result.numbers["scores"][-1] > result.numbers["scores"][0]).all()


def likeness(images):
    """The mean cosine of the Gram matrices of each two pictures, at relu2."""
    grams = []
    for image in images:
        maps = reference.forward(NET, reference.array(image))["conv2"].reshape(6, -1)
        gram = (maps @ maps.T).ravel()
        grams.append(gram / np.linalg.norm(gram))
    return np.mean([a @ b for i, a in enumerate(grams) for b in grams[:i]])


def test_several_pictures_of_one_target_are_kept_apart_at_its_layer():
    apart, free = (
        opsin.feature_visualization(MODEL, target="conv2:4", pictures=3, variety=weight, steps=30).images
        for weight in (20.0, 0.0)
    )
    assert len(apart) == 3
    assert likeness(apart) < likeness(free)


def test_of_one_picture_variety_says_nothing():
    one, other = (
        opsin.feature_visualization(MODEL, target="conv2:4", variety=weight, steps=3).images
        for weight in (5.0, 0.0)
    )
    assert torch.equal(one, other)


def test_several_pictures_of_several_targets_are_refused():
    with pytest.raises(opsin.InputError, match="2 targets"):
        opsin.feature_visualization(MODEL, target="beagle; conv2:4", pictures=3, steps=1)


def test_a_classifier_of_one_size_is_climbed_at_another_and_not_asked_for_its_class():
    model = nets.model(nets.viewing())
    result = opsin.feature_visualization(model, target="conv:1", size=32, steps=1)
    assert result.images.shape == (1, 3, 32, 32)
    assert "the network sees" not in result.panels[0].caption
    result = opsin.feature_visualization(model, target="conv:1", steps=1)
    assert "the network sees" in result.panels[0].caption


def test_a_picture_may_have_another_size_than_the_model():
    assert opsin.feature_visualization(MODEL, target=3, size=25, steps=1).images.shape == (1, 3, 25, 25)
