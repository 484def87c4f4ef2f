"""A result in Python: indexed, as an array, in a terminal, in a notebook, in a viewer, in matplotlib."""

import re
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image, ImageShow

import nets
import opsin
from opsin.base.records import Record, ScoredTarget
from opsin.images import colour
from opsin.network.predictions import batches, ranked
from opsin.results.cells import scale_of
from opsin.results.findings import Findings, Shot
from opsin.results.gallery import Gallery, Panel
from opsin.results.heatmap import Heatmap
from opsin.results.indexing import chosen
from opsin.results.map import Map
from opsin.results.pictures import Picture, Pictures
from opsin.results.sheets import drawable
from opsin.results.units import Units

TARGETS = (ScoredTarget("tiger cat", 9.125, 0.5), ScoredTarget("conv2:1", -1.5, None))
NOTES = ("a note", "Caution: image 1 is odd", "Caution: second")
RECORD = Record("grad_cam", "a paper", {"layer": "conv2"}, {"name": "plain"}, {}, NOTES, TARGETS)


def heat(n=2, record=RECORD, **settings):
    values = torch.linspace(-1, 3, n * 16).view(n, 1, 4, 4)
    images = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return Heatmap(values, images, **{"signed": True, "overlay": True, "record": record, **settings})


def dreams(n=2, **settings):
    photo = Picture("photo", "", torch.zeros(3, 8, 8), made=False)
    made = [Picture("dream", f"frame {i}", torch.full((3, 8, 8), (i + 1) / 10)) for i in range(n)]
    return Pictures((photo, *made), numbers={"scores": torch.ones(3)}, **settings)


def gallery(groups=3, panels=2):
    return Gallery(
        tuple(
            Panel(f"layer{g} (Conv2d)", f"title {p}", f"caption {p}", torch.randn(4, 1, 6, 6))
            for g in range(groups)
            for p in range(panels)
        )
    )


# --- indices


def test_a_heatmap_of_one_image_has_its_values_photo_extras_and_target():
    extras = {"weights": torch.arange(6.0).view(2, 3), "threshold": torch.tensor(0.5)}
    whole = heat(extras=extras)
    for index, number in ((0, 0), (1, 1), (-1, 1), (np.int64(1), 1)):
        one = whole[index]
        assert torch.equal(one.values, whole.values[number : number + 1])
        assert torch.equal(one.images, whole.images[number : number + 1])
        assert torch.equal(one.extras["weights"], extras["weights"][number : number + 1])
        assert one.extras["threshold"] == 0.5
        assert one.record.targets == (TARGETS[number],)
        assert one.record.notes == (*NOTES, f"image {number} of a batch of 2, whose numbers these notes use")
        assert (one.signed, one.overlay) == (True, True)


def test_a_slice_is_a_heatmap_of_several():
    whole = heat(4, record=None)
    assert torch.equal(whole[1:3].values, whole.values[1:3])
    assert torch.equal(whole[::-2].values, whole.values[[3, 1]])
    assert whole[:] == whole
    assert [one.values.flatten()[0] for one in whole] == whole.values[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("make", [heat, dreams, gallery])
def test_an_index_outside_is_an_error_that_says_how_many_there_are(make):
    made = make()
    for index in (len(made), -len(made) - 1):
        with pytest.raises(
            IndexError, match=rf"{index} is outside: \w+ are numbered from 0 to {len(made) - 1}"
        ):
            made[index]
    with pytest.raises(opsin.InputError, match=r"the slice 9:None takes none"):
        made[9:]


def test_what_is_no_number_chooses_no_image():
    with pytest.raises(opsin.InputError, match="images are chosen by a number or a slice, not str"):
        chosen("tiger cat", 3, "images")
    with pytest.raises(opsin.InputError, match="not float"):
        chosen(1.0, 3, "images")


def test_a_heatmap_without_targets_is_indexed_too():
    assert heat(record=None)[1].record is None
    old = Record("grad_cam", "a paper", {}, {}, {})
    assert heat(record=old)[1].record.targets == ()


def test_pictures_are_indexed_by_those_that_were_made():
    whole = dreams(3, film=True, state={"x": torch.ones(1)})
    assert len(whole) == 3
    assert [panel.caption for panel in whole[1:].panels] == ["frame 1", "frame 2"]
    assert whole[1:].film
    assert not whole[0].film
    assert (whole[0].numbers, whole[0].state) == ({}, {})
    assert len(list(whole)) == 3


def test_a_gallery_is_indexed_by_panel():
    whole = gallery()
    assert len(whole) == 6
    assert whole[-1].panels == (whole.panels[-1],)
    assert [one.panels[0] for one in whole] == list(whole.panels)


def test_a_result_is_an_array_of_its_values_or_images():
    whole = heat()
    np.testing.assert_array_equal(np.asarray(whole), whole.values.numpy())
    assert np.asarray(whole, dtype=np.float64).dtype == np.float64
    copied = np.array(whole)
    copied[:] = 7
    assert not (whole.values == 7).any()
    assert np.asarray(dreams()).shape == (2, 3, 8, 8)
    with pytest.raises(opsin.InputError, match="many shapes"):
        np.asarray(gallery())
    with pytest.raises(opsin.InputError, match="no picture was made"):
        np.asarray(dreams(0))


# --- in a terminal


def test_a_heatmap_is_told_in_five_lines():
    assert repr(
        heat(1, record=Record("grad_cam", "", {"layer": "conv2"}, {"name": "plain"}, {}, NOTES, TARGETS[:1]))
    ) == (
        "Heatmap: grad_cam on plain\n"
        "  target:  tiger cat, score 9.125, probability 50.0 %\n"
        "  layer:   conv2\n"
        "  values:  (1, 1, 4, 4), -1 to 3\n"
        "  caution: image 1 is odd (and 1 more in record.notes)"
    )
    assert repr(heat(record=None)) == "Heatmap\n  values:  (2, 1, 4, 4), -1 to 3"
    assert "target:  tiger cat, score 9.125, probability 50.0 %; conv2:1, score -1.5\n" in repr(heat())


def test_many_targets_are_shortened():
    record = Record("saliency", "", {}, {"name": "plain"}, {}, (), TARGETS * 5)
    assert repr(heat(10, record=record)).splitlines()[1].endswith("; and 7 more")


def test_numbers_that_are_not_finite_are_told():
    values = torch.tensor([1.0, torch.nan, -2, torch.inf]).view(1, 1, 2, 2)
    made = Heatmap(values, torch.zeros(1, 3, 4, 4), signed=True, overlay=False)
    assert repr(made).endswith("-2 to 1, and some that are not finite")
    none = Heatmap(values * torch.nan, torch.zeros(1, 3, 4, 4), signed=True, overlay=False)
    assert repr(none).endswith("no finite numbers")


def test_other_results_are_told_in_a_few_lines():
    record = Record(
        "deepdream", "", {"layers": ["conv1", "conv2"], "target": "3 (beagle)"}, {"name": "plain"}, {}
    )
    assert repr(dreams(stopped="stopped at step 3 of 9", record=record)) == (
        "Pictures: deepdream on plain\n"
        "  target:  3 (beagle)\n"
        "  layer:   conv1, conv2\n"
        "  made:    2 of 8x8, stopped at step 3 of 9: dream"
    )
    assert repr(dreams(0)) == "Pictures\n  made:    nothing yet"
    assert (
        repr(gallery()) == "Gallery\n  shows:   6 panels of 3 groups from layer0 (Conv2d) to layer2 (Conv2d)"
    )
    shot = Shot.of("a group", "a caption", Image.new("RGB", (4, 4)))
    assert repr(Findings("Nearest", "", (shot,))) == "Findings\n  found:   Nearest: 1 pictures, 0 tables"
    assert repr(shot) == "Shot(group='a group', caption='a caption', lead=False)"
    assert repr(dreams().panels[0]) == "Picture('photo', '', 8x8, made=False)"
    assert repr(gallery().panels[0]) == "Panel('layer0 (Conv2d)', 'title 0', 'caption 0', (4, 1, 6, 6))"


def test_every_kind_of_result_is_told_in_lines_and_not_field_by_field():
    for kind in (Findings, Gallery, Heatmap, Map, Pictures, Units):
        assert kind.__repr__ is opsin.Result.__repr__


def test_a_hostile_name_stays_on_its_line():
    name = "a\n\x1b[31mred\r" + "x" * 5000
    record = Record(
        "saliency",
        "",
        {"layer": name},
        {"name": name},
        {},
        (f"Caution: {name}",),
        (ScoredTarget(name, 1.0, None),),
    )
    lines = repr(heat(1, record=record)).split("\n")
    assert len(lines) == 5
    assert all(len(line) <= 100 and line.isprintable() for line in lines)
    assert "score 1" in lines[1]


# --- in a notebook


def sources(page):
    return re.findall(r'<img src="data:image/(\w+);base64', page)


def test_a_map_stands_beside_its_photo_with_its_target_scale_and_cautions():
    page = heat()._repr_html_()
    ends = [f"{colour.peak(values):.3g}" for values in heat().drawn()]
    assert len(sources(page)) == 6
    for text in ("grad_cam on plain", "tiger cat, score 9.125, probability 50.0 %", "conv2:1, score -1.5"):
        assert text in page
    for text in (
        "Caution: image 1 is odd",
        "Caution: second",
        "layer conv2",
        f"<span>-{ends[1]}</span>",
        f"<span>{ends[1]}</span>",
    ):
        assert text in page
    assert "a note" not in page


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("overlay", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_scale_has_the_colours_of_the_picture_and_its_numbers(signed, overlay, channels):
    low = -2.0 if signed or channels == 3 else 0.0
    values = torch.linspace(low, 2.0, 10_000).view(1, 1, 100, 100).expand(1, channels, -1, -1)
    made = Heatmap(values, torch.full((1, 3, 100, 100), 0.5), signed=signed, overlay=overlay)
    scale = scale_of(values[0], signed=signed, overlay=overlay)
    peak = 2.0 if overlay and channels == 1 else colour.limit(values)
    assert (scale.low, scale.high) == (pytest.approx(low and -peak), pytest.approx(peak))
    ((_, picture),) = made.pictures()
    bar, drawn = np.asarray(scale.bar).astype(int), np.asarray(picture).astype(int)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        wanted = scale.low + share * (scale.high - scale.low)
        nearest = (values[0, 0] - wanted).abs().flatten().argmin()
        pixel = drawn.reshape(-1, 3)[nearest]
        assert abs(bar[0, round(share * (bar.shape[1] - 1))] - pixel).max() <= 6


def test_a_gallery_in_a_notebook_is_small_and_says_what_it_leaves_out():
    noise = torch.Generator().manual_seed(0)
    whole = Gallery(
        tuple(
            Panel(f"layer{g}", f"t{p}", "", torch.randn(9, 3, 112, 112, generator=noise))
            for g in range(30)
            for p in range(4)
        )
    )
    page = whole._repr_html_()
    shown = len(sources(page))
    assert len(page) <= 300_000
    assert 1 <= shown <= 9
    assert set(sources(page)) == {"webp"}
    assert f"{shown} of 120 shown, save() writes all" in page
    assert "layer0: t0" in page
    assert "of 6 shown" not in gallery()._repr_html_()
    assert "layer29 (Conv2d): title 0" in gallery(30)._repr_html_()


def test_what_a_record_says_is_escaped_in_a_notebook():
    name = "<script>alert(1)</script>"
    record = Record(
        name,
        name,
        {"layer": name},
        {"name": name},
        {},
        (f"Caution: {name}",),
        (ScoredTarget(name, 1.0, None),),
    )
    assert "<script>" not in heat(1, record=record)._repr_html_()
    assert (
        "<script>" not in Pictures((Picture(name, name, torch.zeros(3, 4, 4)),), record=record)._repr_html_()
    )


# --- in a viewer


@pytest.fixture
def viewer(monkeypatch):
    seen = []
    monkeypatch.setattr(ImageShow, "show", lambda picture: seen.append(picture) or True)
    return seen


def test_one_picture_is_opened_as_it_is_and_several_on_a_sheet(viewer):
    heat(1, record=None).show()
    assert viewer[0] == heat(1).pictures()[0][1]
    heat(2, record=None).show()
    assert viewer[1].width > 2 * 16
    gallery(20).show()
    assert max(viewer[2].size) < 3000


def test_a_machine_without_a_viewer_is_told(monkeypatch):
    monkeypatch.setattr(ImageShow, "show", lambda _: False)
    with pytest.raises(opsin.InputError, match=r"save\(\)"):
        heat().show()


def test_in_a_notebook_it_is_displayed(monkeypatch, viewer):
    displayed = []
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=displayed.append))
    made = heat()
    made.show()
    assert displayed == [made]
    del shell.kernel  # IPython in a terminal
    made.show()
    assert (len(displayed), len(viewer)) == (1, 1)


# --- in matplotlib


@pytest.fixture
def plt(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    yield pyplot
    pyplot.close("all")


def test_a_heatmap_is_plotted_with_a_colour_bar(plt):
    ax = heat(1, record=None).plot()
    ((_, picture),) = heat(1).pictures()
    np.testing.assert_array_equal(ax.images[0].get_array(), np.asarray(picture))
    bar = ax.images[0].axes.figure.axes[1]
    peak = colour.peak(heat(1).drawn()[0])
    assert bar.get_ylim() == pytest.approx((-peak, peak))
    ax.figure.canvas.draw()


def test_a_heatmap_is_plotted_on_given_axes_with_its_target(plt):
    _, given = plt.subplots()
    assert heat()[0].plot(given) is given
    assert given.get_title() == "tiger cat, score 9.125, probability 50.0 %"
    with pytest.raises(opsin.InputError, match=r"2 pictures.*result\[0\]"):
        heat().plot(given)


def test_several_pictures_are_plotted_on_axes_each(plt):
    axes = heat(2).plot()
    assert [ax.get_title().split(",")[0] for ax in axes] == ["tiger cat", "conv2:1"]
    made = dreams(3).plot()
    assert [ax.get_title() for ax in made] == ["photo", "dream\nframe 0", "dream\nframe 1", "dream\nframe 2"]
    assert all(len(ax.figure.axes) == 4 for ax in made)  # no colour bars, no empty axes
    many = gallery(20, 1).plot()
    assert many[0].figure.get_suptitle() == "9 of 20 shown"


def test_a_label_with_a_dollar_is_plotted_as_it_is(plt):
    record = Record("saliency", "", {}, {"name": "plain"}, {}, (), (ScoredTarget("$\\frac{$", 1.0, None),))
    ax = heat(1, record=record).plot()
    ax.figure.canvas.draw()
    assert "$" in ax.get_title()


# --- in a file


@pytest.mark.parametrize(
    ("suffix", "kind"), [(".png", "PNG"), (".jpg", "JPEG"), (".JPEG", "JPEG"), (".webp", "WEBP")]
)
def test_one_picture_is_written_to_a_file(tmp_path, suffix, kind):
    path = tmp_path / "new" / f"heat{suffix}"
    assert heat(1).save(str(path)) == path
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == (kind, (16, 16))
        if kind == "PNG":
            assert np.array_equal(np.asarray(picture), np.asarray(heat(1).pictures()[0][1]))
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    heat(1, signed=False).save(path)  # in its place


def test_of_pictures_the_one_that_was_made_is_written(tmp_path):
    dreams(1).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.getpixel((0, 0)) == (26, 26, 26)


@pytest.mark.parametrize("make", [heat, dreams, gallery])
def test_several_pictures_do_not_fit_into_a_file(tmp_path, make):
    with pytest.raises(
        opsin.InputError, match=r"pictures do not fit.*result\[0\]\.save\('.*a\.png'\), or name a folder"
    ):
        make().save(f"{tmp_path}/a.png")
    make()[0].save(tmp_path / "a.png")
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_findings_of_several_pictures_are_told_to_name_a_folder(tmp_path):
    shot = Shot.of("g", "c", Image.new("RGB", (4, 4)))
    with pytest.raises(
        opsin.InputError, match=r"2 pictures do not fit into the file .*a\.png: name a folder"
    ):
        Findings("t", "", (shot, shot)).save(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".gif", ".bmp", ".pdf", ".svg", ".TIF"])
def test_another_format_is_refused_and_not_taken_for_a_folder(tmp_path, suffix):
    with pytest.raises(opsin.InputError, match=r"\.png, \.jpg or \.webp"):
        heat(1).save(tmp_path / f"a{suffix}")
    assert not list(tmp_path.iterdir())


def test_a_folder_may_have_a_dot_in_its_name_or_be_there_already(tmp_path):
    heat().save(tmp_path / "run1.5")
    assert (tmp_path / "run1.5" / "record.json").is_file()
    (tmp_path / "a.png").mkdir()
    heat().save(tmp_path / "a.png")
    assert (tmp_path / "a.png" / "record.json").is_file()


def photo_of_somebody(path):
    Image.new("RGB", (4, 4), "red").save(path, "PNG")


def state_of(path):
    facts = path.lstat()
    return facts.st_ino, facts.st_mode, facts.st_size, facts.st_mtime_ns


def link_to_nothing(path):
    path.symlink_to("missing.png")


@pytest.mark.parametrize(
    "put",
    [
        photo_of_somebody,
        link_to_nothing,
        lambda path: path.write_text("notes"),
        lambda path: path.write_bytes(b""),
        lambda path: path.symlink_to("/dev/zero"),
    ],
    ids=["a photo", "a link to nothing", "a text", "nothing", "a device"],
)
def test_what_opsin_did_not_write_is_not_replaced(tmp_path, put):
    put(tmp_path / "a.png")
    before = state_of(tmp_path / "a.png")
    with pytest.raises(opsin.InputError, match=r"a\.png exists and was not written by Opsin"):
        heat(1).save(tmp_path / "a.png")
    assert state_of(tmp_path / "a.png") == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(opsin.InputError):
        heat(1).save(tmp_path / "file" / "a.png")
    with pytest.raises(opsin.InputError):
        heat(1).save(f"{tmp_path}/a\0.png")
    with pytest.raises(opsin.InputError, match="cannot write"):
        heat(1).save(tmp_path / f"{'x' * 300}.png")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


# --- in a folder


def names(result, tmp_path):
    return sorted(path.name for path in result.save(tmp_path / "out").glob("*.png"))


def test_maps_are_named_after_technique_and_target(tmp_path):
    assert names(heat(), tmp_path) == ["grad_cam-conv2_1.png", "grad_cam-tiger_cat.png"]
    record = Record("grad_cam", "", {}, {"name": "plain"}, {}, (), TARGETS[:1] * 2)
    assert names(heat(record=record), tmp_path) == [
        "grad_cam-tiger_cat-000.png",
        "grad_cam-tiger_cat-001.png",
    ]
    assert names(heat(record=None), tmp_path) == ["heatmap-000.png", "heatmap-001.png"]


def test_pictures_are_named_after_their_groups(tmp_path):
    assert names(dreams(1), tmp_path) == ["dream.png", "photo.png"]
    assert names(dreams(2), tmp_path) == ["dream-000.png", "dream-001.png", "photo.png"]
    image = torch.zeros(3, 4, 4)
    facet = (
        Picture("facet 1 (5 photos)", "photo", image, made=False),
        Picture("facet 1 (5 photos)", "photo", image, made=False),
        Picture("facet 1 (5 photos)", "mean of 5", image, made=False),
        Picture("facet 1 (5 photos)", "beagle; the network sees beagle", image),
        Picture("3 (goldfish, Carassius auratus)", "score 3", image),
        Picture("../../a/b\\c:d*?", "score 3", image),
    )
    assert names(Pictures(facet), tmp_path) == [
        "a_b_c_d.png",
        "facet_1_5_photos-mean_of_5.png",
        "facet_1_5_photos-photo-000.png",
        "facet_1_5_photos-photo-001.png",
        "facet_1_5_photos.png",
        "goldfish.png",
    ]


def test_a_gallery_has_a_sheet_for_each_group_named_after_the_layer(tmp_path):
    made = gallery(3, 4)
    assert names(made, tmp_path) == ["layer0.png", "layer1.png", "layer2.png"]
    with Image.open(tmp_path / "out" / "layer1.png") as picture:
        sheet = np.asarray(picture.convert("RGB"))
    for panel in made.panels[4:8]:
        assert inside(np.asarray(panel.picture()), sheet)
    assert opsin.Result.load(tmp_path / "out") == made
    (alone,) = gallery(1, 1).files()
    assert alone[0] == "layer0.png"


def test_a_sheet_is_written_in_letters_that_its_font_has():
    assert drawable("32×112×112, Größe…") == "32x112x112, Gro?e..."
    assert drawable("日本\n") == "??\n"


def inside(part, whole):
    """Whether a picture is a part of another one, but for a few shades: a sheet has 256 colours."""
    height, width = part.shape[:2]
    part, whole = part.astype(int), whole.astype(int)
    corners = np.argwhere((abs(whole - part[0, 0]) <= 12).all(-1))
    fits = [(y, x) for y, x in corners if y + height <= len(whole) and x + width <= whole.shape[1]]
    return any(abs(whole[y : y + height, x : x + width] - part).mean() < 4 for y, x in fits)


def test_another_picture_is_no_part_of_a_sheet():
    made = gallery(2, 1)
    (_, sheet), panel = made.files()[0], made.panels[1].picture()
    assert not inside(np.asarray(panel), np.asarray(sheet.convert("RGB")))


# --- predictions


def test_predictions_are_the_classes_in_the_order_of_their_probabilities():
    model, images = nets.model(nets.plain()), nets.images(11)
    output = model.run(images)["output"]
    made = model.predict(images, k=3)
    assert len(made) == 11
    for row, scores in zip(made, output, strict=True):
        order = scores.argsort(descending=True)[:3].tolist()
        assert [one.class_index for one in row] == order
        assert [one.label for one in row] == [nets.LABELS[i] for i in order]
        assert [one.score for one in row] == pytest.approx(scores[order].tolist())
        assert [one.probability for one in row] == pytest.approx(scores.softmax(0)[order].tolist(), rel=1e-5)
    assert len(model.predict(images[:1], k=99)[0]) == 5
    assert [len(row) for row in model.predict(images[:2])] == [5, 5]


def test_what_cannot_be_predicted_is_told():
    model, images = nets.model(nets.plain()), nets.images(1)
    for k in (0, -1, True):
        with pytest.raises(opsin.InputError, match="k must be"):
            model.predict(images, k=k)
    for k in (2.5, "5", None):
        with pytest.raises(opsin.InputError, match="k must be"):
            ranked([torch.ones(1, 5)], model.probabilities, model.label, k)
    for bad in ("cat.png", images[0], images[:0]):
        with pytest.raises(opsin.InputError, match=r"tensor \(n, 3, h, w\)"):
            batches(bad)
    maps = nets.seeded(nets.Chain(conv=torch.nn.Conv2d(3, 4, 3)))
    with pytest.raises(opsin.InputError, match=r"needs an output of \(n, classes\)"):
        nets.model(maps, labels=None).predict(images)
    broken = nets.plain()
    broken.fc.bias.data[0] = torch.nan
    with pytest.raises(opsin.NetworkError, match="NaN"):
        nets.model(broken).predict(images)
