import csv
import io
import os
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

import nets
import opsin
import reference
from opsin.collection.ask.neighbours import leave_one_out, neighbours
from opsin.collection.ask.units import units
from opsin.collection.scan.scanning import scan
from opsin.collection.store import tables
from opsin.collection.store.about import About, LayerAbout, about_model
from opsin.collection.store.intake import writing
from opsin.collection.store.tally import Tally

NET = nets.plain()
MODEL = nets.model(NET)
SHOWN = {
    "beagle": "beagle",
    "tiger_cat": "tiger_cat",
    "own kind": "own kind",
    "3": "goldfish",
    "": "",
}  # by folder
FOLDERS = tuple(SHOWN)
PHOTOS = nets.images(3, seed=5).float()


def write_photo(path, seed):
    """Noise of the network's size, without loss; the path may be of bytes."""
    os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120 (a path of bytes)
    photo = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    with open(path, "wb") as file:  # noqa: PTH123
        Image.fromarray(photo).save(file, "PNG")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("neighbours")
    for index in range(12):
        write_photo(str(place / "photos" / FOLDERS[index % 5] / f"{index}.png"), index)
    return scan(place / "photos", MODEL, place / "collection", layers=["flat", "relu1"], workers=0)


def mean(photo, layer):
    """The features of a photo (3, h, w) in [0, 1], in float64."""
    a = reference.forward(NET, photo)
    return a["mean"] if layer == "flat" else a[layer].mean((1, 2))


def features(made, layer):
    """Of every photo by its path below the root."""
    root = Path(made.about.root)
    found = {}
    for path in root.rglob("*.png"):
        with Image.open(path) as photo:
            found[path.relative_to(root).as_posix()] = mean(np.array(photo).transpose(2, 0, 1) / 255, layer)
    return found


def distance(metric, a, b):
    if metric == "euclidean":
        return np.sqrt(((a - b) ** 2).sum())
    return 1 - a @ b / np.sqrt((a**2).sum() * (b**2).sum())


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("layer", ["flat", "relu1"])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_the_nearest_are_those_of_the_features(made, metric, layer, k):
    found = neighbours(MODEL, made, PHOTOS, k=k, layer=layer, metric=metric)
    every = features(made, layer)
    assert len(found.facts["photos"]) == 3
    for photo, facts in zip(PHOTOS.double().numpy(), found.facts["photos"], strict=True):
        own = mean(photo, layer)
        away = sorted((distance(metric, own, one), path) for path, one in every.items())[:k]
        assert [one["path"] for one in facts["neighbours"]] == [path for _, path in away]
        for one, (value, _) in zip(facts["neighbours"], away, strict=True):
            assert one["distance"] == pytest.approx(value, rel=1e-4, abs=1e-6)


def test_names_labels_classes_and_thumbnails_are_shown(made):
    found = neighbours(MODEL, made, PHOTOS, k=12, names=["one", "two/three", "one"])
    titles = ["one", "two_three", "one (2)"]
    assert [name for name, *_ in found.groups()] == titles
    assert [one["photo"] for one in found.facts["photos"]] == titles
    rows = {row.path: row for row in made.rows(range(12))}
    for (_, leads, others), facts, photo in zip(found.groups(), found.facts["photos"], PHOTOS, strict=True):
        (lead,) = leads
        assert lead.caption == "the photo"
        given = io.BytesIO()
        Image.fromarray((photo * 255).round().byte().permute(1, 2, 0).numpy()).save(given, "WEBP", quality=82)
        assert lead.data == given.getvalue()
        for shot, one in zip(others, facts["neighbours"], strict=True):
            row = rows[one["path"]]
            assert shot.data == row.thumbnail
            folder = one["path"].rpartition("/")[0]
            assert one["label"] == (folder or None)
            with Image.open(Path(made.about.root) / one["path"]) as file:
                scores = reference.forward(NET, np.array(file).transpose(2, 0, 1) / 255)["output"]
            likely = np.exp(scores) / np.exp(scores).sum()
            name = nets.LABELS[scores.argmax()]
            assert one["class"] == name
            label, seen = SHOWN[folder], name.split(",")[0]
            said = {"": f"seen as {seen}", seen: seen}.get(label, f"labelled {label}; seen as {seen}")
            assert shot.caption == f"{one['distance']:.3f}  {one['path']}  {said}, {likely.max():.0%}"
    assert found.title == "Nearest to 3 photos"
    assert neighbours(MODEL, made, PHOTOS[:1], names=["mine"]).title == "Nearest to mine"
    assert found.facts | {"photos": []} == {
        "k": 12,
        "layer": "flat",
        "metric": "cosine",
        "index": False,
        "photos": [],
    }
    assert found.record.technique == "neighbours"
    assert found.record.model["sha256"] == MODEL.weigh().fingerprint
    assert found.record.notes == ()


def test_an_index_is_told(made):
    exact, found = (neighbours(MODEL, made, PHOTOS, index=index) for index in (False, True))
    assert "approximate index" in found.record.notes[0]
    assert [one["path"] for one in found.facts["photos"][0]["neighbours"]] == [
        one["path"] for one in exact.facts["photos"][0]["neighbours"]
    ]


# --- hostile names

HOSTILE = (
    b"<script>alert('1')<|script>.png",
    b'quote" onerror="alert(1)\' & &amp; .png',
    b"line\nbreak\ttab.png",
    "snö ☃ 猫 𝄞.png".encode(),
    b"{{ 7 * 7 }}{% raw %}.png",
    b"back\\slash%20.png",
)


class Figures(HTMLParser):
    """What a page shows: the captions, the texts beside the pictures, and every tag."""

    def __init__(self):
        super().__init__()
        self.captions, self.alts, self.tags, self.inside = [], [], Counter(), False

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        assert not {name for name, _ in attrs if name.startswith("on")}
        if tag == "img":
            self.alts.append(dict(attrs)["alt"])
        if tag == "figcaption":
            self.inside = True
            self.captions.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "figcaption"

    def handle_data(self, data):
        if self.inside:
            self.captions[-1] += data


@pytest.fixture
def hostile(tmp_path):
    """Scans photos of such names, each in a folder of its name, which is its label."""

    def run(names):
        for index, name in enumerate(names):
            write_photo(os.fsencode(tmp_path / "photos") + b"/" + name[:-4] + b"/" + name, index)
        return scan(tmp_path / "photos", MODEL, tmp_path / "collection", workers=0)

    return run


def test_every_name_is_escaped_on_the_page(hostile, tmp_path):
    made = hostile(HOSTILE)
    found = neighbours(MODEL, made, PHOTOS, names=[name.decode() for name in HOSTILE[:3]])
    found.save(tmp_path / "out")
    seen = Figures()
    seen.feed((tmp_path / "out/index.html").read_text("utf-8"))
    captions = [shot.caption for shot in found.shots]
    assert seen.captions == seen.alts == captions
    for name in HOSTILE:
        assert sum(os.fsdecode(name) in caption for caption in captions) == 3
    assert seen.tags["script"] == 0
    assert seen.tags["img"] == len(found.shots) == 21
    assert opsin.Result.load(tmp_path / "out") == found


def test_names_that_are_no_utf8_are_saved(hostile, tmp_path):
    made = hostile([b"caf\xe9.png", b"\xff\xfe.png"])
    found = neighbours(MODEL, made, PHOTOS)
    told = {one["path"] for one in found.facts["photos"][0]["neighbours"]}
    assert told == {r"caf\udce9/caf\udce9.png", r"\udcff\udcfe/\udcff\udcfe.png"}
    assert opsin.Result.load(found.save(tmp_path / "out")) == found
    assert r"caf\udce9.png" in (tmp_path / "out/index.html").read_text("utf-8")
    os.unlink(os.fsencode(tmp_path / "photos") + b"/caf\xe9/caf\xe9.png")  # noqa: PTH108 (a path of bytes)
    for found in (units(MODEL, made), leave_one_out(made, k=1)):
        assert opsin.Result.load(found.save(tmp_path / found.record.technique)) == found
    assert r"caf\udce9.png cannot be read" in (tmp_path / "units/index.html").read_text("utf-8")


# --- errors


def test_another_network_or_preprocessing_is_told(made):
    with pytest.raises(opsin.InputError, match=r"was scanned with Plain .* not with other"):
        neighbours(nets.model(nets.plain(seed=1), name="other"), made, PHOTOS)
    for settings, said in (
        ({"mean": (0.5, 0.5, 0.5)}, "mean"),
        ({"crop": 0.9}, "crop"),
        ({"size": 32}, "size"),
        ({"interpolation": "bilinear"}, "interpolation bicubic, not bilinear"),
        ({"squash": True}, "squash False, not True"),
    ):
        with pytest.raises(opsin.InputError, match=f"was scanned with other preprocessing: {said}"):
            neighbours(nets.model(NET, **settings), made, PHOTOS)


def test_what_cannot_be_is_told(made):
    with pytest.raises(opsin.InputError, match="unknown layer of the collection 'relu2'"):
        neighbours(MODEL, made, PHOTOS, layer="relu2")
    with pytest.raises(opsin.InputError, match="unknown layer of the collection 'relu2'"):
        leave_one_out(made, layer="relu2")
    for k in (0, -1):
        with pytest.raises(opsin.InputError, match=f"k must be at least 1, not {k}"):
            neighbours(MODEL, made, PHOTOS, k=k)
        with pytest.raises(opsin.InputError, match=f"k must be at least 1, not {k}"):
            leave_one_out(made, k=k)
    with pytest.raises(opsin.InputError, match="2 names for 3 photos"):
        neighbours(MODEL, made, PHOTOS, names=["a", "b"])
    with pytest.raises(opsin.InputError, match=r"images must lie in \[0, 1\]"):
        neighbours(MODEL, made, 2 * PHOTOS)


# --- leave one out


def labelled(folder, values, labels):
    """A collection of these features and labels alone."""
    width = values.shape[1]
    about = About("/", about_model(MODEL), None, (LayerAbout("own", width, (1, 1)),), 1, {})
    n = len(values)
    given = {name: [1] * n for name in ("width", "height", "version", "chunk")}
    given |= {name: [[]] * n for name in ("classes", "probabilities")}
    given |= {"id": [7 * i + 3 for i in range(n)], "path": [b"%d" % i for i in range(n)], "sha256": [""] * n}
    given |= {"thumbnail": [b""] * n, "features_0": values.float().tolist()}
    with writing(folder, about, MODEL) as made:
        schema = tables.schemas(about)[tables.IMAGES]
        table = pa.table([pa.array(given[f.name], f.type) for f in schema], schema=schema)
        made.append(table, [Tally.empty(width, 1)], 1)
        pairs = [(id, label) for id, label in zip(given["id"], labels, strict=True) if label is not None]
        batch = [pa.array(column) for column in zip(*pairs, strict=True)]
        made.write_labels(iter([pa.record_batch(batch, schema=tables.LABEL_SCHEMA)] if pairs else []))
    return made


def slow_accuracy(values, labels, k, metric):
    """Labels found right by the k nearest others, counted one by one."""
    values = values.float().double().numpy()
    right, of = Counter(), Counter()
    for i, own in enumerate(labels):
        if own is None:
            continue
        others = [j for j, label in enumerate(labels) if label is not None and j != i]
        near = sorted(others, key=lambda j: (distance(metric, values[i], values[j]), j))[:k]
        votes = Counter(labels[j] for j in near)
        most = max(votes.values())
        chosen = next(labels[j] for j in near if votes[labels[j]] == most)  # of equals the nearest
        of[own] += 1
        right[own] += chosen == own
    return right, of


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 2, 4, 7, 200])
@pytest.mark.parametrize("missing", [0, 0.5, 0.95])
def test_leave_one_out_is_a_slow_vote_of_the_nearest(tmp_path, metric, k, missing):
    g = np.random.default_rng(3)
    kinds = g.integers(0, 4, 100)
    values = torch.tensor(g.normal(size=(4, 5))[kinds] + 0.8 * g.normal(size=(100, 5)))
    labels = [None if g.random() < missing else f"kind {kind}" for kind in kinds]
    found = leave_one_out(labelled(tmp_path / "c", values, labels), k=k, metric=metric)
    right, of = slow_accuracy(values, labels, k, metric)
    assert found.facts == {
        "k": k,
        "layer": "own",
        "metric": metric,
        "images": of.total(),
        "accuracy": pytest.approx(right.total() / of.total()),
    }
    assert found.title.startswith(f"{right.total() / of.total():.1%} of labels")
    (table,) = found.tables
    assert {row[0]: row[1:] for row in table.rows} == {
        label: (of[label], f"{right[label] / of[label]:.0%}") for label in of
    }
    shares = [int(row[2][:-1]) for row in table.rows]
    assert shares == sorted(shares)
    assert right.total() > 0 or missing > 0.9 or k == 200


def test_of_labels_with_equal_votes_the_nearest_counts(tmp_path):
    values = torch.tensor([[0.0], [1.0], [-2.0], [3.0], [-4.0], [90.0]])
    made = labelled(tmp_path / "c", values, ["a", "b", "a", "a", "b", None])
    # of 0: 1 (b), -2 (a), 3 (a), -4 (b): two of each, and b is nearer
    right, of = slow_accuracy(values, ["a", "b", "a", "a", "b", None], 4, "euclidean")
    assert (right["a"], of["a"], right["b"], of["b"]) == (1, 3, 0, 2)
    assert leave_one_out(made, k=4, metric="euclidean").facts["accuracy"] == 1 / 5


def test_images_with_equal_features_do_not_take_the_places_of_others(tmp_path):
    values = torch.zeros(30, 3)
    labels = ["a" if i < 20 else "b" for i in range(30)]
    found = leave_one_out(labelled(tmp_path / "c", values, labels), k=3, metric="euclidean")
    assert found.facts["accuracy"] == 20 / 30


def test_features_that_are_no_numbers_are_found_by_none(tmp_path):
    values = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [torch.nan, 1.0]])
    made = labelled(tmp_path / "c", values, ["a", "a", "b", "b", "b"])
    assert leave_one_out(made, k=1).facts["accuracy"] == 4 / 5
    assert leave_one_out(made, k=10).facts["images"] == 5


def test_a_memory_that_does_not_hold_the_features_is_noted(tmp_path, monkeypatch):
    values = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    made = labelled(tmp_path / "c", values, ["a", "a", "b", "b"])
    assert leave_one_out(made, k=1).record.notes == ()
    monkeypatch.setattr("opsin.collection.ask.search._free_memory", lambda: 0)
    found = leave_one_out(made, k=1)
    assert found.facts["accuracy"] == 1
    assert "approximate" in found.record.notes[0]


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_labels_are_told(tmp_path, count):
    made = labelled(tmp_path / "c", torch.rand(4, 3), (["a"] * count + [None] * 4)[:4])
    with pytest.raises(
        opsin.InputError, match=rf"{count} of 4 images have a label in .*: see `opsin scan --labels`"
    ):
        leave_one_out(made)


def test_leave_one_out_of_a_scan_with_labels_of_its_own(made, tmp_path):
    root = Path(made.about.root)
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    given = {path: "even" if int(Path(path).stem) % 2 == 0 else "odd" for path in paths[:9]}
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *given.items()])
    own = scan(root, MODEL, tmp_path / "c", layers=["flat"], labels=tmp_path / "labels.csv", workers=0)
    every = features(own, "flat")
    values = torch.tensor(np.stack([every[path] for path in paths]))
    right, of = slow_accuracy(values, [given.get(path) for path in paths], 3, "cosine")
    found = leave_one_out(own, k=3)
    assert found.facts["accuracy"] == right.total() / of.total() == right.total() / 9
    assert opsin.Result.load(found.save(tmp_path / "out")) == found
    assert "The labels that are found worst" in (tmp_path / "out/index.html").read_text()
