"""A result's pictures as a notebook, a viewer and a plot show them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from opsin.base.records import ScoredTarget
from opsin.images import colour
from opsin.results.sheets import fitting

LONGEST = 60  # letters of a target's name
STEPS, THICKNESS = 256, 12  # pixels of a colour bar


@dataclass(frozen=True)
class Scale:
    """The values at the ends of a map's colour scale, and its colours from left to right."""

    low: float
    high: float
    bar: Image.Image


@dataclass(frozen=True)
class Cell:
    """A picture under its title; for a map also the photo, and the scale of its colours."""

    title: str
    caption: str
    picture: Image.Image
    photo: Image.Image | None = None
    scale: Scale | None = None


def scale_of(values: Float[Tensor, "c h w"], *, signed: bool, overlay: bool) -> Scale:
    """The colour scale in which `colour.heat` draws a map."""
    values = torch.nan_to_num(values.float())
    channels = len(values)
    over_photo = overlay and channels == 1
    end = colour.peak(values) if over_photo else colour.limit(values)
    two_sided = signed or channels == 3
    ramp = torch.linspace(-1 if two_sided else 0, 1, STEPS).expand(channels, THICKNESS, STEPS)
    ground = torch.full((3, THICKNESS, STEPS), 0.5) if over_photo else None
    return Scale(-end if two_sided else 0.0, end, colour.heat(ramp, signed=signed, photo=ground))


def scored(target: ScoredTarget) -> str:
    """A target with its score and probability."""
    score = "" if target.score is None else f", score {target.score:.4g}"
    share = "" if target.probability is None else f", probability {100 * target.probability:.1f} %"
    return f"{fitting(target.name, LONGEST)}{score}{share}"
