import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

import opsin
from nets import model as tiny_model
from nets import plain
from opsin.collection.files.decoding import Cut
from opsin.images import photos
from opsin.images.photos import open_photo
from opsin.images.tensors import check, read


@pytest.fixture
def colours():
    """A 60x40 photo with a different colour in each quarter."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30], pixels[:20, 30:], pixels[20:, :30], pixels[20:, 30:] = (
        (200, 30, 30),
        (30, 200, 30),
        (30, 30, 200),
        (200, 200, 30),
    )
    return Image.fromarray(pixels)


def corners(photo):
    w, h = photo.size
    return [photo.getpixel(p) for p in ((3, 3), (w - 4, 3), (3, h - 4), (w - 4, h - 4))]


def close(a, b, by=12):
    return np.abs(np.array(a, int) - np.array(b, int)).max() <= by


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tif"])
def test_formats_give_the_same_colours(colours, tmp_path, suffix):
    colours.save(tmp_path / f"photo.{suffix}", quality=95)
    assert close(corners(open_photo(tmp_path / f"photo.{suffix}")), corners(colours), by=40)


def test_greyscale_palette_and_cmyk_are_brought_to_rgb(colours, tmp_path):
    colours.convert("L").save(tmp_path / "grey.png")
    grey = open_photo(tmp_path / "grey.png")
    assert grey.mode == "RGB"
    assert corners(grey)[0] == (corners(colours.convert("L"))[0],) * 3
    colours.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    assert close(corners(open_photo(tmp_path / "palette.png")), corners(colours))
    colours.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    assert close(corners(open_photo(tmp_path / "cmyk.jpg")), corners(colours), by=40)


def test_16_bit_grey_keeps_its_brightness(tmp_path):
    deep = np.full((20, 20), 32768, np.uint16)
    deep[:10] = 65535
    Image.fromarray(deep).save(tmp_path / "deep.png")
    photo = open_photo(tmp_path / "deep.png")
    assert photo.getpixel((5, 2)) == (255, 255, 255)
    assert photo.getpixel((5, 15)) == (128, 128, 128)


def test_dark_16_bit_grey_stays_dark(tmp_path):
    Image.fromarray(np.full((20, 20), 514, np.uint16)).save(tmp_path / "dark.png")
    assert open_photo(tmp_path / "dark.png").getpixel((5, 5)) == (2, 2, 2)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_show_white(tmp_path, mode):
    clear = Image.new(mode, (20, 20), (0,) * len(mode))
    clear.save(tmp_path / "clear.png")
    assert open_photo(tmp_path / "clear.png").getpixel((5, 5)) == (255, 255, 255)


def test_exif_rotation_is_applied(colours, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    colours.save(tmp_path / "turned.jpg", exif=exif, quality=98)
    turned = open_photo(tmp_path / "turned.jpg")
    assert turned.size == (40, 60)
    assert close(corners(turned), corners(colours.rotate(-90, expand=True)), by=40)


def test_a_20000_pixel_wide_photo_is_read(tmp_path):
    Image.new("RGB", (20000, 64), (10, 200, 30)).save(tmp_path / "wide.png")
    images = read(tmp_path / "wide.png", tiny_model(plain()))
    assert close((images[0, :, 5, 5] * 255).tolist(), (10, 200, 30), by=1)


def test_bad_files_are_named(tmp_path, colours):
    (tmp_path / "text.jpg").write_text("not a photo")
    colours.save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:400])
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    (tmp_path / "empty.png").write_bytes(b"")
    header = struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\x00\x00\x00\x0aIDAT0000000000")
    for name, said in {
        "text.jpg": "not an image",
        "half.jpg": "cannot be read",
        "dot.png": "at least 8",
        "empty.png": "not an image",
        "bomb.png": "too large",
        "": "is a folder",
    }.items():
        with pytest.raises(opsin.InputError, match=said):
            open_photo(tmp_path / name)


def test_a_missing_file_names_its_neighbours(tmp_path, colours):
    colours.save(tmp_path / "holiday.jpg")
    with pytest.raises(opsin.InputError, match=r"holliday\.jpg.*nearest: holiday\.jpg"):
        open_photo(tmp_path / "holliday.jpg")


@pytest.mark.parametrize("size", [(500, 333), (333, 500), (224, 224), (100, 90), (1000, 120)])
def test_reading_equals_timms_evaluation_transform(tmp_path, size):
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    photo.save(tmp_path / "photo.png")
    model = opsin.Model(plain(), mean=[0.5] * 3, std=[0.5] * 3, size=224, crop=0.875)
    ours = read(tmp_path / "photo.png", model)[0]
    theirs = create_transform(224, crop_pct=0.875, interpolation="bicubic", mean=(0,) * 3, std=(1,) * 3)(
        photo
    )
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ("photo.jpg", "opsin.read"),
        (torch.zeros(3, 8, 8), r"\(3, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8), r"\(1, 1, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), r"\(0, 3, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "divide bytes by 255"),
        (torch.full((1, 3, 8, 8), 2.0), r"\[2, 2\]"),
        (torch.full((1, 3, 8, 8), torch.nan), "nan"),
    ],
)
def test_images_are_checked(images, said):
    with pytest.raises(opsin.InputError, match=said):
        check(images)


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("side", [(300, 200), (200, 300), (4000, 20), (20, 4000)])
def test_a_part_of_the_image_is_found_in_the_photo(side, squash):
    """A photo whose red and green tell where a pixel lies."""
    width, height = side
    across, down = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    photo = Image.fromarray((255 * np.stack([across, down, 0 * down], -1)).round().astype(np.uint8))
    cut = Cut((48, 64), 0.8, "bilinear", squash)
    pixels = photos.fitted(photo, cut)
    for row, column in ((5, 7), (24, 32), (40, 60)):
        left, top, right, bottom = photos.in_photo((column, row, column + 1, row + 1), width, height, cut)
        assert (left + right) / 2 == pytest.approx(pixels[row, column, 0] / 255, abs=0.012)
        assert (top + bottom) / 2 == pytest.approx(pixels[row, column, 1] / 255, abs=0.012)
        assert left < right
        assert top < bottom
