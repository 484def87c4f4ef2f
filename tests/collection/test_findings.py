"""What is found in a collection, as a value and from the command line."""

import io
import json
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import opsin
from opsin.base.records import Record
from opsin.cli import inputs
from opsin.cli.tables import print_tables
from opsin.collection.scan.scanning import scan
from opsin.images import photos
from opsin.results.findings import Findings, Shot, Table

NET = """
import torch, opsin
from torch import nn

def net(seed):
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU())
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))

def good(seed=0, size=32):
    labels = ["red cat, tabby", "blue dog", "red dog", "green bird", "grey fish"]
    return opsin.Model(net(seed), mean=[0.5] * 3, std=[0.5] * 3, size=size, labels=labels, name="net.py:good")

def other():
    return good(1)

def larger():
    return good(0, 48)
"""


def shot(group, caption, colour, *, lead=False):
    return Shot.of(group, caption, Image.new("RGB", (8, 6), colour), lead=lead)


def example(**settings):
    model = {"name": "net", "sha256": "0" * 64}
    return Findings(
        "A <title> & more",
        "What there is.",
        (
            shot("one", "first & <b>bold</b>", "red", lead=True),
            shot("one", 'second "quoted"', "green"),
            shot("one", "third", "blue"),
            shot("two", "alone", "grey", lead=True),
            shot("three", "not leading", "white"),
        ),
        (
            Table("Some <numbers>", ("name", "n", "share"), (("a<b", 3, 0.5), ("ß", 4, "20%"))),
            Table("None", (), ()),
        ),
        {"k": 3, "names": ["é", "\n", None], "inner": {"x": 0.25}},
        **{
            "record": Record("example", "A paper", {"k": 3}, model, {"opsin": "1"}, ("a <note>",)),
            **settings,
        },
    )


def test_findings_are_saved_and_loaded(tmp_path):
    found = example()
    place = found.save(tmp_path / "out")
    loaded = opsin.Result.load(place)
    assert isinstance(loaded, Findings)
    assert loaded == found
    assert loaded.tables[0].rows[0] == ("a<b", 3, 0.5)
    assert json.loads((place / "facts.json").read_text("utf-8")) == found.facts
    names = {path.name for path in place.iterdir()}
    assert names == {
        "index.html",
        "facts.json",
        "manifest.json",
        "record.json",
        "values.npz",
        *(f"00{i}.webp" for i in range(5)),
    }
    with Image.open(place / "002.webp") as picture:
        assert np.array(picture)[3, 3].argmax() == 2
    page = (place / "index.html").read_text("utf-8")
    assert sorted(re.findall('src="([^"]+)"', page)) == [f"00{i}.webp" for i in range(5)]
    assert 'width="8" height="6"' in page
    for change in (
        {"title": "x"},
        {"shots": found.shots[1:]},
        {"tables": ()},
        {"facts": {}},
        {"record": None},
    ):
        assert Findings(**{**vars(found), **change}) != loaded


def test_files_of_many_pictures_sort_as_the_pictures_do(tmp_path):
    shots = tuple(shot("all", str(i), (i % 256, 0, 0)) for i in range(1001))
    place = Findings("Many", "", shots, record=example().record).save(tmp_path / "out")
    assert [path.read_bytes() for path in sorted(place.glob("*.webp"))] == [one.data for one in shots]


def test_findings_of_nothing_are_saved_and_loaded(tmp_path):
    found = Findings("Nothing", "", (), record=example().record)
    assert opsin.Result.load(found.save(tmp_path / "out")) == found
    assert "<img" not in (tmp_path / "out/index.html").read_text()


def test_findings_are_saved_over_older_ones(tmp_path):
    example().save(tmp_path / "out")
    found = Findings("Newer", "", (), record=example().record)
    assert opsin.Result.load(found.save(tmp_path / "out")) == found
    assert not (tmp_path / "out/000.webp").exists()


def test_shots_are_grouped_with_what_leads_first():
    groups = example().groups()
    assert [(name, len(leads), len(others)) for name, leads, others in groups] == [
        ("one", 1, 2),
        ("two", 1, 0),
        ("three", 0, 1),
    ]
    assert [caption for caption, _ in example().pictures()][1] == 'one: second "quoted"'


def test_the_page_is_whole_and_escaped():
    page = example().html()
    assert page.count("<img") == 5
    assert page.count('src="data:image/webp;base64,') == 5
    assert "http" not in page
    for text in (
        "A &lt;title&gt; &amp; more",
        "first &amp; &lt;b&gt;bold&lt;/b&gt;",
        "second &#34;quoted&#34;",
        "Some &lt;numbers&gt;",
        "<td>a&lt;b</td>",
        '<td class="number">3</td>',
        "a &lt;note&gt;",
    ):
        assert text in page, text
    assert "<b>bold" not in page


def test_a_shot_holds_its_picture():
    one = shot("g", "c", (200, 10, 90))
    assert one.picture.size == (8, 6)
    assert np.abs(np.array(one.picture).astype(int) - (200, 10, 90)).max() < 6
    with Image.open(io.BytesIO(one.data)) as picture:
        assert picture.format == "WEBP"


# --- from the command line


def write_photo(path, seed):
    photo = np.random.default_rng(seed).integers(0, 256, (30, 36, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).resize((60, 50)).save(path)


FOLDERS = ("red dog", "tabby", "green bird")


def write_own(place):
    """Photos in folders, and an own network."""
    (place / "net.py").write_text(NET)
    for index in range(9):
        write_photo(place / "photos" / FOLDERS[index % 3] / f"{index}.png", index)
    write_photo(place / "query.png", 99)


SCAN = "scan photos -m net.py:good --workers 0 -l 0.4 -l 2 --top 4 -o col"


@pytest.fixture
def call(call):
    """Run the command line; the collections' network is code, so it is named where no other one is."""

    def run(*words):
        named = () if "-m" in words or "export" in words else ("-m", "net.py:good")
        return call(*words, *named)

    return run


def page(ran):
    """The last line that a command printed, where its page is."""
    code, out, err = ran
    assert (code, err) == (0, "")
    return out.splitlines()[-1]


@pytest.fixture
def here(tmp_path, monkeypatch, call):
    """A folder with photos, an own network, and a collection of them, made from the command line."""
    monkeypatch.chdir(tmp_path)
    write_own(tmp_path)
    assert call(*SCAN.split()) == (0, "9 images in col, 9 labelled\n", "")
    return tmp_path


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The same, for what does not change it."""
    place = tmp_path_factory.mktemp("kept")
    write_own(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        scan("photos", opsin.load("net.py:good"), "col", layers=["0.4", "2"], workers=0)
    return place


def test_neighbours_from_the_command_line(here, call):
    assert page(call("neighbours", "col", "query.png", "photos/tabby/1.png", "-k", "4")) == (
        "neighbours/index.html"
    )
    found = opsin.Result.load("neighbours")
    assert [one["photo"] for one in found.facts["photos"]] == ["query.png", "1.png"]
    assert [len(one["neighbours"]) for one in found.facts["photos"]] == [4, 4]
    itself = found.facts["photos"][1]["neighbours"][0]
    assert itself["path"] == "tabby/1.png"
    assert itself["distance"] < 1e-6
    assert json.loads(Path("neighbours/facts.json").read_text()) == found.facts
    assert Path("neighbours/index.html").read_text().count("<img") == 10
    words = (
        "neighbours",
        "col",
        "photos/tabby",
        "--metric",
        "euclidean",
        "-l",
        "2",
        "--index",
        "-o",
        "n/two",
    )
    assert page(call(*words)) == "n/two/index.html"
    found = opsin.Result.load("n/two").facts
    assert (found["metric"], found["layer"], found["index"], len(found["photos"])) == (
        "euclidean",
        "2",
        True,
        3,
    )


def test_leave_one_out_from_the_command_line(here, call):
    assert page(call("neighbours", "col", "-k", "3", "-o", "loo")) == "loo/index.html"
    found = opsin.Result.load("loo")
    assert found.record.technique == "leave_one_out"
    assert (found.facts["images"], found.facts["k"], found.facts["layer"]) == (9, 3, "0.4")


def test_units_from_the_command_line(here, call):
    assert page(call("units", "col", "-u", "2", "-u", "0")) == "units/index.html"
    found = opsin.Result.load("units")
    assert [one["channel"] for one in found.facts["units"]] == [2, 0]
    assert found.facts["projection"] == "deconvnet"
    assert page(call("units", "col", "--projection", "none", "-l", "2", "-o", "all")) == "all/index.html"
    assert sum(shot.lead for shot in opsin.Result.load("all").shots) == 6
    assert page(call("units", "col", "-u", "2", "--inside", "-o", "inner")) == "inner/index.html"
    assert opsin.Result.load("inner").facts["inside"] is True


def test_mistakes_from_the_command_line(here, call):
    assert page(call("mistakes", "col", "--count", "2")) == "mistakes/index.html"
    found = opsin.Result.load("mistakes")
    assert found.facts["images"] == 9
    assert len(found.groups()) == 2
    assert "What is confused with what" in Path("mistakes/index.html").read_text()


def test_the_model_may_be_said(here, call):
    assert page(call("units", "col", "-m", "net.py:good", "-u", "0")) == "units/index.html"


def test_a_command_may_be_run_again(here, call):
    for _ in range(2):
        assert page(call("units", "col", "-u", "0")) == "units/index.html"


def test_neighbours_are_printed_with_rank_distance_label_and_path(here, call):
    code, out, err = call("neighbours", "col", "query.png", "photos/tabby/1.png", "-k", "4")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    facts = opsin.Result.load("neighbours").facts["photos"]
    for start, photo in ((0, facts[0]), (7, facts[1])):
        assert lines[start] == photo["photo"]
        assert lines[start + 1].split() == ["rank", "distance", "label", "seen", "as", "path"]
        for line, one in zip(lines[start + 2 : start + 6], photo["neighbours"], strict=True):
            rank, distance, *_ = line.split()
            assert int(rank) == one["rank"]
            assert float(distance) == pytest.approx(one["distance"], rel=1e-3)
            assert one["label"] in line
            assert line.endswith(one["path"])
    assert [one["rank"] for one in facts[0]["neighbours"]] == [1, 2, 3, 4]


def test_units_and_mistakes_print_their_table(here, call):
    _, out, _ = call("units", "col", "-u", "2", "-u", "0")
    title, heads, *lines = out.splitlines()
    assert title == "What 0.4 fires for"
    columns = ("channel", "at most", "mean", "deviation", "sparsity", "at the edge", "label", "path")
    assert heads.split() == " ".join(columns).split()
    for line, one in zip(lines, opsin.Result.load("units").facts["units"], strict=False):
        assert line.split()[0] == str(one["channel"])
        assert float(line.split()[1]) == pytest.approx(one["top"][0]["value"], rel=1e-3)
        assert line.endswith(one["top"][0]["path"])
    _, out, _ = call("mistakes", "col")
    found = opsin.Result.load("mistakes")
    title, heads, *lines = out.splitlines()
    assert title == f"{found.title}. What is confused with what:"
    assert heads.split() == ["label", "seen", "as", "images", "of", "the", "label's"]
    for line, row in zip(lines, found.tables[0].rows, strict=False):
        assert line.startswith(row[0])
        assert line.split()[-2:] == [str(row[2]), row[3]]
    _, out, _ = call("neighbours", "col", "-k", "3", "-o", "loo")
    assert out.splitlines()[0].endswith("of labels are their neighbours'. The labels that are found worst:")


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("neighbours col query.png -k 3", "neighbours"),
        ("neighbours col -k 3 -o loo", "loo"),
        ("units col -u 1", "units"),
        ("mistakes col", "mistakes"),
    ],
)
def test_json_on_stdout_is_the_facts_and_nothing_else(here, call, words, place):
    code, out, err = call(*words.split(), "--json")
    assert (code, err) == (0, "")
    assert out == (Path(place) / "facts.json").read_text("utf-8")
    assert json.loads(out)["layer"] == "0.4"
    assert (Path(place) / "index.html").is_file()


def test_a_scan_says_as_json_what_it_holds(here, call):
    Path("photos/broken.png").write_bytes(b"no")
    code, out, err = call(*SCAN.split(), "--json")
    assert code == 0
    why = "broken.png is not an image that Pillow can read"
    assert json.loads(out) == {"collection": "col", "images": 9, "labelled": 9, "unread": {"broken.png": why}}
    assert err == f"not read: {why}\n"


def test_one_image_is_called_one(here, call):
    write_photo(Path("single/tabby/a.png"), 1)
    words = ("scan", "single", "-m", "net.py:good", "--workers", "0", "-o", "c")
    assert call(*words)[1] == "1 image in c, 1 labelled\n"
    assert repr(opsin.Collection("c")).startswith("Collection('c', 1 image, ")
    call("units", "c", "-u", "0")
    assert "strongest in 1 image:" in opsin.Result.load("units").intro
    call("neighbours", "c", "query.png")
    assert opsin.Result.load("neighbours").intro.startswith("The nearest of 1 image by")
    call("mistakes", "c")
    assert opsin.Result.load("mistakes").title.endswith("% of 1 image")
    call("neighbours", "col", "-k", "1", "-o", "loo")
    assert "gets the label of its nearest other," in opsin.Result.load("loo").intro


def test_the_name_of_a_file_does_not_steer_the_terminal(here, call):
    write_photo(Path("photos/tabby/\x1b[31m[bold]red\n.png"), 77)
    assert call(*SCAN.split())[0] == 0
    _, out, _ = call("neighbours", "col", "query.png", "-k", "20")
    assert "\x1b" not in out
    assert r"tabby/\x1b[31m[bold]red\n.png" in out


def test_of_a_long_table_the_first_rows_are_printed(capsys):
    rows = tuple((index, "x" * 300) for index in range(60))
    print_tables([Table("Long", ("n", "text"), rows)], "out")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["Long", " n  text"]
    assert lines[51] == f"49  {'x' * 300}"
    assert lines[52] == "and 10 more, in out/facts.json"


def test_cautions_stand_on_the_page(here, call):
    Path("photos/tabby/1.png").unlink()
    call("units", "col", "-u", "0")
    call("neighbours", "col", "query.png", "--index")
    for place, said in (("units", "1.png cannot be read"), ("neighbours", "an approximate index")):
        top, _, _ = (Path(place) / "index.html").read_text().partition("<details")
        assert "Caution" in top
        assert said in top


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("neighbours nowhere query.png", "nowhere is not a collection"),
        ("neighbours photos query.png", "photos is not a collection: create one with `opsin scan"),
        ("neighbours col missing.png", "unknown file 'missing.png'"),
        ("neighbours col net.py", "not an image"),
        ("neighbours col query.png -l 0.5", "unknown layer of the collection '0.5'; nearest: 0.4"),
        ("neighbours col query.png -k 0", "-k"),
        ("neighbours col query.png --metric angle", "cosine"),
        ("neighbours col query.png -m net.py:other", "was scanned with net.py:good"),
        ("neighbours col query.png -m net.py:larger", "other preprocessing: size [32, 32], not [48, 48]"),
        ("neighbours col --index", "--index goes with photos"),
        ("neighbours col -l 0.5", "unknown layer of the collection '0.5'"),
        ("neighbours col query.png -o photos", "photos holds 'green bird/2.png', which Opsin did not write"),
        ("neighbours col query.png -o col", "which Opsin did not write"),
        ("units nowhere", "nowhere is not a collection"),
        ("units col -l 0.3", "unknown layer of the collection '0.3'; nearest: 0.4"),
        ("units col -u 6", "layer '0.4' has the channels 0 to 5, not 6"),
        ("units col -u x", "not a valid integer"),
        ("units col --projection guide", "guided"),
        ("units col -m net.py:other", "was scanned with net.py:good"),
        ("units col -m net.py:god", "nearest: good"),
        ("mistakes nowhere", "nowhere is not a collection"),
        ("mistakes col -l 9", "unknown layer of the collection '9'"),
        ("mistakes col -m net.py:other", "was scanned with net.py:good"),
        ("mistakes col --count -1", "--count"),
        ("units col -l 2 --inside", "every unit of layer '2' sees the whole picture"),
        ("export col out.xlsx", "must end in one of .parquet, .csv, .npz"),
        ("export nowhere out.csv", "nowhere is not a collection"),
        ("export col photos/none/out.csv", "unknown folder 'photos/none'"),
        ("explain col -t purple", "holds no image of 'purple'"),
        ("explain col -t 0.4:6", "has the channels 0 to 5, not 6"),
        ("explain query.png -m net.py:good --collection nowhere", "nowhere is not a collection"),
        (
            "explain query.png -m net.py:other --technique saliency --collection col",
            "was scanned with net.py:good",
        ),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_left(kept, call, monkeypatch, words, said):
    monkeypatch.chdir(kept)

    def files():
        return {
            path: path.read_bytes() if path.is_file() else None
            for path in kept.rglob("*")
            if "__pycache__" not in path.parts and "cache" not in path.parts
        }

    before = files()
    code, out, err = call(*words.split())
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
    assert files() == before


def test_mistakes_without_labels_are_told(here, call):
    write_photo(Path("bare/a.png"), 1)
    assert call("scan", "bare", "-m", "net.py:good", "--workers", "0", "-o", "c")[0] == 0
    code, _, err = call("mistakes", "c")
    assert (code, Path("mistakes").exists()) == (2, False)
    assert "c has no labels: scan with --labels" in err
    code, _, err = call("neighbours", "c")
    assert (code, Path("neighbours").exists()) == (2, False)
    assert "0 of 1 images have a label" in err


def test_a_collection_is_explained(here, call):
    words = ("explain", "col", "-t", "green bird", "--technique", "grad_cam", "--values", "-o", "out")
    assert call(*words) == (0, "out/index.html\n", "")
    photos = sorted(path.name for path in Path("out").iterdir() if path.is_dir())
    assert photos == ["green bird_2.png", "green bird_5.png", "green bird_8.png"]
    result = opsin.Result.load("out/green bird_5.png/grad_cam")
    assert result.record.arguments["target"] == "3 (green bird)"
    expected = opsin.read("photos/green bird/5.png", opsin.load("net.py:good"))
    assert np.array_equal(result.images, expected)


def test_a_collection_is_explained_where_a_channel_fires_most(here, call):
    words = ("explain", "col", "-t", "0.4:3", "--technique", "saliency", "-o", "out")
    assert call(*words)[0] == 0
    assert call("units", "col", "-u", "3", "--projection", "none", "-o", "u")[0] == 0
    tops = opsin.Result.load("u").facts["units"][0]["top"]
    assert len(tops) == 4
    photos = {path.name for path in Path("out").iterdir() if path.is_dir()}
    assert photos == {one["path"].replace("/", "_") for one in tops}


def test_photos_are_explained_beside_what_looks_alike(here, call):
    words = ("explain", "query.png", "--technique", "saliency", "--collection", "col")
    assert call(*words, "-o", "out") == (0, "out/index.html\n", "")
    call("neighbours", "col", "query.png", "-o", "n")
    page = Path("out/index.html").read_text()
    for one in opsin.Result.load("n").facts["photos"][0]["neighbours"][:3]:
        assert one["path"] in page


def test_facets_of_a_collection(here, call):
    words = ("facets", "col", "-t", "green bird", "--clusters", "2", "--steps", "2")
    code, out, err = call(*words, "-o", "out")
    assert (code, out, err) == (0, "out\n", "")
    found = opsin.Result.load("out")
    assert found.record.technique == "facets"
    own = [Path("photos/green bird") / f"{i}.png" for i in (2, 5, 8)]
    call("facets", *own, *words[2:], "-m", "net.py:good", "-o", "same")
    assert opsin.Result.load("same") == found


def test_of_many_photos_few_are_held_decoded(here, monkeypatch):
    monkeypatch.setattr(inputs, "HELD", 2)
    real, held = photos.decoded, []

    def decoded(data, name):
        found = real(data, name)
        held.append(weakref.ref(found))
        return found

    monkeypatch.setattr(photos, "decoded", decoded)
    for folder in ("photos/tabby", "col"):
        opened = inputs.open_photos((folder,))
        assert [photo().size for _, photo in opened] == [(60, 50)] * len(opened)
        assert sum(one() is not None for one in held) <= 2
    assert len(opened) == 9
