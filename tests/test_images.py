import io
import struct
import subprocess
import sys
import zlib
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from timm.data.transforms_factory import create_transform

import opsin
from nets import model as tiny_model
from nets import plain
from opsin.collection.files.decoding import Cut
from opsin.images import photos
from opsin.images.photos import as_photo, folder_photos, open_photo
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


# --- photos that are no files


def encoded(photo, kind="PNG", **settings):
    buffer = io.BytesIO()
    photo.save(buffer, kind, **settings)
    return buffer.getvalue()


KINDS = {
    "path": lambda photo, path: str(path),
    "image": lambda photo, path: photo,
    "array": lambda photo, path: np.asarray(photo),
    "array of floats": lambda photo, path: np.asarray(photo, np.float32) / 255,
    "array of 16 bits": lambda photo, path: np.asarray(photo, np.uint16) * 257,
    "array turned around": lambda photo, path: np.asarray(photo)[::-1, ::-1][::-1, ::-1],
    "bytes": lambda photo, path: path.read_bytes(),
    "bytearray": lambda photo, path: bytearray(path.read_bytes()),
    "memoryview": lambda photo, path: memoryview(path.read_bytes()),
    "buffer": lambda photo, path: io.BytesIO(path.read_bytes()),
    "open file": lambda photo, path: path.open("rb"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_photo_is_what_its_file_is(colours, tmp_path, kind):
    colours.save(tmp_path / "photo.png")
    model = tiny_model(plain())
    expected = read(tmp_path / "photo.png", model)
    source = KINDS[kind](colours, tmp_path / "photo.png")
    with source if kind == "open file" else nullcontext():
        torch.testing.assert_close(read(source, model), expected, atol=0, rtol=0)


def test_photos_of_several_kinds_are_read_together(colours, tmp_path):
    colours.save(tmp_path / "photo.png")
    model = tiny_model(plain())
    expected = read(tmp_path / "photo.png", model)
    for several in (
        [tmp_path / "photo.png", colours, np.asarray(colours), encoded(colours)],
        (photo for photo in (colours, colours)),
        tmp_path.glob("*.png"),
    ):
        for image in read(several, model):
            assert torch.equal(image, expected[0])
    with pytest.raises(opsin.InputError, match="no photo given"):
        read([], model)


def test_an_image_of_pillow_is_turned_as_its_exif_data_say_and_left_as_it_was(colours):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(io.BytesIO(encoded(colours, exif=exif)))
    assert corners(as_photo(turned)) == corners(colours.rotate(-90, expand=True))
    assert (turned.size, turned.getexif()[0x0112]) == ((60, 40), 6)
    rgb = Image.new("RGB", (10, 10))
    as_photo(rgb).putpixel((0, 0), (255, 0, 0))
    assert rgb.getpixel((0, 0)) == (0, 0, 0)


def test_transparent_pixels_of_images_and_arrays_show_white():
    half = np.zeros((10, 10, 4), np.uint8)
    half[..., 3] = 51  # a fifth
    for source in (Image.fromarray(half), half, half / 255, half.astype(np.uint16) * 257):
        assert as_photo(source).getpixel((4, 4)) == (204,) * 3
    assert as_photo(Image.new("LA", (10, 10), (0, 0))).getpixel((4, 4)) == (255,) * 3


@pytest.mark.parametrize(
    ("source", "grey"),
    [
        (np.full((10, 10), 100, np.uint8), 100),
        (np.full((10, 10), 0.5), 128),
        (np.full((10, 10), 0.5, np.float16), 128),
        (np.full((10, 10), 514, np.uint16), 2),
        (np.full((10, 10), 514, ">u2"), 2),
        (Image.fromarray(np.full((10, 10), 514, np.uint16)), 2),
        (Image.fromarray(np.full((10, 10), 0.5, np.float32)), 128),
    ],
)
def test_greys_are_as_bright_as_in_a_file(source, grey):
    assert as_photo(source).getpixel((4, 4)) == (grey,) * 3


class Drips(io.RawIOBase):
    """A file that gives three bytes at a time, as a socket may."""

    def __init__(self, data):
        self.data = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        piece = self.data.read(3)
        buffer[: len(piece)] = piece
        return len(piece)


def test_a_file_object_is_read_from_its_position_to_its_end(colours):
    behind = io.BytesIO(b"header" + encoded(colours))
    behind.seek(6)
    assert corners(as_photo(behind)) == corners(colours)
    assert corners(as_photo(Drips(encoded(colours)))) == corners(colours)


def closed():
    file = io.BytesIO(b"")
    file.close()
    return file


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (3, "a photo must be a path, .* not int"),
        (None, "not NoneType"),
        (torch.zeros(3, 8, 8), "not Tensor"),
        (np.zeros((3, 9, 9)), r"the array must be .* not \(3, 9, 9\): channels come last"),
        (np.zeros((2, 9, 9, 3)), r"not \(2, 9, 9, 3\): pass several photos as a list"),
        (np.zeros((9, 9, 2)), r"\(9, 9, 2\)"),
        (np.zeros((0, 9, 3)), r"\(0, 9, 3\)"),
        (np.zeros(9), r"\(9,\)"),
        (np.zeros((9, 9), np.int64), "not int64"),
        (np.zeros((9, 9), bool), "not bool"),
        (np.zeros((9, 9), complex), "not complex128"),
        (np.zeros((9, 9), object), "not object"),
        (np.full((9, 9, 3), 200.0), r"holds floats from 200 to 200: they must lie in \[0, 1\]"),
        (np.full((9, 9), -0.5), "from -0.5 to -0.5"),
        (np.full((9, 9), np.nan), "from nan to nan"),
        (np.zeros((7, 9), np.uint8), "the array is 9x7 pixels"),
        (Image.new("RGB", (3, 9)), "the image is 3x9 pixels"),
        (b"", "the photo given as bytes is not an image"),
        (b"no photo", "not an image"),
        (io.StringIO("text"), "must give bytes, not str: open it in binary mode"),
        (io.BytesIO(b"no photo"), "the file object is not an image"),
        (closed(), "the file object cannot be read: I/O operation on closed file"),
        ("https://example.org/cat.jpg", "https://example.org/cat.jpg is a web address, .* download"),
        ("HTTP://example.org/cat.jpg", "is a web address"),
        (Path("https://example.org/cat.jpg"), "is a web address"),
    ],
)
def test_what_is_no_photo_says_what_would_be(source, said):
    with pytest.raises(opsin.InputError, match=said):
        as_photo(source)


def test_of_several_photos_the_bad_one_is_named(colours, tmp_path):
    (tmp_path / "text.jpg").write_text("not a photo")
    model = tiny_model(plain())
    with pytest.raises(opsin.InputError, match=r"photo 1 \(ndarray\) holds floats"):
        read([colours, np.full((9, 9), 9.0)], model)
    with (
        (tmp_path / "text.jpg").open("rb") as file,
        pytest.raises(opsin.InputError, match=r"text\.jpg is not"),
    ):
        read([colours, file], model)
    with pytest.raises(opsin.InputError, match=r"text\.jpg is not an image"):
        read([colours, tmp_path / "text.jpg"], model)


def test_photos_are_taken_without_importing_torch():
    script = "import sys; from opsin.images.photos import as_photo; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- HEIC

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


def test_heic_without_its_extra_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "photo.heic").write_bytes(HEIC)
    for source in (tmp_path / "photo.heic", HEIC):
        with pytest.raises(opsin.InputError, match=r"HEIC photo: .*pip install 'opsin\[heif\]'"):
            as_photo(source)
    with pytest.raises(opsin.InputError, match=r"photo\.heic is a HEIC photo"):
        [open_photo(path) for path in folder_photos(tmp_path)]


def test_heic_is_opened_by_the_extra_once_it_is_asked_for(monkeypatch):
    class Plugin(ImageFile.ImageFile):
        format = "TESTHEIF"

        def _open(self):
            self._mode, self._size = "RGB", (12, 10)

        def load(self):
            self._im = Image.new("RGB", self.size, (1, 2, 3)).im

    def register():
        Image.register_open(Plugin.format, Plugin, lambda start: start[4:12] == b"ftypheic")

    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    photo = as_photo(HEIC)
    assert (photo.size, photo.getpixel((5, 5))) == ((12, 10), (1, 2, 3))


def test_a_real_heic_photo_is_read(colours):
    heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    heif.from_pillow(colours).save(buffer, quality=95)
    assert close(corners(as_photo(buffer.getvalue())), corners(colours), by=40)
