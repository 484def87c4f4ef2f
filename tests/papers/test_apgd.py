import pytest
import torch

import nets
import opsin
from nets import MEAN, STD
from opsin.optimise.ball import Ball
from opsin.techniques.fooling.apgd import stages

NET = nets.plain()
MODEL = nets.model(NET)
IMAGES = nets.images(3)
ZERO, UNIT = (torch.tensor(value, dtype=torch.float64).view(3, 1, 1) for value in (MEAN, STD))


def test_stages_end_where_the_paper_says():
    # p = 0.22, 0.41, 0.57, 0.7, 0.8, 0.87, 0.93, 0.99 of 100 steps
    assert stages(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]


def slow(x0, start, label, radius, norm, steps):
    """Algorithm 1 for one photo, in words of the paper; gives the first place that fools, else the best."""

    def loss(x):
        z = NET(((x - ZERO) / UNIT)[None])[0]
        others = z.clone()
        others[label] = -torch.inf
        return others.max() - z[label]

    def project(x):
        if norm == "linf":
            return torch.maximum(torch.minimum(x, x0 + radius), x0 - radius).clamp(0, 1)
        r = x - x0
        return (x0 + r * min(1.0, radius / max(1e-12, float(r.norm())))).clamp(0, 1)

    eta, alpha, ends = 2 * radius, 0.75, stages(steps)
    x, before, losses, places, slopes = start, start, [], [], []
    halved, best_then = True, -torch.inf
    for k in range(steps):
        leaf = x.clone().requires_grad_()
        f = loss(leaf)
        if f > 0:
            return x
        (g,) = torch.autograd.grad(f, leaf)
        losses.append(float(f.detach()))
        places.append(x)
        slopes.append(g)
        if k in ends[1:]:
            begin = ends[ends.index(k) - 1]
            rises = sum(losses[i + 1] > losses[i] for i in range(begin, k))
            few = rises < 0.75 * (k - begin)
            same = not halved and max(losses) == best_then
            halved, best_then = few or same, max(losses)
            if halved:
                eta /= 2
                top = losses.index(max(losses))
                x, g = places[top], slopes[top]
        z = project(x + eta * (g.sign() if norm == "linf" else g / g.norm()))
        new = z if k == 0 else project(x + alpha * (z - x) + (1 - alpha) * (x - before))
        before, x = x, new
    if loss(x) > 0:
        return x
    return [*places, x][[*losses, float(loss(x).detach())].index(max(*losses, float(loss(x).detach())))]


@pytest.mark.parametrize(
    ("norm", "radius"), [("linf", 0.003), ("linf", 0.02), ("linf", 0.1), ("l2", 0.05), ("l2", 0.6)]
)
def test_climbs_as_the_algorithm_does(norm, radius):
    ball = {"epsilon": radius} if norm == "linf" else {"l2": radius}
    result = opsin.apgd(MODEL, IMAGES, **ball, steps=25, loss="margin", seed=3)
    start = Ball(IMAGES, radius, norm).random(torch.Generator().manual_seed(3))
    for row, outcome in enumerate(result.outcomes):
        expected = slow(IMAGES[row], start[row], outcome.label.class_index, radius, norm, 25)
        torch.testing.assert_close(result.attacked[row], expected, rtol=1e-8, atol=1e-8)


def test_finds_at_least_what_projected_gradient_descent_finds():
    images = nets.images(8)
    for epsilon in (0.01, 0.02, 0.04):
        given = {"epsilon": epsilon, "steps": 25}
        assert sum(opsin.apgd(MODEL, images, **given).success) >= sum(
            opsin.pgd(MODEL, images, stop=True, **given).success
        )
