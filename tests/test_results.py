import json

import numpy as np
import pytest
import torch
from PIL import Image

import opsin
from opsin.base.folders import writing
from opsin.base.job import CAUTION, note, noting
from opsin.base.records import Record, as_json
from opsin.images import colour
from opsin.results.gallery import Gallery, Panel
from opsin.results.heatmap import Heatmap
from opsin.results.pictures import Picture, Pictures
from opsin.results.result import Result


def heatmap(values, **settings):
    images = torch.full((len(values), 3, 16, 16), 0.5)
    return Heatmap(values, images, **{"signed": True, "overlay": False, **settings})


def test_saving_and_loading_is_the_identity(tmp_path):
    record = Record("x", "y", {"a": 1, "b": [1, 2]}, {"name": "n"}, {"torch": "2"}, ("note",))
    made = heatmap(torch.randn(2, 1, 4, 4), extras={"class": torch.arange(3)}, record=record)
    made.save(tmp_path / "out")
    assert Result.load(tmp_path / "out") == made
    assert Result.load(tmp_path / "out") != heatmap(made.values + 1, extras=made.extras, record=record)
    gallery = Gallery(
        (Panel("g", "t", "c", torch.randn(3, 1, 4, 4)), Panel("g", "u", "c", torch.zeros(1, 3, 2, 2)))
    )
    gallery.save(tmp_path / "gallery")
    assert Result.load(tmp_path / "gallery") == gallery


def test_results_hold_plain_tensors():
    values = torch.ones(1, 1, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    made = heatmap(values)
    assert made.values.dtype == torch.float32
    assert not made.values.requires_grad


def test_an_error_while_writing_leaves_nothing(tmp_path):
    def half() -> None:
        with writing(tmp_path / "out") as place:
            (place / "half").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert list(tmp_path.iterdir()) == []


def test_loading_what_is_no_result_is_told(tmp_path):
    with pytest.raises(opsin.InputError, match="not a saved result"):
        Result.load(tmp_path)


def test_notes_are_collected_only_inside():
    note("lost")
    with noting() as outer:
        note(f"{CAUTION}one")
        note(f"{CAUTION}one")
        with noting() as inner:
            note("two")
    assert (outer, inner) == (["Caution: one"], ["two"])


def test_zero_is_neutral_in_signed_pictures():
    values = torch.tensor([[-1.0, 0.0, 1.0]]).repeat(3, 1)[None, None]
    left, middle, right = np.asarray(colour.heat(values[0], signed=True))[1].astype(int)
    assert np.ptp(middle) == 0  # a grey
    assert left[2] > left[0]  # blue below zero
    assert right[0] > right[2]  # red above
    grey = np.asarray(colour.heat(torch.zeros(3, 2, 2), signed=True))
    assert (grey == 128).all()


def test_an_overlay_is_the_photo_in_grey_where_the_map_is_zero():
    photo = torch.rand(1, 4, 4).repeat(3, 1, 1)
    drawn = np.asarray(colour.heat(torch.zeros(1, 4, 4), signed=True, photo=photo))
    np.testing.assert_allclose(drawn, np.asarray(colour.photo(photo)), atol=1)


def test_nan_is_drawn_as_zero():
    assert colour.heat(torch.full((1, 4, 4), torch.nan), signed=True).size == (4, 4)


def test_a_grid_shows_every_tile_on_one_scale():
    tiles = torch.stack([torch.full((1, 2, 2), v) for v in (-1.0, 0.0, 1.0, 0.5)])
    sheet = np.asarray(colour.grid(tiles))
    assert sheet.shape[0] == sheet.shape[1] >= colour.GRID_WIDTH
    step = sheet.shape[0] // 2
    shades = [tuple(sheet[y, x]) for y in (5, step + 5) for x in (5, step + 5)]
    assert len(set(shades)) == 4
    assert shades[1] == (247, 247, 247)


def test_upsampling_is_bilinear_to_the_images_size():
    up = heatmap(torch.tensor([[[[0.0, 1.0]]]])).upsampled()
    assert up.shape == (1, 1, 16, 16)
    torch.testing.assert_close(up[0, 0, 0, [0, 7, 8, 15]], torch.tensor([0.0, 0.4375, 0.5625, 1.0]))


# --- pictures that were made


def pictures(n=3, **settings):
    images = torch.rand(n, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    panels = (
        Picture("photo", "", torch.zeros(3, 5, 7), made=False),
        *(Picture("dream", f"{i}", x) for i, x in enumerate(images)),
    )
    return Pictures(panels, **settings)


def test_pictures_come_back_with_their_numbers_their_state_and_their_film(tmp_path):
    record = Record("x", "y", {"a": 1}, {"name": "n"}, {"torch": "2"}, ("note",))
    numbers = {
        "scores": torch.randn(4, 2),
        "layer1.0 loss": torch.randn(4, dtype=torch.float64),
        "none": torch.zeros(0, 2),
    }
    state = {
        "octave 1/parameters": torch.randn(1, 3, 4, 3, 2),
        "octave 1/generator": torch.Generator().get_state(),
        "octave 1/number": torch.tensor(7),
        "given.images": torch.rand(1, 3, 4, 4),
    }
    for film in (False, True):
        made = pictures(film=film, numbers=numbers, state=state, record=record)
        made.save(tmp_path / "out")
        loaded = Result.load(tmp_path / "out")
        assert loaded == made
        assert list(loaded.numbers) == list(numbers)
        assert loaded.state["octave 1/generator"].dtype == torch.uint8
        assert loaded != pictures(film=film, numbers=numbers, record=record)
        assert loaded != pictures(film=not film, numbers=numbers, state=state, record=record)


def test_only_a_film_is_written_as_an_animation(tmp_path):
    pictures(film=True).save(tmp_path / "film")
    with Image.open(tmp_path / "film" / "animation.webp") as film:
        assert (film.n_frames, film.size) == (3, (12, 8))
    assert len(list((tmp_path / "film").glob("*.png"))) == 4
    pictures().save(tmp_path / "film")  # in the place of the film
    assert not (tmp_path / "film" / "animation.webp").exists()


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_an_animation_has_the_size_of_its_largest_frame(tmp_path, kind):
    generator = torch.Generator().manual_seed(0)
    frames = [torch.rand(3, side, 2 * side, generator=generator) for side in (6, 8, 11)]
    colour.animate(frames, tmp_path / f"a.{kind}")
    with Image.open(tmp_path / f"a.{kind}") as film:
        assert (film.n_frames, film.size) == (3, (22, 11))


def test_a_pictures_png_is_the_image_in_bytes(tmp_path):
    made = pictures(1)
    made.save(tmp_path / "out")
    drawn = np.asarray(Image.open(tmp_path / "out" / "dream.png"))
    expected = (made.panels[1].image.permute(1, 2, 0).numpy() * 255).round()
    np.testing.assert_array_equal(drawn, expected)


def test_the_images_of_pictures_are_those_of_the_last_group():
    made = pictures(3)
    assert made.images.shape == (3, 3, 8, 12)
    assert [caption for caption, _ in made.pictures()] == ["photo", "dream 0", "dream 1", "dream 2"]
    assert made._repr_html_().count("<img") == 4


def test_pictures_hold_plain_tensors_of_their_own():
    image = torch.rand(3, 4, 4, dtype=torch.float16).requires_grad_()
    made = Pictures((Picture("g", "c", image),), numbers={"n": torch.ones(1, dtype=torch.bfloat16)})
    assert made.images.dtype == made.numbers["n"].dtype == torch.float32
    assert not made.images.requires_grad


def test_numbers_that_are_not_finite_are_null_in_json():
    about = {"a": [float("nan"), 1.5, (float("inf"), "NaN")], "b": {"c": -float("inf")}}
    assert json.loads(as_json(about)) == {"a": [None, 1.5, [None, "NaN"]], "b": {"c": None}}
