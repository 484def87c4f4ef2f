"""Growing a texture pixel by pixel: the search by loops, and what must hold of every result."""

import numpy as np
import pytest
import torch

import nets
import opsin
from opsin.optimise.pixels import RELAXED, TOLERANCE, PixelByPixel


def growth(sample, window=5, size=(12, 14), seed=0, hole=None):
    return PixelByPixel(sample, window, size, seed, hole)


def error_of(template, known, window, weights):
    """Σ G (ω - ω')² / Σ G over the known pixels, by a loop."""
    total = mass = 0.0
    for row, column in zip(*np.nonzero(known), strict=True):
        difference = template[:, row, column] - window[:, row, column]
        total += weights[row, column] * (difference**2).mean()
        mass += weights[row, column]
    return total / mass


def test_the_search_is_the_papers_by_loops():
    sample = nets.images(1, 9, 10, seed=3)
    grown = growth(sample)
    for _ in range(2):
        grown.advance()
    centred = (sample - sample.mean((2, 3), keepdim=True))[0].numpy()
    side = np.arange(5) - 2
    gauss = np.exp(-(side[:, None] ** 2 + side**2) / (2 * (5 / 6.4) ** 2))
    windows = {(r, c): centred[:, r : r + 5, c : c + 5] for r in range(5) for c in range(6)}
    canvas = np.pad(grown.picture[0].numpy(), ((0, 0), (2, 2), (2, 2)))
    known = np.pad(grown.known.numpy(), 2)
    pixels = grown._shell()
    for row, column in pixels[:12]:
        part = (slice(row, row + 5), slice(column, column + 5))
        errors = {at: error_of(canvas[:, *part], known[part], one, gauss) for at, one in windows.items()}
        least = min(errors.values())
        near = {at for at, error in errors.items() if error <= (1 + TOLERANCE) * least + 1e-6}
        for _ in range(4):
            best, chosen = grown._matches(torch.tensor([row]), torch.tensor([column]))
            assert float(best) == pytest.approx(least, abs=1e-6)
            middle = divmod(int(grown.places[chosen]), 10)
            assert (middle[0] - 2, middle[1] - 2) in near


def test_pixels_that_are_filled_together_do_not_see_each_other():
    grown = growth(nets.images(1, 12, 12), window=7, size=(30, 30))
    for _ in range(3):
        grown.advance()
    shell = grown._shell()
    groups = [torch.stack(group, 1).tolist() for group in grown._apart(shell)]
    assert sorted(pixel for group in groups for pixel in group) == sorted(shell.tolist())
    for group in groups:
        for index, one in enumerate(group):
            for other in group[:index]:
                assert max(abs(one[0] - other[0]), abs(one[1] - other[1])) > 3


def test_pixels_with_most_known_neighbours_come_first():
    grown = growth(nets.images(1, 12, 12), size=(20, 20))
    grown.advance()
    known = np.pad(grown.known.numpy(), 1)
    counts = [known[row : row + 3, column : column + 3].sum() for row, column in grown._shell()]
    assert counts == sorted(counts, reverse=True)


def test_every_pixel_is_one_of_the_samples():
    sample = nets.images(1, 16, 17)
    made = opsin.efros_leung(sample, window=5, size=16, width=21).images[0].flatten(1).T
    assert made.shape == (16 * 21, 3)
    apart = (made[:, None] - sample[0].flatten(1).T).abs().amax(2)  # (made, the sample's)
    assert float(apart.amin(1).max()) < 1e-12


def test_a_pattern_goes_on():
    """Stripes of period 4 in a sample, wherever the growth began."""
    stripes = (torch.arange(24) % 4 < 2).double().expand(1, 3, 24, -1).contiguous()
    made = opsin.efros_leung(stripes, window=7, size=20).images[0, 0]
    assert torch.equal(made, made[:1].expand(20, -1))
    assert torch.equal(made[:, 4:], made[:, :-4])
    assert not torch.equal(made[:, 2:], made[:, :-2])


def test_fills_a_hole_and_nothing_else():
    stripes = (torch.arange(32) % 4 < 2).double().expand(1, 3, 24, -1).contiguous()
    hole = torch.zeros_like(stripes)
    hole[..., 8:15, 10:19] = 1
    spoilt = torch.where(hole > 0, torch.full_like(stripes, 0.3), stripes)
    result = opsin.efros_leung(spoilt, window=7, hole=hole)
    torch.testing.assert_close(result.images, stripes)
    assert int(result.state["texture/number"]) == 7 * 9


def test_a_limit_that_nothing_meets_is_relaxed():
    sample = nets.images(1, 8, 8)
    grown = growth(sample, window=5, size=(8, 8))
    grown.picture += 0.3 * torch.rand(8, 8, generator=torch.Generator().manual_seed(0))  # not in the sample
    grown.limit.fill_(1e-9)
    grown.advance()
    assert float(grown.limit) > 1e-9
    steps = np.log(float(grown.limit) / 1e-9) / np.log(RELAXED)
    assert steps == pytest.approx(round(steps))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"window": 4}, "odd"),
        ({"window": 31}, "at least 31"),
        ({"hole": torch.zeros(1, 3, 16, 16)}, "efros_leung: the hole is empty"),
        ({"hole": torch.ones(1, 3, 16, 16)}, "efros_leung: the hole is everything"),
        ({"hole": torch.eye(16).expand(1, 3, 16, 16), "window": 15}, "beside the hole"),
        ({"hole": torch.ones(1, 3, 8, 8)}, "8x8"),
        ({"hole": torch.ones(3, 3, 16, 16)}, "3 holes for 1 images: give one for all"),
        ({"hole": torch.ones(1, 3, 16, 16), "size": 32}, "leave size and width out"),
    ],
)
def test_what_cannot_be_grown_is_refused(settings, said):
    with pytest.raises(opsin.InputError, match=said):
        opsin.efros_leung(nets.images(1), **settings)


def test_a_sample_of_one_colour_stays_so():
    plain = torch.full((1, 3, 12, 12), 0.3, dtype=torch.float64)
    made = opsin.efros_leung(plain, window=5, size=16).images
    torch.testing.assert_close(made, torch.full((1, 3, 16, 16), 0.3, dtype=torch.float64))


def test_memory_that_is_not_there_is_said_before(monkeypatch):
    monkeypatch.setattr(
        "opsin.optimise.samples.psutil.virtual_memory", lambda: type("M", (), {"available": 1})
    )
    with pytest.raises(opsin.OutOfMemoryError, match="ask for a smaller source"):
        opsin.efros_leung(nets.images(1))
