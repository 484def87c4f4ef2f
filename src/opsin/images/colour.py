"""Numbers to colours. Zero of a signed map is always the neutral middle of the scale."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

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
# the colours of each kind of map from left to right, for legends; overlays begin at `FAINTEST`
SCALES = {
    "sequential": tuple(SEQUENTIAL.split()),
    "diverging": tuple(DIVERGING.split()),
    "grey": ("000000", "808080", "ffffff"),
}
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
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
        return Image.fromarray(_bytes(0.5 + values / (2 * limit(values))))
    if photo is not None:
        colours = photo.cpu().float()
        faded = Image.fromarray(
            _bytes(COLOURFULNESS * colours + (1 - COLOURFULNESS) * colours.mean(0, keepdim=True))
        )
        map_over_it = overlay(values[0], signed=signed).picture
        faded.paste(map_over_it, mask=map_over_it)
        return faded
    single = (values / limit(values))[0].clamp(-1, 1)
    return Image.fromarray(_painted(single, signed))


class Overlay(NamedTuple):
    """A map as a transparent picture to lay over a photo, and the value at the strongest colour."""

    picture: Image.Image
    peak: float


def overlay(values: Float[Tensor, "h w"], *, signed: bool) -> Overlay:
    """One map as a transparent picture: the stronger the value, the more opaque its colour."""
    values = torch.nan_to_num(values.detach().cpu().float())
    highest = peak(values)
    single = (values / highest).clamp(-1, 1)
    painted = _painted(single if signed else FAINTEST + (1 - FAINTEST) * single, signed)
    strength = OPACITY * (single.abs() if signed else single.clamp(min=0))
    alpha = (strength * 255).round().byte().numpy()[..., None]
    return Overlay(Image.fromarray(np.concatenate([painted, alpha], -1), "RGBA"), highest)


def smooth(values: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "n c H W"]:
    """Coarse maps at a finer size, without the stars and bars of bilinear interpolation: quadratic B-splines.

    Bilinear interpolation, averaged over the width of one cell. For pictures only.
    """
    fine = interpolate(values, size, mode="bilinear", align_corners=False)
    cells = [max(1, round(many / few)) | 1 for many, few in zip(size, values.shape[-2:], strict=True)]
    high, wide = (cell // 2 for cell in cells)
    down = avg_pool2d(pad(fine, (wide, wide, high, high), mode="replicate"), (cells[0], 1), stride=1)
    return avg_pool2d(down, (1, cells[1]), stride=1)


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
    tiles = (tiles / limit(tiles)).clamp(-1, 1)
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


def limit(values: Tensor) -> float:
    """The value at which colours saturate: few pixels of a gradient are beyond it."""
    flat = values.abs().flatten()
    return float(flat.kthvalue(max(1, round(SATURATION * len(flat)))).values) or peak(values)


def peak(values: Tensor) -> float:
    """The largest size of a value; 1 if all are zero."""
    return float(values.abs().max()) or 1.0


def _bytes(image: Float[Tensor, "3 h w"]) -> NDArray[np.uint8]:
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()  # (3, h, w) -> (h, w, 3)
