"""Numbers to colours. Zero of a signed map is always the neutral middle of the scale."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

# evenly spaced anchors of the colour scales, interpolated linearly in sRGB
SEQUENTIAL = "000004 280b54 65156e 9f2a63 d44842 f57d15 fac127 fcffa4"
DIVERGING = "053061 2166ac 67a9cf d1e5f0 f7f7f7 fddbc7 ef8a62 b2182b 67001f"
# single pixels of a gradient dwarf the rest: values above this quantile saturate; found by trial
SATURATION = 0.995
# Overlays, found by trial: the opacity where the map peaks, the start of the colour scale (its dark end would
# look like shadow), and how much of the photo's colour remains.
OPACITY = 0.85
FAINTEST = 0.3
COLOURFULNESS = 0.3
FRAME_DURATION = 100  # milliseconds per frame of an animation
TILE_GAP = 1  # pixels between the tiles of a grid
GRID_WIDTH = 320  # pixels: small tiles are enlarged by whole factors until a grid is about this wide


def heat(
    values: Float[Tensor, "c h w"], *, signed: bool, photo: Float[Tensor, "3 h w"] | None = None
) -> Image.Image:
    """One map as a picture, drawn over the photo if one is given.

    Three channels become RGB around a neutral grey; one channel goes through a colour scale.
    """
    values = torch.nan_to_num(values.detach().cpu().float())
    if values.shape[0] == 3:
        return Image.fromarray(_bytes(0.5 + values / (2 * _scale(values))))
    single = (values / (_peak(values) if photo is not None else _scale(values)))[0].clamp(-1, 1)
    if photo is None:
        return Image.fromarray(_painted(single, signed))
    painted = _painted(single if signed else FAINTEST + (1 - FAINTEST) * single, signed)
    strength = OPACITY * (single.abs() if signed else single.clamp(min=0))[..., None].numpy()
    colours = photo.cpu().float()
    faded = _bytes(COLOURFULNESS * colours + (1 - COLOURFULNESS) * colours.mean(0, keepdim=True))
    return Image.fromarray((faded * (1 - strength) + painted * strength).round().astype(np.uint8))


def photo(image: Float[Tensor, "3 h w"]) -> Image.Image:
    """An image in [0, 1] as a picture."""
    return Image.fromarray(_bytes(image.detach().cpu().float()))


def animate(frames: Sequence[Float[Tensor, "3 _ _"]], path: Path) -> None:
    """Write images, at the size of the largest, as an animation: .gif or .webp, by the suffix."""
    drawn = [photo(frame) for frame in frames]
    size = max((picture.size for picture in drawn), key=lambda size: size[0] * size[1])
    drawn = [picture.resize(size, Image.Resampling.BICUBIC) for picture in drawn]
    drawn[0].save(path, save_all=True, append_images=drawn[1:], duration=FRAME_DURATION, loop=0)


def grid(tiles: Float[Tensor, "k c h w"]) -> Image.Image:
    """Tiles side by side on one signed scale; three channels in colour, else one channel per tile."""
    tiles = torch.nan_to_num(tiles.detach().cpu().float())
    tiles = (tiles / _scale(tiles)).clamp(-1, 1)
    k, _, h, w = tiles.shape
    painted = [_bytes(0.5 + t / 2) if len(t) == 3 else _painted(t[0], signed=True) for t in tiles]
    columns = int(np.ceil(np.sqrt(k * h / w)))
    rows = int(np.ceil(k / columns))
    zoom = max(1, GRID_WIDTH // max(columns * w, rows * h))
    high, wide = h * zoom + TILE_GAP, w * zoom + TILE_GAP
    sheet = np.full((rows * high + TILE_GAP, columns * wide + TILE_GAP, 3), 128, np.uint8)
    for index, tile in enumerate(painted):
        top, left = index // columns * high + TILE_GAP, index % columns * wide + TILE_GAP
        sheet[top : top + h * zoom, left : left + w * zoom] = tile.repeat(zoom, 0).repeat(zoom, 1)
    return Image.fromarray(sheet)


def _painted(values: Float[Tensor, "h w"], signed: bool) -> UInt8[np.ndarray, "h w 3"]:
    """Values in [-1, 1] (signed) or [0, 1] through the colour scale."""
    anchors = np.array([list(bytes.fromhex(rgb)) for rgb in (DIVERGING if signed else SEQUENTIAL).split()])
    positions = ((values + 1) / 2 if signed else values.clamp(min=0)).numpy() * (len(anchors) - 1)
    steps = np.arange(len(anchors))
    return (
        np.stack([np.interp(positions, steps, anchors[:, i]) for i in range(3)], -1).round().astype(np.uint8)
    )


def _scale(values: Tensor) -> float:
    flat = values.abs().flatten()
    return float(flat.kthvalue(max(1, round(SATURATION * len(flat)))).values) or _peak(values)


def _peak(values: Tensor) -> float:
    return float(values.abs().max()) or 1.0


def _bytes(image: Float[Tensor, "3 h w"]) -> NDArray[np.uint8]:
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()  # (3, h, w) -> (h, w, 3)
