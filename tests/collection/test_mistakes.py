import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import nn

import nets
import opsin
import reference
from opsin.collection.ask.mistakes import mistakes
from opsin.collection.scan.scanning import scan

NET = nets.plain()
LABELS = (*nets.LABELS[:2], "hot dog, hotdog, red hot", *nets.LABELS[3:])
MODEL = nets.model(NET, labels=LABELS)
COUNT = 40


def write_photos(folder, names):
    """Noise of several brightnesses, so that several classes are seen; without loss."""
    for index, name in enumerate(names):
        rng = np.random.default_rng(index)
        tint = rng.random(3) * rng.choice([0.2, 1.0])
        photo = (rng.integers(0, 256, (16, 16, 3)) * tint).astype(np.uint8)
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(path)


def scanned(place, labels, model=MODEL, **settings):
    """A collection of photos with these labels in a CSV; `None` for none."""
    names = [f"{index:02d}.png" for index in range(len(labels))]
    write_photos(place / "photos", names)
    with (place / "labels.csv").open("w", newline="") as file:
        pairs = [(name, label) for name, label in zip(names, labels, strict=True) if label is not None]
        csv.writer(file).writerows([("path", "label"), *pairs])
    return scan(
        place / "photos", model, place / "collection", labels=place / "labels.csv", workers=0, **settings
    )


def scores(made):
    """Of every photo by its path the probabilities, in float64."""
    root = Path(made.about.root)
    found = {}
    for path in sorted(root.rglob("*.png")):
        with Image.open(path) as photo:
            output = reference.forward(NET, np.array(photo).transpose(2, 0, 1) / 255)["output"]
        found[path.relative_to(root).as_posix()] = np.exp(output) / np.exp(output).sum()
    return found


WRITTEN = {  # every way to write a class
    0: ("0", "tabby, tabby cat", "tabby", "Tabby Cat", "tabby_cat"),
    1: ("1", "tiger cat", "tiger_cat", "TIGER_CAT"),
    2: ("2", "hot dog, hotdog, red hot", "hotdog", "red_hot", "hot_dog", " hot dog "),
    3: ("3", "goldfish", "Carassius auratus", "carassius_auratus"),
    4: ("4", "tiger shark", "Galeocerdo cuvieri", "tiger_shark, galeocerdo_cuvieri"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, COUNT)
    labels = [str(rng.choice(WRITTEN[kind])) for kind in truth]
    labels[7], labels[11], labels[13] = "dragon", None, "tiger"  # the last fits two
    return scanned(tmp_path_factory.mktemp("mistakes"), labels), truth


def test_accuracy_and_confusions_are_those_of_a_slow_count(made):
    made, truth = made
    found = mistakes(MODEL, made, count=3)
    top1 = right = total = 0
    wrong, matrix = Counter(), Counter()
    for index, probabilities in enumerate(scores(made).values()):
        if index in (7, 11, 13):
            continue
        best = int(probabilities.argmax())
        total, top1 = total + 1, top1 + (best == truth[index])
        right += truth[index] in np.argsort(-probabilities)[:5]
        matrix[truth[index], best] += 1
        if best != truth[index]:
            wrong[LABELS[truth[index]], LABELS[best]] += 1
    assert 0 < top1 < total == COUNT - 3
    assert len({seen for _, seen in matrix}) > 1
    assert found.facts["images"] == total
    assert found.facts["top-1"] == top1 / total
    assert found.facts["top-5"] == right / total == 1
    told = {(one["label"], one["seen as"]): one["images"] for one in found.facts["confusions"]}
    assert told == wrong
    counts = [one["images"] for one in found.facts["confusions"]]
    assert counts == sorted(counts, reverse=True)
    assert found.title == f"Right on {top1 / total:.1%} of {total} images"
    pairs, table = found.tables
    of = Counter(LABELS[truth[i]] for i in range(COUNT) if i not in (7, 11, 13))
    assert {row[:2]: row[2:] for row in pairs.rows} == {
        (a, b): (n, f"{n / of[a]:.0%}") for (a, b), n in wrong.items()
    }
    assert table.columns[1:] == tuple(row[0] for row in table.rows)
    for row in table.rows:
        for seen, n in zip(table.columns[1:], row[1:], strict=True):
            assert n == matrix[LABELS.index(row[0]), LABELS.index(seen)]


def test_labels_that_are_no_class_are_told(made):
    notes = mistakes(MODEL, made[0], count=0).record.notes
    assert notes == ("Caution: ignored labels that name no class: 'dragon', 'tiger'",)


def test_top_five_of_more_classes(tmp_path):
    wide = nets.Plain()
    wide.fc = nn.Linear(6, 12)
    model = nets.model(nets.seeded(wide), labels=None)
    made = scanned(tmp_path, [str(i % 12) for i in range(24)], model)
    photos = opsin.read(sorted((tmp_path / "photos").iterdir()), model)
    outputs = model.run(photos)["output"].double().numpy()
    ranks = [(row > row[i % 12]).sum() for i, row in enumerate(outputs)]
    found = mistakes(model, made, count=0).facts
    assert found["top-1"] == sum(rank < 1 for rank in ranks) / 24
    assert found["top-5"] == sum(rank < 5 for rank in ranks) / 24
    assert 0 < found["top-5"] < 1
    assert {one["label"] for one in found["confusions"]} <= {f"class {i}" for i in range(12)}


def test_a_table_of_many_classes_is_not_drawn(tmp_path):
    wide = nets.Plain()
    wide.fc = nn.Linear(6, 40)
    model = nets.model(nets.seeded(wide), labels=None)
    found = mistakes(model, scanned(tmp_path, [str(i) for i in range(40)], model), count=0)
    assert [table.title for table in found.tables] == ["What is confused with what"]
    assert len(found.tables[0].rows) == 25
    assert len(found.facts["confusions"]) > 25


def wrong_ones(made, truth):
    """The errors, the most confident first."""
    found = []
    for index, (path, probabilities) in enumerate(scores(made).items()):
        best = int(probabilities.argmax())
        if index not in (7, 11, 13) and best != truth[index]:
            found.append((probabilities[best], path, int(truth[index]), best))
    return sorted(found, reverse=True)


def test_the_most_confident_errors_come_first_with_their_maps(made, exact):
    made, truth = made
    found, expected = mistakes(MODEL, made, count=6), wrong_ones(made, truth)[:6]
    groups = found.groups()
    assert len(groups) == 6
    assert len({truth for _, _, truth, _ in expected}) > 1
    for (name, leads, others), (chance, path, label, seen) in zip(groups, expected, strict=True):
        assert name.startswith(f"{path}: ")
        assert LABELS[label].split(",")[0] in name
        photo = opsin.read(Path(made.about.root) / path, MODEL)
        assert len(leads) == 2
        for shot, target in zip(leads, (label, seen), strict=True):
            ((_, picture),) = opsin.grad_cam(MODEL, photo, target=target).pictures()
            np.testing.assert_array_equal(np.array(shot.picture), np.array(picture))
            assert LABELS[target].split(",")[0] in shot.caption
        assert leads[1].caption.endswith(f"{chance:.0%}")
        assert "%" not in leads[0].caption
        assert len(others) == 4


def test_the_nearest_images_are_shown(made):
    made, truth = made
    found = mistakes(MODEL, made, count=2)
    order = sorted(scores(made))
    root = Path(made.about.root)
    means = []
    for path in order:
        with Image.open(root / path) as photo:
            means.append(reference.forward(NET, np.array(photo).transpose(2, 0, 1) / 255)["mean"])
    rows = {row.path: row for row in made.rows(range(COUNT))}
    for (_, _, others), (_, path, *_) in zip(found.groups(), wrong_ones(made, truth)[:2], strict=True):
        own = means[order.index(path)]
        away = [1 - own @ x / np.linalg.norm(own) / np.linalg.norm(x) for x in means]
        near = [order[i] for i in np.argsort(away) if order[i] != path][:4]
        assert [shot.data for shot in others] == [rows[one].thumbnail for one in near]
        assert all(shot.caption.startswith("nearby: ") for shot in others)


def test_so_many_errors_as_asked_for(made):
    made, truth = made
    total = len(wrong_ones(made, truth))
    assert len(mistakes(MODEL, made, count=0).groups()) == 0
    assert len(mistakes(MODEL, made, count=1000).groups()) == total
    assert len(mistakes(MODEL, made).groups()) == min(12, total)


def test_fewer_errors_than_none_are_refused(made):
    with pytest.raises(opsin.InputError, match="count must be at least 0, not -1"):
        mistakes(MODEL, made[0], count=-1)


def test_a_photo_that_is_gone_is_told_and_the_others_are_shown(tmp_path):
    made = scanned(tmp_path, [str(i % 5) for i in range(10)])
    before = mistakes(MODEL, made)
    path = before.groups()[0][0].split(":")[0]
    (tmp_path / "photos" / path).unlink()
    found = mistakes(MODEL, made)
    assert found.facts == before.facts
    assert [name for name, *_ in found.groups()] == [name for name, *_ in before.groups()][1:]
    assert any(path in note for note in found.record.notes)


def test_folders_give_the_labels(tmp_path):
    folders = ("tiger_cat", "hot_dog", "inner/tabby_cat", "3", ".")
    write_photos(tmp_path / "photos", [f"{folder}/{i}.png" for folder in folders for i in range(3)])
    made = scan(tmp_path / "photos", MODEL, tmp_path / "c", workers=0)
    found = mistakes(MODEL, made, count=0).facts
    truth = {"tiger_cat": 1, "hot_dog": 2, "inner/tabby_cat": 0, "3": 3}
    every = {path: p.argmax() for path, p in scores(made).items() if path[:-6] in truth}
    assert found["images"] == len(every) == 12
    assert found["top-1"] == sum(truth[path[:-6]] == seen for path, seen in every.items()) / 12


def test_wordnet_numbers_are_classes_of_imagenet(tmp_path):
    model = opsin.load()
    for folder, photo in {
        "n02124075": data.chelsea(),
        "n07920052": data.coffee(),
        "tabby": data.cat(),
    }.items():
        (tmp_path / "photos" / folder).mkdir(parents=True)
        Image.fromarray(photo).resize((256, 224)).save(tmp_path / "photos" / folder / "photo.png")
    made = scan(tmp_path / "photos", model, tmp_path / "c", workers=0)
    # the cats are an Egyptian cat (285) and a tabby (281), the coffee an espresso (967)
    truth = {"n02124075/photo.png": 285, "n07920052/photo.png": 967, "tabby/photo.png": 281}
    rows = made.rows(range(3))
    found = mistakes(model, made, count=1)
    assert found.facts["images"] == 3
    assert found.facts["top-1"] == sum(row.classes[0] == truth[row.path] for row in rows) / 3
    assert found.facts["top-5"] == sum(truth[row.path] in row.classes for row in rows) / 3
    assert found.facts["top-5"] > 0
    assert made.named("n07920052") == "espresso"
    assert made.named("tabby") == "tabby"
    assert [row.path for row in made.showing("espresso")] == ["n07920052/photo.png"]
    assert [row.path for row in made.showing("tabby")] == ["tabby/photo.png"]


def test_labels_beyond_the_classes_take_no_part(tmp_path):
    model = nets.model(NET, labels=None)
    made = scanned(tmp_path, ["0", "1", "5", "99", "2", "dragon"], model)
    found = mistakes(model, made)
    assert found.facts["images"] == 3
    assert found.record.notes == ("Caution: ignored labels that name no class: '5', '99', 'dragon'",)


def test_without_labels_there_are_no_mistakes(tmp_path):
    write_photos(tmp_path / "photos", ["a.png", "b.png"])
    made = scan(tmp_path / "photos", MODEL, tmp_path / "c", workers=0)
    with pytest.raises(opsin.InputError, match="has no labels: scan with --labels"):
        mistakes(MODEL, made)
    other = scanned(tmp_path / "other", ["dragon", "unicorn", "5"])
    with pytest.raises(
        opsin.InputError, match="none of the labels is a class of Plain: '5', 'dragon', 'unicorn'"
    ):
        mistakes(MODEL, other)


def test_a_network_without_classes_is_told(tmp_path):
    class Maps(nets.Plain):
        def forward(self, x):
            return self.relu2(self.conv2(self.pool(self.relu1(self.conv1(x)))))

    model = nets.model(nets.seeded(Maps()), labels=None)
    made = scanned(tmp_path, ["0", "1"], model, layers=["relu2"])
    with pytest.raises(opsin.InputError, match="has both a label and a class"):
        mistakes(model, made)


def test_another_network_is_told(made):
    with pytest.raises(opsin.InputError, match=r"was scanned with Plain .* not with other"):
        mistakes(nets.model(nets.plain(seed=1), labels=LABELS, name="other"), made[0])
    with pytest.raises(opsin.InputError, match="unknown layer of the collection 'conv1'"):
        mistakes(MODEL, made[0], layer="conv1")


def test_mistakes_are_saved_and_loaded(made, tmp_path):
    found = mistakes(MODEL, made[0], count=2)
    assert opsin.Result.load(found.save(tmp_path / "out")) == found
    page = (tmp_path / "out/index.html").read_text()
    assert "ignored labels that name no class: &#39;dragon&#39;" in page
    assert "What is confused with what" in page
    assert page.count("<img") == len(found.shots) == 12


# --- what a collection shows


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    place = tmp_path_factory.mktemp("showing")
    labels = [("tiger_cat", "1", "own kind", None)[i % 4] for i in range(COUNT)]
    return scanned(place, labels, layers=["relu2", "flat"], top=4), labels


def paths(rows):
    return [row.path for row in rows]


@pytest.mark.parametrize("target", ["tiger cat", "1", "TIGER CAT"])
def test_a_class_shows_the_images_with_its_label_and_of_those_without_what_is_seen_as_it(shown, target):
    made, labels = shown
    every = list(scores(made).items())
    expected = [
        path
        for (path, probabilities), label in zip(every, labels, strict=True)
        if label in ("tiger_cat", "1") or (label is None and probabilities.argmax() == 1)
    ]
    assert sorted(paths(made.showing(target))) == expected
    assert len(expected) > COUNT / 2


@pytest.mark.parametrize(("layer", "channel"), [("relu2", 0), ("relu2", 5), ("flat", 3)])
def test_a_channel_shows_where_it_fires_most(shown, layer, channel):
    made, _ = shown
    root = Path(made.about.root)
    peaks = []
    for path in scores(made):
        with Image.open(root / path) as photo:
            a = reference.forward(NET, np.array(photo).transpose(2, 0, 1) / 255)
        peaks.append((a["relu2" if layer == "relu2" else "mean"][channel].max(), path))
    assert paths(made.showing(f"{layer}:{channel}")) == [path for _, path in sorted(peaks, reverse=True)[:4]]


def test_without_a_target_all_are_shown(shown):
    assert sorted(paths(shown[0].showing())) == sorted(scores(shown[0]))


def test_what_shows_nothing_is_told(shown):
    made, _ = shown
    with pytest.raises(opsin.InputError, match="layer 'relu2' has the channels 0 to 5, not 6"):
        made.showing("relu2:6")
    for target in ("dragon", "99"):
        with pytest.raises(opsin.InputError, match=f"holds no image of '{target}'"):
            made.showing(target)
    with pytest.raises(opsin.InputError, match="unknown layer of the collection 'conv1'"):
        made.showing("conv1:1")
    with pytest.raises(opsin.InputError, match="'tiger' is ambiguous"):
        made.showing("tiger")


def test_a_photo_of_a_collection_is_what_the_network_saw(shown):
    made, _ = shown
    for row in made.rows([0, 5]):
        expected = opsin.read(Path(made.about.root) / row.path, MODEL)[0]
        assert torch.equal(made.photo(row, MODEL), expected)
