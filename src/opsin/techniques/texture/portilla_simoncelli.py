from collections.abc import Iterator, Mapping
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.errors import InputError
from opsin.base.job import note
from opsin.optimise.ascent import Step
from opsin.optimise.climb import Climb
from opsin.optimise.growing import PrincipalGrowth, grow
from opsin.optimise.samples import new_textures
from opsin.registry.kinds import Arg, SampleSide, TextureHeight, TextureWidth
from opsin.registry.technique import technique
from opsin.results.pictures import Pictures
from opsin.statistics.pyramids import CORRELATED, Statistics, one_thread

SPREAD = 0.2  # deviation of every principal colour while it is worked on: about a grey photo's
FLAT = 1e-5  # a deviation that is rounding
ITERATIONS, MEMORY = 10, 100  # of L-BFGS in a step; as plenoptic's study of the optimisation found best


@technique(
    title="Portilla and Simoncelli's texture",
    paper="Portilla, Simoncelli: A Parametric Texture Model Based on Joint Statistics of Complex Wavelet "
    "Coefficients, International Journal of Computer Vision 2000",
    reading="A picture with the sample's wavelet statistics: edges and rhythm are there, things are not.",
    iterative=True,
)
def portilla_simoncelli(
    images: Float[Tensor, "n 3 h w"],
    size: TextureHeight = 128,
    width: TextureWidth = None,
    source: SampleSide = 128,
    scales: Annotated[int, Arg("scales of the pyramid, fewer for a small sample", least=1, most=6)] = 4,
    orientations: Annotated[int, Arg("orientations of the pyramid", least=2, most=8)] = 4,
    steps: Annotated[int, Arg("number of steps, each of ten iterations of L-BFGS", least=1)] = 50,
    seed: Annotated[int, Arg("random seed of the noise", least=0)] = 0,
) -> Pictures:
    """A picture with the sample's statistics φ: arg min_x |w (φ(x) - φ(sample))|, from noise.

    φ are the paper's: of the pixels mean, variance, skewness and kurtosis; of a complex steerable pyramid the
    correlations of magnitudes within 7 pixels, across orientations and scales, of real parts across scales,
    and of the lowpass pictures variance, skewness, kurtosis and correlations. They are plenoptic's, tested
    there against the authors' MATLAB; w too: 100 for the highpass residual, 1 otherwise.

    Colours are the sample's principal components, each with its own φ and of one deviation; every two also
    have the correlations between their magnitudes and between their real parts, at every scale. Departs from
    the paper: L-BFGS in place of projections, and no least and greatest value in φ. A sample is cut to sides
    that the pyramid can halve. `numbers` are minus the loss.
    """

    def way(label: str, sample: Tensor, wanted: tuple[int, int]) -> Climb:
        return grow(label, _Synthesis(sample, wanted, scales, orientations, steps, seed))

    return new_textures(images, source, size, width, way, 2 * CORRELATED)


class _Synthesis(PrincipalGrowth):
    """The picture in the sample's principal colours, each divided by its deviation."""

    def __init__(
        self, sample: Tensor, size: tuple[int, int], scales: int, orientations: int, steps: int, seed: int
    ) -> None:
        super().__init__(sample.float(), size, scales, CORRELATED, steps, seed)
        deviations = self.turned.std((0, 2, 3), keepdim=True)
        if not (deviations > FLAT).all():
            raise InputError("portilla_simoncelli: a sample of one colour has no correlations")
        self.directions = self.directions * deviations.flatten() / SPREAD
        channels = (SPREAD * self.turned / deviations)[..., : self.cut[0], : self.cut[1]]
        self.picture.mul_(SPREAD)
        with torch.no_grad():
            self.goal = Statistics(self.cut, self.scales, orientations, channels).of(channels)
        if not self.goal.isfinite().all():
            raise InputError("portilla_simoncelli: a band of the sample is empty, so it has no correlations")
        self.statistics = Statistics(self.place, self.scales, orientations, channels)
        self.picture.requires_grad_()
        self.optimiser = torch.optim.LBFGS(
            [self.picture],
            max_iter=ITERATIONS,
            max_eval=ITERATIONS,
            history_size=MEMORY,
            line_search_fn="strong_wolfe",
        )

    def steps(self, state: Mapping[str, Tensor]) -> Iterator[Step]:
        if state and not state["finished"].any():
            note("resumed: L-BFGS began with an empty memory")
        return super().steps(state)

    def advance(self) -> float:
        """One step of ten iterations."""
        losses: list[float] = []

        def loss() -> Tensor:
            value = (self.statistics.of(self.picture) - self.goal).square().sum().sqrt()
            (self.picture.grad,) = torch.autograd.grad(value, self.picture)
            losses.append(float(value.detach()))
            return value.detach()

        with one_thread():
            self.optimiser.step(loss)
        self.number += 1
        return -losses[0]
