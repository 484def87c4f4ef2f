"""Networks behind a defence on their input: noise, smoothing, and the mean over several draws."""

import io
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pad

from opsin.base.errors import InputError, shown, unknown
from opsin.base.extras import extra
from opsin.network.model import Model
from opsin.network.outputs import tensor_in
from opsin.objectives.losses import log_shares
from opsin.optimise.transforms import blurred

Smooth = Literal["blur", "median", "jpeg", "total_variation"]
SIGMA = 1.0  # pixels of the blur
WINDOW = 3  # pixels of the median
QUALITY = 75  # of the JPEG
WEIGHT = 0.1  # of the total variation, as scikit-image's
MOST_SAMPLES = 10_000
Fixed = Callable[[Float[Tensor, "n c h w"]], Float[Tensor, "n c h w"]]


def defended(
    model: Model,
    *,
    noise: float = 0.0,
    smooth: str | None = None,
    strength: float | None = None,
    samples: int = 1,
    seed: int = 0,
) -> Model:
    """The model behind a defence: each photo is smoothed, then Gaussian noise is added, then it is seen.

    log (1/k) Σ_i p(s(x) + σ ε_i), with p the probabilities, s the smoothing (none, `blur`, `median`, `jpeg`
    or `total_variation`), σ the deviation of the `noise` in units of [0, 1] and k the number of `samples`,
    drawn anew in every forward pass. The `strength` is the blur's deviation in pixels (1), the median's odd
    window (3), the quality of the JPEG (75) or the weight of the total variation (0.1).

    It is a `Model` like any other, so every technique takes it, and every attack on it is an adaptive one:
    its gradients average over the samples (EOT), and pass through JPEG and total variation as if these
    changed nothing (BPDA). Total variation needs `opsin[gallery]`.

    Raises `InputError` on settings that make no defence or cannot be. Athalye, Carlini, Wagner: Obfuscated
    Gradients Give a False Sense of Security, 2018 (arXiv:1802.00420).
    """
    if smooth is not None and smooth not in get_args(Smooth):
        raise unknown("smoothing", smooth, get_args(Smooth))
    if not 0 <= noise <= 1:
        raise InputError(f"the noise's deviation is a number from 0 to 1, not {shown(noise)}")
    if not 1 <= samples <= MOST_SAMPLES:
        raise InputError(f"samples must be from 1 to {MOST_SAMPLES}, not {shown(samples)}")
    if not noise and smooth is None:
        raise InputError("a defence needs noise, a smoothing or both")
    if not noise and samples > 1:
        raise InputError(f"without noise all {samples} samples would be the same: give noise, or one sample")
    if strength is not None and smooth is None:
        raise InputError("a strength is one of a smoothing: name it, as smooth='blur'")
    fixed = None if smooth is None else _smoothing(smooth, strength)
    words = [smooth or "", f"noise {noise:g}" if noise else "", f"{samples} samples" if samples > 1 else ""]
    made = Model(
        Defended(model, noise, fixed, samples, seed),
        mean=[0.0] * len(model.mean),
        std=[1.0] * len(model.std),
        size=model.size,
        labels=model.labels,
        name=f"{model.name} behind {', '.join(filter(None, words))}",
        crop=model.crop,
        interpolation=model.interpolation,
        squash=model.squash,
    )
    made.network.eval()
    return made


class Defended(nn.Module):
    """A network that is shown smoothed or noisy photos; it normalises them itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model, noise: float, fixed: Fixed | None, samples: int, seed: int) -> None:
        super().__init__()
        self.net = model.network
        self.register_buffer("mean", torch.tensor(model.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(model.std).view(-1, 1, 1))
        self.noise, self.fixed, self.samples = noise, fixed, samples
        self.draw = torch.Generator().manual_seed(seed)  # its own: the global one is nobody's

    def forward(self, x: Float[Tensor, "n c h w"]) -> Tensor:
        """The logarithm of the mean of the probabilities; of one draw the scores themselves."""
        x = x if self.fixed is None else self.fixed(x)
        outputs = []
        for _ in range(self.samples):
            drawn = torch.randn(x.shape[1:], generator=self.draw).to(x) if self.noise else 0
            seen = (x + self.noise * drawn - self.mean.to(x)) / self.std.to(x)
            outputs.append(tensor_in(self.net(seen)))
        if self.samples == 1:
            assert outputs[0] is not None
            return outputs[0]
        if any(o is None or o.ndim != 2 for o in outputs):
            raise InputError(
                "several samples are averaged as probabilities, of which this network gives none"
            )
        shares = torch.stack([log_shares(o) for o in outputs if o is not None])
        return shares.logsumexp(0) - torch.tensor(float(self.samples)).log().to(x)


def _smoothing(kind: str, strength: float | None) -> Fixed:
    """The smoothing of a kind. Raises `InputError` on a strength that it cannot have."""
    if kind == "blur":
        return partial(blurred, sigma=_within(kind, SIGMA if strength is None else strength, 0.1, 100))
    if kind == "median":
        window = _within(kind, WINDOW if strength is None else strength, 3, 31)
        if window % 2 != 1:
            raise InputError(f"the window of a median is an odd number of pixels, not {shown(strength)}")
        return partial(median, window=int(window))
    if kind == "jpeg":
        quality = _within(kind, QUALITY if strength is None else strength, 1, 95)
        return partial(_straight, partial(jpeg, quality=int(quality)))
    weight = _within(kind, WEIGHT if strength is None else strength, 1e-4, 100)
    with extra("gallery"):
        import skimage.restoration  # noqa: F401, PLC0415 (an extra)
    return partial(_straight, partial(total_variation, weight=weight))


def _within(kind: str, strength: float, least: float, most: float) -> float:
    if not least <= strength <= most:
        raise InputError(f"the strength of {kind} is from {least:g} to {most:g}, not {shown(strength)}")
    return strength


def _straight(fixed: Fixed, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """What a function without a derivative gives, with the derivative of the identity (BPDA)."""
    return images + (fixed(images.detach()) - images).detach()


def median(images: Float[Tensor, "n c h w"], window: int) -> Float[Tensor, "n c h w"]:
    """The median of the window around each pixel, edges repeated; its gradient goes to the pixel it is."""
    reach = window // 2
    wide = pad(images, (reach,) * 4, mode="replicate")
    windows = wide.unfold(2, window, 1).unfold(3, window, 1).flatten(4)  # (n, c, h, w, window²)
    return windows.median(4).values


def jpeg(images: Float[Tensor, "n c h w"], quality: int) -> Float[Tensor, "n c h w"]:
    """What is left of images that were saved as JPEG, by Pillow."""
    kept = []
    for image in images.clamp(0, 1).nan_to_num().cpu().float():
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels.squeeze()).save(buffer, "JPEG", quality=quality)
        read = np.asarray(Image.open(buffer)).reshape(pixels.shape)
        kept.append(torch.from_numpy(read.copy()).permute(2, 0, 1) / 255)
    return torch.stack(kept).to(images)


def total_variation(images: Float[Tensor, "n c h w"], weight: float) -> Float[Tensor, "n c h w"]:
    """Images without noise, by Chambolle's minimisation of the total variation (scikit-image)."""
    from skimage.restoration import denoise_tv_chambolle  # noqa: PLC0415 (an extra)

    pixels = images.nan_to_num().cpu().double().numpy()
    kept = [denoise_tv_chambolle(one, weight=weight, channel_axis=0) for one in pixels]
    return torch.from_numpy(np.stack(kept)).to(images)
