from collections.abc import Iterator, Mapping
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.choices import MOST_TEXTURE
from opsin.base.errors import InputError
from opsin.base.job import note
from opsin.optimise.ascent import Step
from opsin.optimise.climb import Climb
from opsin.optimise.growing import Growth, grow
from opsin.optimise.samples import new_textures
from opsin.registry.kinds import Arg
from opsin.registry.technique import technique
from opsin.results.pictures import Pictures
from opsin.statistics.pyramids import CORRELATED, Statistics, multiple, one_thread, principal, scales_of

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
    size: Annotated[
        int, Arg("height of the new texture and, by default, its width, pixels", least=16, most=MOST_TEXTURE)
    ] = 128,
    width: Annotated[int | None, Arg("width of the new texture, pixels", least=16, most=MOST_TEXTURE)] = None,
    source: Annotated[
        int, Arg("longer side that the sample is reduced to, pixels", least=16, most=MOST_TEXTURE)
    ] = 128,
    scales: Annotated[int, Arg("scales of the pyramid, fewer of a small sample", least=1, most=6)] = 4,
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


class _Synthesis(Growth):
    """The picture in the sample's principal colours, each divided by its deviation."""

    def __init__(
        self, sample: Tensor, size: tuple[int, int], scales: int, orientations: int, steps: int, seed: int
    ) -> None:
        self.wanted, sample = size, sample.float()
        own = (sample.shape[2], sample.shape[3])
        scales = scales_of([own, size], scales, CORRELATED)
        directions, self.mean = principal(sample)
        flat = torch.einsum("dk,ndhw->nkhw", directions, sample - self.mean)
        if not (flat.std((0, 2, 3)) > FLAT).all():
            raise InputError("portilla_simoncelli: a sample of one colour has no correlations")
        self.turns = directions * flat.std((0, 2, 3)) / SPREAD
        height, width = multiple(own, scales, up=False)
        channels = (SPREAD * flat / flat.std((0, 2, 3), keepdim=True))[..., :height, :width]
        place = multiple(size, scales, up=True)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(1, channels.shape[1], *place, generator=generator, dtype=torch.float64)
        super().__init__(SPREAD * noise.to(sample), steps, seed)
        with torch.no_grad():
            self.goal = Statistics((height, width), scales, orientations, sample).of(channels)
        if not self.goal.isfinite().all():
            raise InputError("portilla_simoncelli: a band of the sample is empty, so it has no correlations")
        self.statistics = Statistics(place, scales, orientations, sample)
        self.picture.requires_grad_()
        self.optimiser = torch.optim.LBFGS(
            [self.picture],
            max_iter=ITERATIONS,
            max_eval=ITERATIONS,
            history_size=MEMORY,
            line_search_fn="strong_wolfe",
        )

    def images(self) -> Float[Tensor, "1 3 h w"]:
        back = torch.einsum("dk,nkhw->ndhw", self.turns, self.picture.detach()) + self.mean
        return back[..., : self.wanted[0], : self.wanted[1]].clamp(0, 1)

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
