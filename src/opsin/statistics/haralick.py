"""The features of a grey-level co-occurrence matrix: Haralick's fourteen and IBSI's twenty-five.

p(i, j) is the share of pairs of levels i and j, L the number of levels. p_x and p_y are its sums over j and
i, p_s(k) and p_d(k) the shares of pairs with i + j = k and |i - j| = k; H are entropies, μ and σ means and
deviations. All features but three follow from the four distributions, so that sliding windows need no
matrices; sums that are over p(i, j) in the papers are equal to these.

| feature | IBSI | Haralick 1973 | equation |
|---|---|---|---|
| joint maximum | GYBY | | max p |
| joint average | 60VM | | μ = Σ i p_x |
| joint variance | UR99 | f4 | Σ (i - μ)² p_x |
| joint entropy | TU9B | f9 | H = -Σ p log p |
| difference average | TF7R | | μ_d = Σ k p_d |
| difference variance | D3YU | f10 | Σ (k - μ_d)² p_d |
| difference entropy | NTRS | f11 | -Σ p_d log p_d |
| sum average | ZGXS | f6 | μ_s = Σ k p_s |
| sum variance | OEEB | f7 | Σ (k - μ_s)² p_s; about f6, where the paper prints f8 |
| sum entropy | P6QZ | f8 | -Σ p_s log p_s |
| angular second moment | 8ZQL | f1 | Σ p² |
| contrast | ACUI | f2 | Σ k² p_d |
| dissimilarity | 8S9J | | Σ k p_d |
| inverse difference | IB1Z | | Σ p_d / (1 + k) |
| normalised inverse difference | NDRX | | Σ p_d / (1 + k / L) |
| inverse difference moment | WF0Z | f5 | Σ p_d / (1 + k²) |
| normalised inverse difference moment | 1QCO | | Σ p_d / (1 + k² / L²) |
| inverse variance | E8JP | | Σ_{k > 0} p_d / k² |
| correlation | NI2N | f3 | Σ (i - μ_x)(j - μ_y) p / (σ_x σ_y); 1 of one level |
| autocorrelation | QWB0 | | Σ i j p |
| cluster tendency | DG8W | | Σ (k - μ_s)² p_s |
| cluster shade | 7NFM | | Σ (k - μ_s)³ p_s |
| cluster prominence | AE86 | | Σ (k - μ_s)⁴ p_s |
| information correlation 1 | R8DG | f12 | (H - H_x - H_y) / max(H_x, H_y); 0 of one level |
| information correlation 2 | JN9H | f13 | √(1 - exp(-2 (H_x + H_y - H))) |
| maximal correlation | | f14 | √(second eigenvalue of Q); 1 of one level |

Q(i, j) = Σ_k p(i, k) p(j, k) / (p_x(i) p_y(k)).

Haralick, Shanmugam, Dinstein: Textural Features for Image Classification, IEEE Transactions on Systems, Man
and Cybernetics 1973. Zwanenburg et al.: The Image Biomarker Standardization Initiative, 2016
(arXiv:1612.07003).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.choices import Feature
from opsin.statistics.cooccurrence import Rules

NAMES: tuple[Feature, ...] = get_args(Feature)
HARALICK: dict[Feature, int] = {  # the numbers of the features in the paper of 1973
    "angular_second_moment": 1,
    "contrast": 2,
    "correlation": 3,
    "joint_variance": 4,
    "inverse_difference_moment": 5,
    "sum_average": 6,
    "sum_variance": 7,
    "sum_entropy": 8,
    "joint_entropy": 9,
    "difference_variance": 10,
    "difference_entropy": 11,
    "information_correlation_1": 12,
    "information_correlation_2": 13,
    "maximal_correlation": 14,
}
SIGNED: tuple[Feature, ...] = ("correlation", "cluster_shade", "information_correlation_1")
SMALL = 1e-12  # a share or a variance below it is zero


@dataclass(frozen=True)
class Distributions:
    """The distributions of a matrix, or of many: the values stand along the first dimension.

    One that no feature asks for may be empty.

    `joint` are the sum of squares, the greatest and the entropy (natural) of p(i, j), where they are known.
    """

    first: Float[Tensor, "L ..."]
    second: Float[Tensor, "L ..."]
    sums: Float[Tensor, "sums ..."]
    differences: Float[Tensor, "differences ..."]
    joint: Mapping[str, Tensor]


def distributions(shares: Float[Tensor, "*n L L"]) -> Distributions:
    """The distributions of matrices of shares."""
    count = shares.shape[-1]
    level = torch.arange(count, device=shares.device)
    flat = shares.flatten(-2).movedim(-1, 0)  # (L², *n)
    by_sum, by_difference = (
        shares.new_zeros(size, *flat.shape[1:]).index_add(0, key.flatten(), flat)
        for size, key in (
            (2 * count - 1, level[:, None] + level),
            (count, (level[:, None] - level).abs()),
        )
    )
    joint = {"squares": flat.square().sum(0), "greatest": flat.amax(0), "entropy": entropy(flat)}
    return Distributions(
        shares.sum(-1).movedim(-1, 0), shares.sum(-2).movedim(-1, 0), by_sum, by_difference, joint
    )


def features(
    found: Distributions, rules: Rules, names: tuple[Feature, ...], maximal: Tensor | None = None
) -> dict[Feature, Tensor]:
    """The features of these names; `maximal` is the maximal correlation, which no distribution gives."""
    values = _Values(found, rules, maximal)
    return {name: getattr(values, name)() for name in names}


def features_of(
    shares: Float[Tensor, "*n L L"], rules: Rules, names: tuple[Feature, ...]
) -> Float[Tensor, "*n f"]:
    """The features of matrices of shares, in the order of their names."""
    found = features(distributions(shares), rules, names, maximal_correlation(shares))
    return torch.stack([found[name] for name in names], -1)


def maximal_correlation(shares: Float[Tensor, "*n L L"]) -> Float[Tensor, "*n"]:
    """The second singular value of p(i, j) / √(p_x(i) p_y(j)), which is the root of Q's second eigenvalue."""
    rows, columns = shares.sum(-1), shares.sum(-2)
    scale = (rows[..., :, None] * columns[..., None, :]).sqrt()
    scaled = torch.where(scale > SMALL, shares / scale.clamp(min=SMALL), 0)
    one_level = ((rows > SMALL).sum(-1) < 2) | ((columns > SMALL).sum(-1) < 2)
    if shares.shape[-1] < 2:
        return torch.ones_like(one_level, dtype=shares.dtype)
    second: Tensor = torch.linalg.svdvals(scaled)[..., 1].clamp(max=1)
    return torch.where(one_level, 1.0, second)


def entropy(shares: Float[Tensor, "k ..."]) -> Float[Tensor, "..."]:
    """The entropy over the first dimension, natural; a share of zero adds nothing."""
    negative: Tensor = torch.xlogy(shares, shares).sum(0)
    return -negative


class _Values:
    """The equations, one a feature, each computed when it is asked for."""

    def __init__(self, found: Distributions, rules: Rules, maximal: Tensor | None) -> None:
        self.found, self.rules, self.maximal = found, rules, maximal
        self.count = max(len(found.first), len(found.differences))

    def _over(self, shares: Tensor, weights: Tensor) -> Tensor:
        """Σ_k w(k) p(k)."""
        mean: Tensor = torch.tensordot(weights.to(shares), shares, 1)
        return mean

    def _number(self, shares: Tensor, start: int = 0) -> Tensor:
        """The values that a distribution is over."""
        numbers: Tensor = torch.arange(start, start + len(shares), dtype=shares.dtype, device=shares.device)
        return numbers

    def _moment(self, shares: Tensor, order: int) -> Tensor:
        """Σ (k - mean)^order p(k)."""
        number = self._number(shares)
        away = number.reshape(-1, *[1] * (shares.ndim - 1)) - self._over(shares, number)
        return (away.pow(order) * shares).sum(0)

    def _entropy(self, natural: Tensor) -> Tensor:
        return natural / math.log(self.rules.base)

    def _difference(self, weights: Tensor) -> Tensor:
        return self._over(self.found.differences, weights)

    @property
    def _k(self) -> Tensor:
        return self._number(self.found.differences)

    def joint_maximum(self) -> Tensor:
        return self.found.joint["greatest"]

    def joint_average(self) -> Tensor:
        return self._over(self.found.first, self._number(self.found.first, self.rules.first))

    def joint_variance(self) -> Tensor:
        return self._moment(self.found.first, 2)

    def joint_entropy(self) -> Tensor:
        return self._entropy(self.found.joint["entropy"])

    def difference_average(self) -> Tensor:
        return self._difference(self._k)

    def difference_variance(self) -> Tensor:
        return self._moment(self.found.differences, 2)

    def difference_entropy(self) -> Tensor:
        return self._entropy(entropy(self.found.differences))

    def sum_average(self) -> Tensor:
        return self._over(self.found.sums, self._number(self.found.sums, 2 * self.rules.first))

    def sum_variance(self) -> Tensor:
        return self._moment(self.found.sums, 2)

    def sum_entropy(self) -> Tensor:
        return self._entropy(entropy(self.found.sums))

    def angular_second_moment(self) -> Tensor:
        return self.found.joint["squares"]

    def contrast(self) -> Tensor:
        return self._difference(self._k**2)

    def dissimilarity(self) -> Tensor:
        return self.difference_average()

    def inverse_difference(self) -> Tensor:
        return self._difference(1 / (1 + self._k))

    def normalised_inverse_difference(self) -> Tensor:
        return self._difference(1 / (1 + self._k / self.count))

    def inverse_difference_moment(self) -> Tensor:
        return self._difference(1 / (1 + self._k**2))

    def normalised_inverse_difference_moment(self) -> Tensor:
        return self._difference(1 / (1 + (self._k / self.count) ** 2))

    def inverse_variance(self) -> Tensor:
        return self._difference(torch.where(self._k > 0, 1 / self._k.clamp(min=1) ** 2, 0))

    def correlation(self) -> Tensor:
        own, other = self._moment(self.found.first, 2), self._moment(self.found.second, 2)
        together = (self.sum_variance() - own - other) / 2
        spread = (own * other).sqrt()
        varied = (own > SMALL) & (other > SMALL)
        return torch.where(varied, together / spread.clamp(min=SMALL), 1.0).clamp(-1, 1)

    def autocorrelation(self) -> Tensor:
        number = self._number(self.found.sums, 2 * self.rules.first)
        return (self._over(self.found.sums, number**2) - self.contrast()) / 4

    def cluster_tendency(self) -> Tensor:
        return self.sum_variance()

    def cluster_shade(self) -> Tensor:
        return self._moment(self.found.sums, 3)

    def cluster_prominence(self) -> Tensor:
        return self._moment(self.found.sums, 4)

    def information_correlation_1(self) -> Tensor:
        one, other = entropy(self.found.first), entropy(self.found.second)
        most = torch.maximum(one, other)
        shared = self.found.joint["entropy"] - one - other
        return torch.where(most > SMALL, shared / most.clamp(min=SMALL), 0.0)

    def information_correlation_2(self) -> Tensor:
        one, other = entropy(self.found.first), entropy(self.found.second)
        shared = self._entropy(one + other - self.found.joint["entropy"])
        return (1 - torch.exp(-2 * shared)).clamp(min=0).sqrt()

    def maximal_correlation(self) -> Tensor:
        assert self.maximal is not None
        return self.maximal
