import pytest
import torch
from torch.nn.functional import cross_entropy

import nets
import opsin
from nets import MEAN, STD
from opsin.optimise.ball import Ball

NET = nets.plain()
MODEL = nets.model(NET)
IMAGES = nets.images(2)
ZERO, UNIT = (torch.tensor(value, dtype=torch.float64).view(3, 1, 1) for value in (MEAN, STD))
LABELS = NET((IMAGES - ZERO) / UNIT).argmax(1)


def slow(start, epsilon, rate, steps, norm, loss=cross_entropy):
    """x ← Π(x + α d) image by image, with autograd alone."""
    found = []
    for x0, first, label in zip(IMAGES, start, LABELS, strict=True):
        x = first
        for _ in range(steps):
            x = x.detach().clone().requires_grad_()
            (g,) = torch.autograd.grad(loss(NET(((x - ZERO) / UNIT)[None]), label[None]), x)
            if norm == "linf":
                moved = x.detach() + rate * g.sign()
                moved = torch.maximum(torch.minimum(moved, x0 + epsilon), x0 - epsilon)
            else:
                moved = x.detach() + rate * g / g.square().sum().sqrt() - x0
                moved = x0 + moved * min(1.0, epsilon / float(moved.square().sum().sqrt()))
            x = moved.clamp(0, 1)
        found.append(x)
    return torch.stack(found)


def difference(output, label):
    others = output[0].clone()
    others[label] = -torch.inf
    return others.max() - output[0, label]


def ratio(output, label):
    top = output[0].sort(descending=True).values
    return difference(output, label) / (top[0] - top[2])


LOSSES = {"cross_entropy": cross_entropy, "margin": difference, "logits_ratio": ratio}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("norm", "radius"), [("linf", 0.01), ("l2", 0.2)])
def test_steps_up_the_loss_in_a_ball(norm, radius, loss):
    ball = {"epsilon": radius} if norm == "linf" else {"l2": radius}
    result = opsin.pgd(
        MODEL, IMAGES, **ball, steps=4, rate=0.3 * radius, random_start=False, loss=loss, label=LABELS
    )
    expected = slow(IMAGES, radius, 0.3 * radius, 4, norm, LOSSES[loss])
    torch.testing.assert_close(result.attacked, expected, rtol=1e-9, atol=1e-9)
    lengths = result.largest if norm == "linf" else result.length
    assert (lengths <= radius * (1 + 1e-9)).all()


def test_starts_at_a_random_place_of_the_ball_the_same_for_each_photo():
    start = Ball(IMAGES, 0.05).random(torch.Generator().manual_seed(7))
    result = opsin.pgd(MODEL, IMAGES, epsilon=0.05, steps=2, rate=0.01, label=LABELS, seed=7)
    torch.testing.assert_close(result.attacked, slow(start, 0.05, 0.01, 2, "linf"), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("norm", "radius"), [("linf", 0.3), ("l2", 0.5)])
def test_random_places_fill_the_ball(norm, radius):
    middle = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    places = torch.cat([Ball(middle, radius, norm).random(draw) - middle for _ in range(300)]).flatten(1)
    if norm == "linf":
        assert places.abs().max() <= radius
        assert places.abs().mean() == pytest.approx(radius / 2, rel=0.02)
        assert places.mean() == pytest.approx(0, abs=0.01)
    else:
        lengths = Ball(middle, radius, norm).random(draw).sub(middle).norm()
        assert lengths <= radius
        # a share of 2^-d of the volume lies within half of the radius
        assert (places.norm(dim=1) < 0.9 * radius).float().mean() < 0.05


def test_of_several_starts_each_photo_keeps_the_best():
    given = {"epsilon": 0.02, "steps": 2, "label": LABELS}
    draw = torch.Generator().manual_seed(0)
    starts = [Ball(IMAGES, 0.02).random(draw) for _ in range(3)]
    tries = [slow(start, 0.02, 2.5 * 0.02 / 2, 2, "linf") for start in starts]
    losses = torch.stack(
        [cross_entropy(NET((x - ZERO) / UNIT), LABELS, reduction="none").detach() for x in tries]
    )
    fooled = torch.stack([NET((x - ZERO) / UNIT).argmax(1) != LABELS for x in tries])
    best = torch.where(fooled, torch.inf, losses).argmax(0)
    result = opsin.pgd(MODEL, IMAGES, restarts=3, **given)
    for index, row in enumerate(best):
        torch.testing.assert_close(result.attacked[index], tries[row][index], rtol=1e-9, atol=1e-9)


def test_a_photo_that_is_fooled_leaves_the_batch_as_it_then_is():
    seen = [row[0].class_index for row in MODEL.predict(nets.images(4))]
    given = {"epsilon": 0.2, "rate": 0.006, "random_start": False, "label": seen}
    stopped = opsin.pgd(MODEL, nets.images(4), steps=40, stop=True, **given)
    assert sum(stopped.success) >= 2
    paths = [opsin.pgd(MODEL, nets.images(4), steps=k, **given) for k in (1, 4, 12, 40)]
    assert stopped.success == paths[-1].success
    for index, success in enumerate(stopped.success):
        if success:  # less far than with all steps, and not fooled one step before
            assert stopped.length[index] < paths[-1].length[index]
            own = next(path for path in paths if path.success[index])
            assert stopped.length[index] <= own.length[index] + 1e-9


def test_the_margin_climbs_where_the_cross_entropy_of_a_sure_network_has_no_gradient():
    sure = nets.plain(dtype=torch.float32)
    sure.fc.weight.data *= 1e4
    model, images = nets.model(sure), nets.images(2, dtype=torch.float32)
    blind = opsin.pgd(model, images, epsilon=0.03, random_start=False)
    assert any("exactly zero" in note for note in blind.record.notes)
    assert torch.equal(blind.attacked, images)
    assert not any(blind.success)
    climbing = opsin.pgd(model, images, epsilon=0.03, random_start=False, loss="margin")
    assert (climbing.largest > 0.01).all()
    assert not any("exactly zero" in note for note in climbing.record.notes)
