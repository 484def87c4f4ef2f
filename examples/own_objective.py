"""A picture by optimisation from an objective and an ascent of your own.

Objectives add up; an ascent is a stream of steps, which you may watch, or end with `break`.
"""

import torch
from torchvision.utils import save_image

import opsin
from opsin.objectives.priors import total_variation
from opsin.optimise.canvas import Fourier

model = opsin.load()

# More of one channel, less of the next, and little grain: total_variation is minus what its name says.
objective = (
    opsin.channel("inception_4a", 5) - 0.5 * opsin.channel("inception_4a", 6) + 0.001 * total_variation(2)
)

generator = torch.Generator().manual_seed(0)
start = 0.5 + 0.02 * torch.randn(1, 3, 96, 96, generator=generator)
recipe = opsin.Recipe(steps=24, rate=0.05, canvas=Fourier(96, 96))  # hundreds of steps make a clearer picture

for step in opsin.ascend(model, objective, start, recipe):
    if step.scores is not None and step.number % 6 == 0:
        print(f"step {step.number}: {step.scores.item():.2f}")

save_image(step.images(), "picture.png")
