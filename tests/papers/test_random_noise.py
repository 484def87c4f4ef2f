import pytest
import torch

import nets
import opsin

MODEL = nets.model(nets.plain())
MIDDLE = 0.2 + 0.6 * nets.images(3)


def test_every_value_changes_by_epsilon_in_a_random_direction():
    result = opsin.random_noise(MODEL, MIDDLE, epsilon=0.1, samples=1)
    torch.testing.assert_close(result.change.abs(), torch.full_like(MIDDLE, 0.1), rtol=1e-9, atol=1e-9)
    assert abs(float(result.change.sign().mean())) < 0.1
    assert torch.allclose(result.change[0], result.change[2])  # the same for each photo


def test_a_change_of_a_length_in_a_random_direction():
    result = opsin.random_noise(MODEL, MIDDLE, l2=0.7, samples=1)
    torch.testing.assert_close(result.length, torch.full((3,), 0.7, dtype=torch.float64), rtol=1e-9, atol=0)


def test_the_worst_of_the_draws_is_kept_and_the_share_that_fools_is_told():
    whole = opsin.random_noise(MODEL, MIDDLE, epsilon=0.2, samples=12)
    share = whole.numbers["share"]
    assert [bool(one) for one in share > 0] == list(whole.success)
    assert ((12 * share).round() == 12 * share).all()
    one = opsin.random_noise(MODEL, MIDDLE, epsilon=0.2, samples=1)
    for before, now in zip(one.outcomes, whole.outcomes, strict=True):
        shares = [{s.class_index: s.probability for s in o.after}[o.label.class_index] for o in (before, now)]
        assert now.success or shares[1] <= shares[0] + 1e-12


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_the_images_stay_in_range(epsilon):
    attacked = opsin.random_noise(MODEL, nets.images(2), epsilon=epsilon, samples=2).attacked
    assert attacked.min() >= 0
    assert attacked.max() <= 1
