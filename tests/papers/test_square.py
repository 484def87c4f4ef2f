import pytest
import torch
from torch import nn

import nets
import opsin
from nets import MEAN, STD

NET = nets.plain()
MODEL = nets.model(NET)
IMAGES = nets.images(2)
ZERO, UNIT = (torch.tensor(value, dtype=torch.float64).view(3, 1, 1) for value in (MEAN, STD))
HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def slow(x0, label, epsilon, steps, share, seed):
    """Algorithms 1 and 2 for one photo: random squares, kept where the margin rises."""
    draw = torch.Generator().manual_seed(seed)

    def project(x):
        return torch.maximum(torch.minimum(x, x0 + epsilon), x0 - epsilon).clamp(0, 1)

    def margin(x):
        z = NET(((x - ZERO) / UNIT)[None])[0].detach()
        rest = torch.cat([z[:label], z[label + 1 :]])
        return float(rest.max() - z[label])

    stripes = torch.randint(0, 2, (3, 1, x0.shape[2]), generator=draw) * 2.0 - 1
    best = project(x0 + epsilon * stripes.double())
    highest = margin(best)
    for query in range(steps):
        if highest > 0:
            break
        done = int(query / steps * 10_000)
        area = share / 2 ** sum(done > after for after in HALVED)
        side = max(1, round((area * x0[0].numel()) ** 0.5))
        top, left = (int(torch.randint(0, length - side + 1, (), generator=draw)) for length in x0.shape[-2:])
        signs = torch.randint(0, 2, (3, 1, 1), generator=draw) * 2.0 - 1
        x = best.clone()
        x[:, top : top + side, left : left + side] += 2 * epsilon * signs.double()
        x = project(x)
        if margin(x) > highest:
            best, highest = x, margin(x)
    return best


@pytest.mark.parametrize("epsilon", [0.01, 0.05, 0.2])
def test_keeps_random_squares_that_raise_the_margin(epsilon):
    result = opsin.square(MODEL, IMAGES, epsilon=epsilon, steps=60, seed=1)
    for row, outcome in enumerate(result.outcomes):
        expected = slow(IMAGES[row], outcome.label.class_index, epsilon, 60, 0.8, 1)
        torch.testing.assert_close(result.attacked[row], expected, rtol=1e-12, atol=1e-12)


def test_counts_its_queries_and_asks_for_no_gradient():
    class Stepped(nn.Module):
        """Gives no gradient: what it is given is rounded."""

        def __init__(self):
            super().__init__()
            self.net, self.calls = nets.plain(), []

        def forward(self, x):
            self.calls.append(len(x))
            return self.net((x * 64).round() / 64)

    net = Stepped()
    model = nets.model(net, labels=None)
    assert model.classes == 5
    net.calls.clear()
    result = opsin.square(model, IMAGES, epsilon=0.3, steps=80)
    assert all(result.success)
    assert (result.numbers["queries"] < 80).all()
    # what each photo saw before, after, and when rounded; `better` looks at two tries
    assert sum(net.calls) == int(result.numbers["queries"].sum()) + len(IMAGES) * 5
    blind = opsin.pgd(model, IMAGES, epsilon=0.3, random_start=False)
    assert not any(blind.success)  # the sign that a gradient is hidden
    assert any("exactly zero" in note for note in blind.record.notes)
