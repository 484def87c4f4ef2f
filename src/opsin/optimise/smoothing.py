"""Randomised smoothing: the class that noise leaves standing, and the radius in which nothing changes it."""

from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.errors import InputError, shown
from opsin.base.extras import extra
from opsin.base.job import steps
from opsin.images import tensors
from opsin.network.model import Model
from opsin.objectives.losses import class_scores

TOGETHER = 8  # noisy copies in one forward


@dataclass(frozen=True)
class Certificate:
    """The class of a photo under noise, and the L2 radius in which it is the same, in units of [0, 1].

    `class_index` is `None`, and the radius 0, where the smoothed classifier abstains. `lower` is the bound
    below the class's probability under noise; `votes` of so many noisy copies were for it.
    """

    class_index: int | None
    label: str
    radius: float
    lower: float
    votes: int
    samples: int


def certify(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    *,
    noise: float = 0.25,
    samples: int = 1000,
    first: int = 100,
    alpha: float = 0.001,
    seed: int = 0,
) -> list[Certificate]:
    """The certificate of each photo: no change of an L2 norm below σ Φ⁻¹(p) alters the smoothed class.

    The smoothed class is the one that the network sees most often in x + σ ε, ε standard normal. `first`
    copies choose it, `samples` others bound its probability from below, p, by Clopper and Pearson's
    interval at the level 1 - α; where p < 1/2 it abstains. Noisy pictures are not clipped to [0, 1].

    The certificate is one of the *smoothed* classifier and holds with probability 1 - α. Raises `InputError`
    on bad settings and networks without classes. Needs `opsin[robustness]`. Cohen, Rosenfeld, Kolter:
    Certified Adversarial Robustness via Randomized Smoothing, 2019 (arXiv:1902.02918), algorithm 1.
    """
    tensors.check(images)
    for name, value in (("samples", samples), ("first", first)):
        if value < 1:
            raise InputError(f"certify: {name} must be at least 1, not {shown(value)}")
    for name, share in (("noise", noise), ("alpha", alpha)):
        if not 0 < share < 1:
            raise InputError(f"certify: {name} must lie between 0 and 1, not {shown(share)}")
    draw = torch.Generator().manual_seed(seed)
    found = []
    for image in steps(images.split(1), len(images), "certify"):
        guess = int(votes(model, image, noise, first, draw).argmax())
        count = int(votes(model, image, noise, samples, draw)[guess])
        lower = interval(count, samples, 2 * alpha)[0]  # one-sided
        if lower < 0.5:
            found.append(Certificate(None, "abstains", 0.0, lower, count, samples))
        else:
            radius = noise * NormalDist().inv_cdf(lower)
            found.append(Certificate(guess, model.label(guess), radius, lower, count, samples))
    return found


def votes(
    model: Model, image: Float[Tensor, "1 3 h w"], noise: float, samples: int, draw: torch.Generator
) -> Tensor:
    """How many of so many noisy copies are seen as each class, (c,)."""
    counts = torch.zeros(0, dtype=torch.long)
    for begin in range(0, samples, TOGETHER):
        n = min(TOGETHER, samples - begin)
        drawn = torch.randn((n, *image.shape[1:]), generator=draw).to(image)
        output = class_scores(model.run(image + noise * drawn))
        own = torch.bincount(output.argmax(1).cpu(), minlength=output.shape[1])
        counts = own if not len(counts) else counts + own
    return counts


def interval(successes: int, trials: int, alpha: float = 0.05) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share, at the level 1 - α. Needs `opsin[robustness]`."""
    with extra("robustness"):
        from scipy.stats import beta  # noqa: PLC0415 (an extra)
    low = beta.ppf(alpha / 2, successes, trials - successes + 1) if successes else 0.0
    high = beta.ppf(1 - alpha / 2, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)
