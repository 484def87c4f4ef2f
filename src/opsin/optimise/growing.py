"""Pictures that are made step by step without a network: pixel by pixel, block by block, pass by pass."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from opsin.base.errors import InputError
from opsin.base.trail import DAMAGED
from opsin.optimise.ascent import Step, step_number
from opsin.optimise.climb import Climb, followed, saved_climb
from opsin.statistics.pyramids import multiple, principal, scales_of


class Growth(ABC):
    """A picture and how it is taken further.

    `arrays` are the tensors that change on the way, all in place; `picture` is the first of them, in colours
    or in what `images` makes colours of. `number` counts from 0 to `total`, and `generator` is where all
    random numbers come from.
    """

    def __init__(self, start: Float[Tensor, "1 k h w"], total: int, seed: int) -> None:
        self.picture = start.clone()
        self.arrays = {"parameters": self.picture}
        self.total, self.number = total, 0
        self.generator = torch.Generator().manual_seed(seed)

    @abstractmethod
    def advance(self) -> float:
        """Take one step, raise `number`, and give its score: minus an error."""

    def images(self) -> Float[Tensor, "1 3 h w"]:
        """The picture so far, in [0, 1]."""
        return self.picture.clamp(0, 1)

    def steps(self, state: Mapping[str, Tensor]) -> Iterator[Step]:
        """The steps from a state on, or from the beginning where that is empty."""
        if state:
            self._restore(state)
        yield Step(self.number, None, self.images, self._state)
        while self.number < self.total:
            score = self.picture.new_tensor([self.advance()])
            yield Step(self.number, score, self.images, self._state)

    def _state(self) -> dict[str, Tensor]:
        kept = {name: array.detach().clone() for name, array in self.arrays.items()}
        return kept | {"number": torch.tensor(self.number), "generator": self.generator.get_state()}

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to an earlier state. Raises `InputError` where it is that of another picture."""
        self.number = step_number(state)
        needed = ["parameters"] if state["finished"].any() else list(self.arrays)
        for name in needed:
            if name not in state or state[name].shape != self.arrays[name].shape:
                raise InputError(f"{DAMAGED}{name} is not of shape {tuple(self.arrays[name].shape)}")
            self.arrays[name].data.copy_(state[name])
        try:
            self.generator.set_state(state["generator"])
        except (KeyError, RuntimeError, TypeError) as error:
            raise InputError(f"{DAMAGED}the generator: {error}") from error


class PrincipalGrowth(Growth):
    """A picture that starts as noise in the sample's principal colours; `turned` is the sample in them.

    A pyramid halves it `scales` times, fewer than asked for where it is small. So the sample is cut to the
    size `cut`, and the picture has the size `place`, which may be larger than the size `wanted`.
    """

    def __init__(
        self, sample: Tensor, size: tuple[int, int], scales: int, coarsest: int, steps: int, seed: int
    ) -> None:
        own = (sample.shape[2], sample.shape[3])
        self.wanted, self.scales = size, scales_of([own, size], scales, coarsest)
        self.cut = multiple(own, self.scales, up=False)
        self.place = multiple(size, self.scales, up=True)
        self.directions, self.mean = principal(sample)
        self.turned = torch.einsum("dk,ndhw->nkhw", self.directions, sample - self.mean)
        draw = torch.Generator().manual_seed(seed)
        noise = torch.randn(1, self.turned.shape[1], *self.place, generator=draw, dtype=torch.float64)
        super().__init__(noise.to(sample), steps, seed)

    def images(self) -> Float[Tensor, "1 3 h w"]:
        """The part that is wanted, in the sample's colours."""
        back = torch.einsum("dk,nkhw->ndhw", self.directions, self.picture.detach()) + self.mean
        return back[..., : self.wanted[0], : self.wanted[1]].clamp(0, 1)


def grow(label: str, growth: Growth) -> Climb:
    """A growth to its end, or until a listener asks to stop early; resumed where one was stopped."""
    state = saved_climb(label, 1)
    if state is None:
        return Climb(growth.images(), torch.empty(0, 1), begun=False)
    if state and state["finished"].any():
        growth.total = step_number(state)
    return followed(label, growth.steps(state), growth.total, state)
