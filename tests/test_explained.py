"""What a record says of the target is read off the technique's own runs."""

from collections import Counter

import pytest
import torch

import nets
import opsin
from opsin.network.model import Model
from opsin.objectives.units import PREDICTED
from opsin.registry.explained import Explained

IMAGES = nets.images(3)


def counted(monkeypatch, model):
    """The forward passes of a model from now on."""
    assert model.calls
    count, run = Counter(), Model.run

    def counting(self, images, *args, **kwargs):
        count["forward"] += 1
        return run(self, images, *args, **kwargs)

    monkeypatch.setattr(Model, "run", counting)
    return count


@pytest.mark.parametrize("target", [None, "beagle", "conv2:1", ["beagle", "conv2:1", None]])
def test_the_scores_come_from_the_run_that_the_technique_made(monkeypatch, target):
    model = nets.model(nets.plain())
    count = counted(monkeypatch, model)
    made = opsin.saliency(model, IMAGES, target)
    assert len(made.record.targets) == 3
    assert count["forward"] == 1


def test_a_technique_that_asks_for_each_images_own_target_only_needs_no_run_of_its_own(monkeypatch):
    model = nets.model(nets.plain())
    expected = opsin.saliency(model, IMAGES).record.targets
    count = counted(monkeypatch, model)
    run = model.run(IMAGES)
    explained = Explained(model, IMAGES, PREDICTED)
    explained.followed().for_image(run, 2)
    assert explained.targets() == expected
    assert count["forward"] == 1


def test_a_run_on_changed_images_is_not_taken_for_theirs(monkeypatch):
    model = nets.model(nets.plain())
    expected = opsin.saliency(model, IMAGES).record.targets
    explained = Explained(model, IMAGES, PREDICTED)
    explained.followed().score(model.run(IMAGES.flip(0)))
    explained.followed().score(model.run(IMAGES[:1]))
    count = counted(monkeypatch, model)
    assert explained.targets() == expected
    assert count["forward"] == 1
    assert explained.targets() == expected
    assert count["forward"] == 1


def test_a_copy_of_the_images_is_taken_for_them(monkeypatch):
    model = nets.model(nets.plain())
    explained = Explained(model, IMAGES, PREDICTED)
    explained.followed().score(model.run(IMAGES.clone()))
    count = counted(monkeypatch, model)
    assert len(explained.targets()) == 3
    assert not count


def test_the_predicted_class_without_names_is_its_index():
    model = nets.model(nets.plain(), labels=None)
    for target, image in zip(opsin.saliency(model, IMAGES).record.targets, IMAGES, strict=True):
        assert target.name == f"class {int(model.run(image[None])['output'].argmax())}"


def test_a_single_score_has_the_probability_of_its_sigmoid():
    net = nets.plain()
    net.fc = nets.linear(torch.ones(1, 6).tolist(), [0.5])
    (target,) = opsin.saliency(nets.model(net, labels=None), IMAGES[:1]).record.targets
    assert target.probability == pytest.approx(float(torch.tensor(target.score).sigmoid()), rel=1e-6)


def test_an_objective_of_ones_own_goes_by_its_name():
    own = opsin.Objective("contrast", ("conv2",), lambda a: a["conv2"].flatten(1).std(1))
    targets = opsin.saliency(nets.model(nets.plain()), IMAGES, own).record.targets
    assert {(target.name, target.probability) for target in targets} == {("contrast", None)}
    assert len({target.score for target in targets}) == 3


def test_a_score_that_is_not_finite_is_left_out():
    net = nets.plain()
    net.fc.weight.data[2] = torch.nan
    (target,) = opsin.saliency(nets.model(net), IMAGES[:1], "beagle").record.targets
    assert (target.name, target.score, target.probability) == ("beagle", None, None)
