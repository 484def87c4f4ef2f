import pytest
import torch
from torch import nn

import nets
import opsin
from nets import MEAN, STD
from opsin.objectives.losses import cross_entropy
from opsin.objectives.priors import norm
from opsin.optimise.ascent import ascend
from opsin.optimise.recipe import Recipe

NET = nets.seeded(nets.Chain(flat=nn.Flatten(), fc=nn.Linear(3 * 4 * 4, 2)))
NET.fc.weight.data *= 0.05
MODEL = nets.model(NET, size=4)
IMAGES = 0.3 + 0.4 * nets.images(3, 4)
ZERO, UNIT = (torch.tensor(value, dtype=torch.float64).view(3, 1, 1) for value in (MEAN, STD))


def distance(image):
    """From a photo to the boundary between two classes of a linear network."""
    w = (NET.fc.weight[0] - NET.fc.weight[1]).detach() / UNIT.expand(3, 4, 4).reshape(-1)
    z = NET(((image - ZERO) / UNIT)[None])[0].detach()
    return float((z[0] - z[1]).abs() / w.norm())


def test_the_change_of_a_linear_network_is_little_longer_than_the_way_to_the_boundary():
    result = opsin.lbfgs_attack(MODEL, IMAGES[:2], searches=9, steps=8)
    assert all(result.success)
    for image, length in zip(IMAGES[:2], result.length, strict=True):
        assert distance(image) < float(length) < 1.1 * distance(image)


def test_more_searches_find_shorter_changes():
    few, many = (opsin.lbfgs_attack(MODEL, IMAGES[:1], searches=n, steps=8) for n in (3, 8))
    assert (many.length <= few.length + 1e-9).all()


def test_the_change_is_a_minimum_of_the_objective():
    weak = nets.chain(flat=nn.Flatten(), fc=nets.linear((0.02 * NET.fc.weight).tolist(), [0.1, -0.1]))
    result = opsin.lbfgs_attack(nets.model(weak, size=4), IMAGES[:1], searches=1, steps=30)
    weight, x0 = 0.1, IMAGES[:1]
    w = (weak.fc.weight[0] - weak.fc.weight[1]).detach() / UNIT.expand(3, 4, 4).reshape(-1)
    wanted = result.outcomes[0].towards.class_index
    sign = 1 if wanted == 0 else -1
    gap = float((weak(((x0[0] - ZERO) / UNIT)[None])[0].detach() * torch.tensor([1.0, -1.0])).sum())
    # r = s w / ‖w‖ with 2 c s = ‖w‖ p_y(s), by bisection
    low, high = 0.0, 10.0
    for _ in range(100):
        s = (low + high) / 2
        other = 1 / (1 + torch.exp(torch.tensor(sign * gap + s * float(w.norm()))))
        low, high = (s, high) if 2 * weight * s < float(w.norm() * other) else (low, s)
    expected = x0 + sign * s * (w / w.norm()).view(1, 3, 4, 4)
    torch.testing.assert_close(result.attacked, expected.clamp(0, 1), rtol=1e-5, atol=1e-5)


def test_a_wanted_class_is_reached():
    net = nets.seeded(nets.Chain(flat=nn.Flatten(), fc=nn.Linear(3 * 4 * 4, 5)))
    model, images = nets.model(net, size=4), IMAGES[:2]
    seen = [row[0].class_index for row in model.predict(images)]
    wanted = [(index + 2) % 5 for index in seen]
    result = opsin.lbfgs_attack(model, images, towards=wanted, searches=3, steps=8)
    assert [outcome.after[0].class_index for outcome in result.outcomes] == wanted
    assert all(result.success)


def test_without_a_class_it_is_the_second_most_probable():
    model, images = nets.model(nets.plain()), nets.images(2)
    result = opsin.lbfgs_attack(model, images, searches=1, steps=1)
    for outcome in result.outcomes:
        assert outcome.towards.class_index == outcome.before[1].class_index


@pytest.mark.parametrize("searches", [1, 4])
def test_each_weight_is_one_climb(searches):
    seen = []
    with opsin.listening(seen.append):
        opsin.lbfgs_attack(MODEL, IMAGES, searches=searches, steps=3)
    assert len(seen) == 3 * searches * 3 + 1
    objective = -cross_entropy(torch.tensor([1])) + 0.1 * norm(2.0, IMAGES[:1])
    assert len(list(ascend(MODEL, objective, IMAGES[:1], Recipe(steps=3, rate=1, optimiser="lbfgs")))) == 4
