import pytest
import torch
from torch import nn

import nets
import opsin
from nets import MEAN, STD

NET = nets.plain()
MODEL = nets.model(NET)
IMAGES = nets.images(3)
ZERO, UNIT = (torch.tensor(value, dtype=torch.float64).view(3, 1, 1) for value in (MEAN, STD))


def slow(x0, classes=5, steps=50, overshoot=0.02):
    """Algorithm 2 of one photo, with a Jacobian of all classes, as its authors' code has it."""

    def f(x):
        return NET(((x - ZERO) / UNIT)[None])[0]

    label = int(f(x0).argmax())
    tried = [k for k in f(x0).argsort(descending=True)[:classes].tolist() if k != label]
    x, total = x0, torch.zeros_like(x0)
    for _ in range(steps):
        if int(f(x).argmax()) != label:
            break
        jacobian, scores = torch.autograd.functional.jacobian(f, x), f(x).detach()
        ways = []
        for k in tried:
            w, gap = jacobian[k] - jacobian[label], float(scores[k] - scores[label])
            ways.append((abs(gap) / float(w.norm()), w))
        distance, w = min(ways, key=lambda way: way[0])
        total = total + (distance + 1e-4) * w / w.norm()
        x = (x0 + (1 + overshoot) * total).clamp(0, 1)
    return x


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("overshoot", [0.02, 0.5])
def test_goes_to_the_nearest_boundary_as_the_algorithm_does(classes, overshoot):
    result = opsin.deepfool(MODEL, IMAGES, candidates=classes, overshoot=overshoot)
    assert all(result.success)
    for image, attacked in zip(IMAGES, result.attacked, strict=True):
        torch.testing.assert_close(attacked, slow(image, classes, 50, overshoot), rtol=1e-6, atol=1e-7)


def test_of_a_linear_network_it_is_the_distance_to_the_nearest_boundary():
    net = nets.seeded(nets.Chain(flat=nn.Flatten(), fc=nn.Linear(3 * 4 * 4, 5)))
    net.fc.weight.data *= 0.02
    images = 0.3 + 0.4 * nets.images(3, 4)
    result = opsin.deepfool(nets.model(net, size=4), images, overshoot=0.0)
    w = net.fc.weight.detach() / UNIT.expand(3, 4, 4).reshape(1, -1)
    for image, length in zip(images, result.length, strict=True):
        z = net(((image - ZERO) / UNIT)[None])[0].detach()
        y = int(z.argmax())
        distances = [float((z[y] - z[k]) / (w[y] - w[k]).norm()) for k in range(5) if k != y]
        assert float(length) == pytest.approx(min(distances) + 1e-4, rel=1e-5)


def test_rho_is_the_share_of_the_photos_norm():
    result = opsin.deepfool(MODEL, IMAGES)
    expected = result.length / IMAGES.flatten(1).norm(dim=1)
    torch.testing.assert_close(result.numbers["rho"], expected, rtol=1e-6, atol=0)
