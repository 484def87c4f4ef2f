"""What a training step makes fall, so that a network is harder to fool: attacks, noise, similar features."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from opsin.base.errors import InputError, unknown
from opsin.network.model import Model
from opsin.network.outputs import numbers
from opsin.optimise.ball import Ball, Norm
from opsin.optimise.fooling import STEP, Goal, gradient_steps, pursue


def plain_loss(
    model: Model, images: Float[Tensor, "n 3 h w"], labels: Int[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Mean of -log p_y(x): the cross-entropy, with a graph to the network's parameters.

    Like all losses here it runs the network in the mode that it is in, and leaves `.grad` to the caller.
    """
    return cross_entropy(scores(model, images), labels)


def noisy_loss(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    labels: Int[Tensor, " n"],
    *,
    noise: float,
    draw: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Mean of -log p_y(x + σ ε), ε standard normal: noise in training.

    σ, the `noise`, is in units of [0, 1]; the noisy images are not clipped. Randomised smoothing (`certify`)
    asks for networks that are trained so.
    """
    return plain_loss(model, images + _noise(images, noise, draw), labels)


def adversarial_loss(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    labels: Int[Tensor, " n"],
    *,
    epsilon: float,
    norm: Norm = "linf",
    steps: int = 7,
    rate: float | None = None,
    draw: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Mean of max_{‖r‖ ≤ ε} -log p_y(x + r), the maximum by projected gradient ascent from a random start.

    The inner attack sees the network as it is in evaluation; its steps are `rate`, by default 2.5 ε / steps.
    Madry et al.: Towards Deep Learning Models Resistant to Adversarial Attacks, 2017 (arXiv:1706.06083),
    eq. 2. Departs from it in that a batch shares one random start.

    Raises `InputError` on a negative ε.
    """
    if not epsilon >= 0:
        raise InputError(f"epsilon must be at least 0, not {epsilon}")
    ball = Ball(images, epsilon, norm)
    goal = Goal(labels.cpu(), None, torch.zeros(len(images), 1), given=True)
    step = STEP * epsilon / steps if rate is None else rate
    recipe = gradient_steps(ball, steps, step)
    start = ball.random(torch.Generator() if draw is None else draw)
    with torch.enable_grad():
        attacked = pursue(
            model, goal, start, lambda g: g.objective("cross_entropy"), recipe, iter(()), stop=False
        )
    return plain_loss(model, attacked.detach(), labels)


def stability_loss(
    model: Model,
    images: Float[Tensor, "n 3 h w"],
    labels: Int[Tensor, " n"],
    *,
    noise: float,
    weight: float,
    layers: Sequence[str] = ("output",),
    draw: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Similar representations: mean of -log p_y(x) + α Σ_l D_l(x, x + σ ε), over the layers l.

    D of the output is -Σ_j p_j(x) log p_j(x'), of any other layer ‖Φ_l(x) - Φ_l(x')‖₂; α is the `weight`.
    Zheng, Song, Leung, Goodfellow: Improving the Robustness of Deep Neural Networks via Stability Training,
    2016 (arXiv:1604.04326), eq. 1, 4 and 7.

    Raises `InputError` on an unknown layer.
    """
    inner = [layer for layer in layers if layer != "output"]
    with _captured(model, inner) as features:
        clean = scores(model, images)
        first = dict(features)
        noisy = scores(model, images + _noise(images, noise, draw))
        second = dict(features)
    loss = cross_entropy(clean, labels)
    for layer in layers:
        if layer == "output":
            apart = -(clean.softmax(1) * noisy.log_softmax(1)).sum(1)
        else:
            apart = (first[layer] - second[layer]).flatten(1).norm(dim=1)
        loss = loss + weight * apart.mean()
    return loss


def scores(model: Model, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c"]:
    """The network's output with a graph to its parameters, in the mode that the network is in."""
    x = images.mean(1, keepdim=True) if len(model.mean) == 1 else images
    x = x.to(model.device, model.dtype)
    mean, std = (x.new_tensor(value).view(-1, 1, 1) for value in (model.mean, model.std))
    return numbers(model.network((x - mean) / std), model.name)


def _noise(images: Tensor, deviation: float, draw: torch.Generator | None) -> Tensor:
    if not deviation >= 0:
        raise InputError(f"the noise's deviation must be at least 0, not {deviation}")
    return deviation * torch.randn(images.shape, generator=draw).to(images)


@contextmanager
def _captured(model: Model, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What these layers gave last, with its graph."""
    modules = dict(model.network.named_modules())
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for layer in layers:
            if layer not in modules:
                raise unknown("layer", layer, [name for name in modules if name])

            def keep(_module: object, _given: object, output: object, layer: str = layer) -> None:
                found[layer] = numbers(output, f"layer {layer!r}")

            stack.callback(modules[layer].register_forward_hook(keep).remove)
        yield found
