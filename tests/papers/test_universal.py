import pytest
import torch

import nets
import opsin
from nets import MEAN, STD

NET = nets.plain()
MODEL = nets.model(NET)
IMAGES = nets.images(6)
ZERO, UNIT = (torch.tensor(value, dtype=torch.float64).view(3, 1, 1) for value in (MEAN, STD))


def seen(x):
    return NET((x - ZERO) / UNIT).argmax(1)


def slow(images, epsilon, passes, rate, seed, made):
    """Algorithm 1: photo by photo, DeepFool's change of x + v where v does not fool yet."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=draw)[:made]
    first, v = seen(images), torch.zeros_like(images[:1])
    for _ in range(passes):
        for i in order[torch.randperm(made, generator=draw)].tolist():
            x = (images[i : i + 1] + v).clamp(0, 1)
            if seen(x)[0] != first[i]:
                continue
            behind = opsin.deepfool(MODEL, x, steps=20, label=int(first[i])).attacked
            v = (v + behind - x).clamp(-epsilon, epsilon)
        fooled = seen((images[order] + v).clamp(0, 1)) != first[order]
        if fooled.double().mean() >= rate:
            break
    return v, order


@pytest.mark.parametrize(("epsilon", "held"), [(0.05, 0.5), (0.02, 0.0), (0.3, 0.34)])
def test_adds_up_the_least_changes_inside_the_ball(epsilon, held):
    made = 6 - round(6 * held)
    result = opsin.universal(MODEL, IMAGES, epsilon=epsilon, held=held, passes=2, seed=4)
    v, order = slow(IMAGES, epsilon, 2, 0.8, 4, made)
    torch.testing.assert_close(result.shared["change"], v, rtol=1e-9, atol=1e-9)
    assert result.shared["change"].abs().max() <= epsilon
    torch.testing.assert_close(result.attacked, (IMAGES + v).clamp(0, 1), rtol=1e-9, atol=1e-9)
    assert sorted(order.tolist()) == result.numbers["made_on"].nonzero().flatten().tolist()


def test_the_record_says_the_share_of_photos_that_it_was_not_made_on():
    result = opsin.universal(MODEL, IMAGES, epsilon=0.2, held=0.5)
    fooled = (seen(result.attacked) != seen(IMAGES)).tolist()
    for which, kind in ((1, "made on"), (0, "held back")):
        own = [fooled[i] for i in range(6) if result.numbers["made_on"][i] == which]
        assert any(f"{100 * sum(own) / 3:.1f} % of 3 photos {kind}" in note for note in result.record.notes)


def test_a_single_photo_is_what_it_is_made_on():
    result = opsin.universal(MODEL, IMAGES[:1], epsilon=0.3)
    assert result.numbers["made_on"].tolist() == [1]
    assert not any("held back" in note for note in result.record.notes)
