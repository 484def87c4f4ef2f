import pytest

import opsin
from opsin.pages import gallery
from opsin.registry import catalogue


def test_what_the_gallery_sets_is_there_to_be_set():
    known = catalogue.techniques()
    for table in (gallery.SETTINGS, gallery.PHOTO, gallery.NETWORKS):
        assert table.keys() <= known.keys()
    for name, settings in gallery.SETTINGS.items():
        assert settings().keys() <= known[name].parameters.keys(), name


def test_the_gallery_gives_what_a_technique_cannot_do_without():
    for name, technique in catalogue.techniques().items():
        needed = {key for key, parameter in technique.parameters.items() if parameter.required}
        given = gallery.SETTINGS[name]() if name in gallery.SETTINGS else {}
        assert needed <= given.keys(), name


def test_photos_are_given_only_to_techniques_that_take_some():
    for name, photo in gallery.PHOTO.items():
        assert catalogue.get(name).takes_images
        assert photo().ndim in (2, 3)


@pytest.fixture(scope="module")
def model():
    return opsin.load("efficientnet_lite0")


def test_a_technique_is_shown_on_its_sample_photo(model):
    result = gallery.made(catalogue.get("saliency"), model)
    assert result.record.technique == "saliency"
    assert result.images.shape == (1, 3, *model.size)
    assert result.values.any()
    assert "cat" in model.label(int(model.run(result.images)["output"].argmax()))


def test_crops_are_parts_of_the_photo_and_always_the_same_ones(model):
    from PIL import Image
    from skimage import data

    photo = Image.fromarray(data.cat())
    first = gallery.crops(photo, model)
    assert first.shape == (gallery.CROPS, 3, *model.size)
    assert (first == gallery.crops(photo, model)).all()
    assert not (first[0] == first[1]).all()


def test_the_steps_of_a_climb_make_a_film_beside_its_pictures(tmp_path, monkeypatch):
    from PIL import Image

    techniques = {name: catalogue.get(name) for name in ("class_model", "saliency")}
    monkeypatch.setattr(catalogue, "techniques", lambda: techniques)
    monkeypatch.setattr(catalogue, "sections", lambda: {"All": list(techniques)})
    monkeypatch.setitem(gallery.SETTINGS, "class_model", lambda: {"target": "goose; daisy", "steps": 5})
    monkeypatch.setitem(gallery.FILMS, "class_model", 2)
    told = []
    with opsin.listening(told.append):
        page = gallery.gallery(tmp_path / "out")
    assert sum(step.label == "class model" for step in told) == 5  # whoever listened still hears
    with Image.open(tmp_path / "out/class_model/steps.webp") as film:
        assert (film.n_frames, film.size) == (2, (448, 224))
    assert not (tmp_path / "out/saliency/steps.webp").exists()
    html = page.read_text("utf-8")
    assert html.count("How it grows, step by step.") == 1
    assert "--every 2" in html
