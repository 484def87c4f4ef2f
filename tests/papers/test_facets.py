import sys

import numpy as np
import pytest
import torch

import nets
import opsin
import reference
from opsin.cli import main
from opsin.techniques.optimised.facets import towards_centre

NET = nets.plain()
MODEL = nets.model(NET)
TINT = torch.tensor([0.4, -0.3, -0.4], dtype=torch.float64).view(3, 1, 1)


def photos(n=12):
    """Two obvious kinds in turn: reddish and bluish, each with noise of its own."""
    noise = 0.5 + 0.2 * (nets.images(n) - 0.5)
    return torch.stack([one + (TINT if index % 2 else -TINT) for index, one in enumerate(noise)])


PHOTOS = photos()
FEW = {"clusters": 2, "nearest": 3, "steps": 2, "layer": "relu2"}


def made(result):
    """The groups of panels, by their captions."""
    groups = {}
    for panel in result.panels:
        groups.setdefault(panel.group, []).append(panel)
    return list(groups.values())


def score(image, target, weight=3e-3):
    """S(x) - λ V(x), pixel by pixel."""
    total = reference.forward(NET, image)["output"][target]
    for channel in image:
        for i in range(len(channel) - 1):
            for j in range(len(channel[0]) - 1):
                right, down = channel[i, j + 1] - channel[i, j], channel[i + 1, j] - channel[i, j]
                total -= weight * (right**2 + down**2)
    return total


def test_two_obvious_kinds_of_photo_are_two_clusters():
    result = opsin.facets(MODEL, PHOTOS, target=3, **FEW)
    found = result.numbers["cluster"]
    assert set(found[::2].tolist()) == {int(found[0])}
    assert set(found[1::2].tolist()) == {int(found[1])}
    assert found[0] != found[1]
    assert [group[0].group for group in made(result)] == ["facet 1 (6 photos)", "facet 2 (6 photos)"]


def test_each_starts_from_the_mean_of_the_photos_nearest_its_centre():
    result = opsin.facets(MODEL, PHOTOS, target=3, **FEW)
    places, labels = result.numbers["map"].numpy(), result.numbers["cluster"].numpy()
    for index, group in enumerate(made(result)):
        own = [k for k in range(len(PHOTOS)) if labels[k] == index]
        centre = places[own].mean(0)
        nearest = sorted(own, key=lambda k: np.linalg.norm(places[k] - centre))[:3]
        shown = [panel.image for panel in group if panel.caption == "photo"]
        torch.testing.assert_close(torch.stack(shown), PHOTOS[nearest])
        (mean,) = [panel.image for panel in group if panel.caption == "mean of 3"]
        torch.testing.assert_close(mean, PHOTOS[nearest].mean(0))


def test_a_mean_is_of_no_photo_of_another_cluster(monkeypatch):
    """The middle of a wide cluster may lie nearer to photos of a narrow one than to its own."""
    places = np.array([[0.0, 10.0], [0.0, -10.0], *[[8.0, 0.0]] * 6])
    labels = np.array([0, 0, *[1] * 6])
    centres = np.array([[0.0, 0.0], [8.0, 0.0]])
    monkeypatch.setattr("opsin.techniques.optimised.facets.clustered", lambda *_: (places, labels, centres))
    result = opsin.facets(MODEL, PHOTOS[:8], target=3, **FEW)
    wide = made(result)[0]
    assert [panel.caption for panel in wide[:-1]] == ["photo", "photo", "mean of 2"]
    torch.testing.assert_close(wide[2].image, PHOTOS[:2].mean(0))


def test_climbs_the_class_score_less_the_total_variation_from_the_mean():
    result = opsin.facets(MODEL, PHOTOS, target=3, shift=0, **FEW)
    for index, group in enumerate(made(result)):
        (mean,) = [panel.image for panel in group if panel.caption.startswith("mean")]
        expected = score(reference.array(mean), 3)
        assert float(result.numbers["scores"][0, index]) == pytest.approx(expected, rel=1e-5)


def test_the_score_rises_over_the_three_phases():
    scores = opsin.facets(MODEL, PHOTOS, target=3, **{**FEW, "steps": 10}).numbers["scores"]
    assert scores.shape == (30, 2)
    assert (scores[-1] > scores[0]).all()


def test_the_gradient_is_multiplied_by_a_gaussian_around_the_middle():
    images = nets.images(1, 6, 4).requires_grad_()
    seen = towards_centre(0.2)(images, torch.Generator())
    torch.testing.assert_close(seen, images)
    signal = torch.rand(seen.shape, dtype=seen.dtype, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(seen, images, signal)
    for i in range(6):
        for j in range(4):
            row, column = i / 5 - 0.5, j / 3 - 0.5
            share = np.exp(-(row**2 + column**2) / (2 * 0.2**2))
            torch.testing.assert_close(gradient[..., i, j], share * signal[..., i, j])


def test_by_default_the_target_is_the_class_that_most_photos_are_put_in():
    classes = [int(reference.forward(NET, reference.array(one))["output"].argmax()) for one in PHOTOS]
    index = max(set(classes), key=classes.count)
    result = opsin.facets(MODEL, PHOTOS, **FEW)
    told = f"target: {nets.LABELS[index]}, the class of {classes.count(index)} of {len(PHOTOS)} photos"
    assert told in result.record.notes
    named = opsin.facets(MODEL, PHOTOS, target=index, **FEW)
    assert torch.equal(result.numbers["scores"], named.numbers["scores"])


def test_fewer_photos_than_clusters_are_refused():
    with pytest.raises(opsin.InputError, match="3 photos cannot make 4 clusters"):
        opsin.facets(MODEL, PHOTOS[:3], clusters=4)
    with pytest.raises(opsin.InputError, match="1 photos"):
        opsin.facets(MODEL, PHOTOS[:1], clusters=1)


def test_as_many_photos_as_clusters_make_a_facet_each():
    assert len(made(opsin.facets(MODEL, PHOTOS[:3], target=3, **{**FEW, "clusters": 3}))) == 3


def test_photos_that_are_all_alike_are_refused():
    with pytest.raises(opsin.InputError, match="too few different"):
        opsin.facets(MODEL, PHOTOS[:1].repeat(6, 1, 1, 1), target=3, **FEW)


@pytest.mark.parametrize("seed", [-1, 2**40])
def test_a_seed_that_k_means_does_not_take_is_refused(seed):
    with pytest.raises(opsin.InputError, match=f"seed must be at .*, not {seed}"):
        opsin.facets(MODEL, PHOTOS, target=3, seed=seed)


def test_a_network_without_classes_needs_a_target():
    model = nets.model(nets.chain(conv=torch.nn.Conv2d(3, 4, 3), relu=torch.nn.Softplus()), labels=None)
    with pytest.raises(opsin.InputError, match="gives no classes"):
        opsin.facets(model, PHOTOS, **{**FEW, "layer": "relu"})
    assert len(made(opsin.facets(model, PHOTOS, target="relu:1", **{**FEW, "layer": "relu"}))) == 2


def test_an_empty_folder_is_told_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["opsin", "facets", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code
    said = " ".join(capsys.readouterr().err.split())
    assert "is a folder without images" in said
    assert tmp_path.name in said


def test_too_few_photos_in_a_folder_are_told():
    with pytest.raises(opsin.InputError, match="2 photos cannot make 4 clusters"):
        opsin.facets(MODEL, PHOTOS[:2])


def test_the_target_may_be_a_unit_of_any_layer():
    result = opsin.facets(MODEL, PHOTOS, target="conv2:4", **FEW)
    assert result.panels[-1].caption.startswith("conv2:4; the network sees")


def test_a_layer_of_a_single_channel_will_do():
    net = nets.chain(
        conv=torch.nn.Conv2d(3, 1, 3), relu=torch.nn.Softplus(), mean=torch.nn.AdaptiveAvgPool2d(1)
    )
    model = nets.model(net, labels=None)
    result = opsin.facets(model, PHOTOS, target="conv:0", layer="conv", clusters=2, steps=1)
    assert len(made(result)) == 2
