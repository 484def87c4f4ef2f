"""The last step: numbers to colours. Zero of a signed map is always the neutral middle."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

# Anchors of the scales, evenly spaced, interpolated linearly in sRGB.
SEQUENTIAL = [(0, 0, 4), (40, 11, 84), (101, 21, 110), (159, 42, 99), (212, 72, 66), (245, 125, 21), (250, 193, 39), (252, 255, 164)]  # fmt: skip
DIVERGING = [(5, 48, 97), (33, 102, 172), (103, 169, 207), (209, 229, 240), (247, 247, 247), (253, 219, 199), (239, 138, 98), (178, 24, 43), (103, 0, 31)]  # fmt: skip
# Single pixels of a gradient are far larger than the rest: values above this quantile saturate. Found by trial.
SATURATION = 0.995
# How much of an overlay is heat where the map is at its peak, and of grey photo where it is zero. Found by trial.
OPACITY = 0.8
TILE_GAP = 1
MIN_TILE = 12
MAX_GRID = 960


def heat(
    values: Float[Tensor, "c h w"], *, signed: bool, photo: Float[Tensor, "3 h w"] | None = None
) -> Image.Image:
    """One map as a picture; over the photo where one is given.

    Three channels become RGB around a neutral grey; one channel goes through a colour scale.
    """
    values = torch.nan_to_num(values.detach().cpu().float())
    if values.shape[0] == 3:
        return Image.fromarray(_bytes(0.5 + values / (2 * _scale(values))))
    single = (values / (_peak(values) if photo is not None else _scale(values)))[0].clamp(-1, 1)
    painted = _painted(single, signed)
    if photo is None:
        return Image.fromarray(painted)
    strength = OPACITY * single.abs().sqrt()[..., None].numpy() if signed else OPACITY * single.clamp(min=0)[..., None].numpy()
    grey = photo.cpu().float().mean(0, keepdim=True)
    faded = _bytes(0.35 * photo.cpu().float() + 0.65 * grey)  # colours step back so that the heat is read
    return Image.fromarray((faded * (1 - strength) + painted * strength).round().astype(np.uint8))


def photo(image: Float[Tensor, "3 h w"]) -> Image.Image:
    """An image in [0, 1] as a picture."""
    return Image.fromarray(_bytes(image.detach().cpu().float()))


def grid(tiles: Float[Tensor, "k c h w"]) -> Image.Image:
    """Tiles side by side on one signed scale; three channels in colour, else one channel a tile."""
    tiles = torch.nan_to_num(tiles.detach().cpu().float())
    tiles = tiles / _peak(tiles)
    k, _, h, w = tiles.shape
    painted = [_bytes(0.5 + t / 2) if len(t) == 3 else _painted(t[0], signed=True) for t in tiles]
    columns = int(np.ceil(np.sqrt(k * h / w)))
    rows = int(np.ceil(k / columns))
    zoom = max(1, min(int(np.ceil(MIN_TILE / min(h, w))), MAX_GRID // max(1, columns * w)))
    high, wide = h * zoom + TILE_GAP, w * zoom + TILE_GAP
    sheet = np.full((rows * high + TILE_GAP, columns * wide + TILE_GAP, 3), 128, np.uint8)
    for index, tile in enumerate(painted):
        top, left = index // columns * high + TILE_GAP, index % columns * wide + TILE_GAP
        sheet[top : top + h * zoom, left : left + w * zoom] = tile.repeat(zoom, 0).repeat(zoom, 1)
    return Image.fromarray(sheet)


def _painted(values: Float[Tensor, "h w"], signed: bool) -> UInt8[np.ndarray, "h w 3"]:
    """Values in [-1, 1] (signed) or [0, 1] through the colour scale."""
    anchors = np.array(DIVERGING if signed else SEQUENTIAL, np.float32)
    place = ((values + 1) / 2 if signed else values.clamp(min=0)).numpy() * (len(anchors) - 1)
    steps = np.arange(len(anchors))
    return np.stack([np.interp(place, steps, anchors[:, i]) for i in range(3)], -1).round().astype(np.uint8)


def _scale(values: Tensor) -> float:
    flat = values.abs().flatten()
    return float(flat.kthvalue(max(1, round(SATURATION * len(flat)))).values) or _peak(values)


def _peak(values: Tensor) -> float:
    return float(values.abs().max()) or 1.0


def _bytes(image: Float[Tensor, "3 h w"]) -> NDArray[np.uint8]:
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()  # (3, h, w) -> (h, w, 3)
