"""A scan of a folder: what it keeps, how it goes on, and what goes wrong."""

import csv
import errno
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lance
import numpy as np
import pytest
import torch
from PIL import Image

import nets
import opsin
from opsin.collection.files import labels
from opsin.collection.files.source import Entry
from opsin.collection.scan import chunks, local_engine, scanning
from opsin.collection.store import tables
from opsin.collection.store.tally import NONE

MODEL = nets.model(nets.plain())


def draw(path, seed, h=20, w=26):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)).save(path)


def photos(root, n=21, first=0):
    """Photos in three folders and at the top."""
    for i in range(first, first + n):
        draw(root / ("", "cats", "dogs", "dogs/big")[i % 4] / f"{i:03}.png", i, 18 + i % 7, 30 - i % 5)
    return root


@pytest.fixture
def root(tmp_path):
    return photos(tmp_path / "photos")


def scan(root, place, model=MODEL, **settings):
    return opsin.scan(root, model, place, **{"workers": 0, **settings})


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of eight images."""
    monkeypatch.setattr(scanning, "LEAST_CHUNK", 8)
    monkeypatch.setattr(scanning, "MOST_CHUNK", 8)


def forwards(monkeypatch):
    """How many images of a scan the network is given, counted batch by batch."""
    counted = []
    real = chunks.Growing.take

    def take(self, group):
        counted.append(len(group))
        return real(self, group)

    monkeypatch.setattr(chunks.Growing, "take", take)
    return counted


def rows(made):
    return sorted(made.rows(range(len(made))), key=lambda row: row.id)


def features(made, layer=None):
    """By id."""
    return made.features(layer)[made.ids().argsort()]


def same(one, other):
    """Two collections of the same images."""
    ours, theirs = rows(one), rows(other)
    assert [r.path for r in ours] == [r.path for r in theirs]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.probabilities, b.probabilities, rtol=1e-6)
        assert {**vars(a), "probabilities": ()} == {**vars(b), "probabilities": ()}
    for layer in (about.name for about in one.about.layers):
        np.testing.assert_allclose(features(one, layer), features(other, layer), rtol=1e-6, atol=1e-7)
        ours, theirs = one.tally(layer), other.tally(layer)
        assert torch.equal(ours.ids, theirs.ids)
        assert torch.equal(ours.places, theirs.places)
        assert (ours.count, ours.images) == (theirs.count, theirs.images)
        for name in ("values", "sums", "squares", "active"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-6, atol=1e-6)


def whole(made):
    """A collection is in itself what it says: each image once, each in its tally."""
    assert len(set(made.ids().tolist())) == len(made)
    for about in made.about.layers:
        tally = made.tally(about.name)
        assert tally.images == len(made)
        assert set(tally.ids.flatten().tolist()) - {NONE} <= set(made.ids().tolist())


# --- what is kept


def reference_tally(maps, ids, k):
    """(values, ids, places) a channel, by sorting all of it; NumPy in float64."""
    found = []
    for channel in maps.numpy().transpose(1, 0, 2, 3):
        flat = channel.reshape(len(channel), -1)
        peaks = sorted(
            (-np.float32(one.max()), id, int(one.argmax())) for one, id in zip(flat, ids, strict=True)
        )
        found.append([(-value, id, place) for value, id, place in peaks[:k]])
    return found


@pytest.mark.parametrize("layers", [None, ("conv1", "relu2", "mean", "fc")], ids=["default", "several"])
def test_rows_and_tallies_are_what_reading_and_running_give(root, tmp_path, layers):
    made = scan(root, tmp_path / "out", layers=layers, top=4)
    names = layers or ("flat",)
    assert [about.name for about in made.about.layers] == list(names)
    paths = {str(p.relative_to(root)): p for p in root.rglob("*.png")}
    found = rows(made)
    assert {row.path for row in found} == paths.keys()
    images = torch.cat([opsin.read(paths[row.path], MODEL) for row in found])
    run = MODEL.run(images, (*names, "output"))
    probabilities = run["output"].double().softmax(1).numpy()
    for row, seen in zip(found, probabilities, strict=True):
        data = paths[row.path].read_bytes()
        assert row.sha256 == hashlib.sha256(data).hexdigest()
        with Image.open(io.BytesIO(data)) as photo, Image.open(io.BytesIO(row.thumbnail)) as small:
            assert (row.width, row.height) == photo.size == small.size
            assert small.mode == "RGB"
        assert row.classes == tuple(seen.argsort()[::-1])
        np.testing.assert_allclose(row.probabilities, np.sort(seen)[::-1], rtol=1e-5)
        assert row.label == (Path(row.path).parent.name or None)
    for name, about in zip(names, made.about.layers, strict=True):
        maps = run.channels(name).double()
        maps = maps[:, :, None, None] if maps.ndim == 2 else maps
        assert about.extent == tuple(maps.shape[2:])
        assert about.channels == maps.shape[1]
        np.testing.assert_allclose(features(made, name), maps.mean((2, 3)), rtol=1e-4, atol=1e-5)
        tally = made.tally(name)
        for c, expected in enumerate(reference_tally(maps, [row.id for row in found], 4)):
            assert tally.ids[c].tolist() == [id for _, id, _ in expected]
            assert tally.places[c].tolist() == [place for _, _, place in expected]
            np.testing.assert_allclose(
                tally.values[c], [value for value, _, _ in expected], rtol=1e-5, atol=1e-6
            )
        np.testing.assert_allclose(tally.mean, maps.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(tally.deviation, maps.std((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(tally.sparsity, (maps <= 0).double().mean((0, 2, 3)), atol=1e-9)
    whole(made)


@pytest.mark.parametrize(
    ("net", "layer"),
    [(nets.plain, "flat"), (nets.normed, "relu2"), (nets.channels_last, "relu"), (nets.two_heads, "flat")],
)
def test_the_default_layer_is_the_classifier_s_input(root, tmp_path, net, layer):
    model = nets.model(net(inplace=False) if net is nets.normed else net())
    made = scan(root, tmp_path / "out", model)
    head = model.network.fc
    images = torch.cat([opsin.read(root / row.path, model) for row in rows(made)])
    expected = model.run(images)["output"]
    seen = torch.from_numpy(features(made)).double() @ head.weight.double().T + head.bias.double()
    torch.testing.assert_close(seen, expected.double(), rtol=1e-4, atol=1e-4)
    assert made.about.layers[0].name == layer


@pytest.mark.parametrize("net", [nets.vit, nets.viewing])
def test_where_no_layer_is_read_after_pooling_another_one_is_taken(root, tmp_path, net):
    model = nets.model(net())
    made = scan(root, tmp_path / "out", model)
    images = torch.cat([opsin.read(root / row.path, model) for row in rows(made)])
    layer = made.about.layers[0].name
    np.testing.assert_allclose(
        features(made), model.run(images, (layer,)).pooled(layer), rtol=1e-4, atol=1e-5
    )
    whole(made)


def test_an_image_gives_the_same_numbers_whatever_it_came_with(root, tmp_path):
    every = scan(root, tmp_path / "every", layers=["conv2", "flat"])
    (tmp_path / "one").mkdir()
    shutil.copy(root / "cats/017.png", tmp_path / "one")
    (alone,) = rows(one := scan(tmp_path / "one", tmp_path / "alone", layers=["conv2", "flat"]))
    place = [row.sha256 for row in rows(every)].index(alone.sha256)
    assert rows(every)[place].probabilities == alone.probabilities
    for layer in ("conv2", "flat"):
        assert np.array_equal(features(every, layer)[place], features(one, layer)[0])


def test_the_network_is_given_whole_batches_only(root, tmp_path, monkeypatch):
    def run(self, images, layers=("output",), **settings):
        if "output" in layers:
            sizes.append(len(images))
        return real(self, images, layers, **settings)

    sizes, real = [], opsin.Model.run
    monkeypatch.setattr(opsin.Model, "run", run)
    scan(root, tmp_path / "out", layers=["flat"])
    assert sizes[-3:] == [8, 8, 8]
    assert set(sizes[:-3]) == {1}  # to see what can be folded


def test_workers_make_no_difference(root, tmp_path):
    (root / "broken.png").write_text("no")
    alone, helped = (scan(root, tmp_path / f"{n}", workers=n) for n in (0, 2))
    same(alone, helped)
    assert alone.unread() == helped.unread() != {}


def test_progress_is_told(root, tmp_path):
    told = []
    with opsin.listening(told.append):
        scan(root, tmp_path / "out")
    assert [(step.label, step.done, step.total) for step in told] == [
        ("scan", done, 21) for done in (8, 16, 21)
    ]


def test_odd_names_are_kept(tmp_path):
    raw = os.fsdecode(b"latin\xe9")
    names = ("a b", "'q' \"q\"", "new\nline", "größe 日本", raw)
    for i, name in enumerate(names):
        draw(tmp_path / "in" / f"{name} dir" / f"{name}.png", i)
        (tmp_path / "in" / f"{name}-broken.png").write_text("no")
    made = scan(tmp_path / "in", tmp_path / "out")
    assert {row.path: row.label for row in rows(made)} == {
        f"{name} dir/{name}.png": f"{name} dir".replace(raw, "latin\ufffd") for name in names
    }
    assert made.unread().keys() == {f"{name}-broken.png" for name in names}
    same(made, scan(tmp_path / "in", tmp_path / "out"))
    for row in rows(made):
        assert made.photo(row, MODEL).shape == (3, 16, 16)


def test_the_root_may_have_an_odd_name(tmp_path):
    for i, name in enumerate((os.fsdecode(b"r\xe9 oot"), "new\nline 'q'")):
        photos(tmp_path / name, 3)
        made = scan(tmp_path / name, tmp_path / f"out{i}")
        assert len(opsin.Collection(made.folder)) == 3
        same(made, scan(tmp_path / name, tmp_path / f"out{i}"))


def test_an_address_gives_an_equal_collection(root, tmp_path):
    here, there = scan(root, tmp_path / "here"), scan(f"file://{root}", tmp_path / "there")
    same(here, there)
    assert there.photo(rows(there)[0], MODEL).shape == (3, 16, 16)


def test_a_collection_below_the_folder_is_not_scanned(root, monkeypatch):
    monkeypatch.chdir(root)
    assert len(scan(".", "collection")) == 21
    opsin.saliency(MODEL, nets.images(1)).save("saliency")
    assert len(scan(".", "collection")) == 21


# --- labels


def labelled(place, columns, lines):
    with place.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *lines])
    return place


@pytest.mark.parametrize("path", ["path", "file", "filename", "image", "Image"])
@pytest.mark.parametrize("label", ["label", "class", "CLASS"])
@pytest.mark.parametrize("by", ["name", "path"])
def test_labels_are_read_from_a_csv(tmp_path, path, label, by):
    """The labels alone, as a scan would have them."""
    entries = [Entry(name, 1) for name in ("cats/a b.png", "dogs/b.png", "c.png")]
    given = [("cats/a b.png", "tiger cat"), ("dogs/b.png", 'a "quoted", one'), ("nosuch.png", "x")]
    lines = [("7", name.rpartition("/")[2] if by == "name" else name, text) for name, text in given]
    named = labels.read_labels(labelled(tmp_path / "labels.csv", ("id", path, label), lines), str(tmp_path))
    assert [labels.label(entry, named) for entry in entries] == ["tiger cat", 'a "quoted", one', None]


def test_labels_change_without_a_new_scan(root, tmp_path, monkeypatch):
    made = scan(root, tmp_path / "out")
    assert {row.label for row in rows(made)} == {None, "cats", "dogs", "big"}
    counted = forwards(monkeypatch)
    table = labelled(
        tmp_path / "labels.csv",
        ("file", "class"),
        [("000.png", "beagle"), ("cats/001.png", "größe"), ("005.png", ""), ("004.png", "x")],
    )
    made = scan(root, tmp_path / "out", labels=table)
    own = {row.path: row.label for row in rows(made) if row.label is not None}
    assert own == {"000.png": "beagle", "cats/001.png": "größe", "004.png": "x"}
    made = scan(root, tmp_path / "out", labels="folders")
    assert {row.label for row in rows(made)} == {None, "cats", "dogs", "big"}
    assert counted == []
    whole(made)


def test_of_a_path_and_a_name_the_path_is_taken(tmp_path):
    draw(tmp_path / "in/a/x.png", 0)
    draw(tmp_path / "in/b/x.png", 1)
    table = labelled(tmp_path / "l.csv", ("path", "label"), [("x.png", "any"), ("b/x.png", "this")])
    made = scan(tmp_path / "in", tmp_path / "out", labels=table)
    assert {row.path: row.label for row in rows(made)} == {"a/x.png": "any", "b/x.png": "this"}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"photo,species\na,b\n", "has the columns photo, species: it needs one of path, file"),
        (b"path,species\na,b\n", "one of label, class"),
        (b"", "it needs one of"),
        (b"path,label\n\xff,b\n", "cannot be read as a CSV"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_wrong_csv_is_told_before_anything_is_written(root, tmp_path, data, told):
    table = tmp_path / "labels.csv"
    if data is not None:
        table.write_bytes(data)
    with pytest.raises(opsin.InputError, match=told):
        scan(root, tmp_path / "out", labels=table)
    assert not (tmp_path / "out").exists()


def test_a_csv_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "l.csv").write_bytes("path,label\na.png,größe\n".encode("utf-8-sig"))
    assert labels.read_labels(tmp_path / "l.csv", str(tmp_path)) == {"a.png": "größe"}


@pytest.mark.parametrize(
    "form",
    [
        "{root}/cats/001.png",
        "{real}/cats/001.png",
        "photos/cats/001.png",  # as seen from the CSV's folder
        "./photos//cats/../cats/001.png",
        "cats\\001.png",
        ".\\cats\\001.png",
        "photos\\cats\\001.png",
        "./cats/001.png",
        "001.png",
    ],
)
def test_paths_of_a_csv_may_start_elsewhere(root, tmp_path, form):
    (tmp_path / "link").symlink_to("photos")
    path = form.format(root=tmp_path / "link", real=root)
    table = labelled(tmp_path / "l.csv", ("path", "label"), [(path, "tiger")])
    made = scan(tmp_path / "link", tmp_path / "out", labels=table)
    assert {row.path: row.label for row in rows(made) if row.label} == {"cats/001.png": "tiger"}
    assert made.labelled() == 1


@pytest.mark.parametrize("form", ["{root}/cats/001.png", "cats/001.png"])
def test_paths_of_a_csv_may_be_addresses(root, tmp_path, form):
    address = f"file://{root}"
    table = labelled(tmp_path / "l.csv", ("path", "label"), [(form.format(root=address), "tiger")])
    assert labels.read_labels(table, address)["cats/001.png"] == "tiger"


def test_a_csv_that_names_no_image_is_told_and_nothing_kept(root, tmp_path):
    table = labelled(tmp_path / "l.csv", ("path", "label"), [("elsewhere/a.png", "x"), ("b.png", "y")])
    told = r"l\.csv names none of the images: its first is 'elsewhere/a\.png', the first image '000\.png'"
    with pytest.raises(opsin.InputError, match=told):
        scan(root, tmp_path / "out", labels=table)
    assert not (tmp_path / "out").exists()
    before = rows(scan(root, tmp_path / "out"))
    with pytest.raises(opsin.InputError, match=told):
        scan(root, tmp_path / "out", labels=table)
    assert rows(opsin.Collection(tmp_path / "out")) == before
    with pytest.raises(opsin.InputError, match="its first is None"):
        scan(root, tmp_path / "out", labels=labelled(tmp_path / "l.csv", ("path", "label"), []))


def test_the_labels_of_a_csv_stay_and_reach_new_images(root, tmp_path):
    lines = [("000.png", "beagle"), ("new.png", "größe"), ("gone.png", "x")]
    table = labelled(tmp_path / "l.csv", ("path", "label"), lines)
    scan(root, tmp_path / "out", labels=table)
    table.unlink()
    draw(root / "new.png", 77)
    made = scan(root, tmp_path / "out")
    assert {row.path: row.label for row in rows(made) if row.label} == {
        "000.png": "beagle",
        "new.png": "größe",
    }
    made = scan(root, tmp_path / "out", labels="folders")
    assert {row.label for row in rows(made)} == {None, "cats", "dogs", "big"}
    assert {row.label for row in rows(scan(root, tmp_path / "out"))} == {None, "cats", "dogs", "big"}
    (root / "cats/broken.png").write_bytes(b"no photo")
    assert scan(root, tmp_path / "out").labelled() == sum(row.label is not None for row in rows(made))


# --- scanned again


def test_again_only_what_is_new_or_has_changed_is_seen(root, tmp_path, monkeypatch, small_chunks):
    counted = forwards(monkeypatch)
    made = scan(root, tmp_path / "out")
    assert sum(counted) == 21
    chunk_of = dict(zip(made.ids().tolist(), made.column("chunk").to_pylist(), strict=True))
    counted.clear()
    same(scan(root, tmp_path / "out"), made)
    assert counted == []
    photos(root, 3, first=21)
    made = scan(root, tmp_path / "out")
    assert sum(counted) == 3
    assert len(made) == 24
    counted.clear()

    draw(root / "dogs/big/003.png", 999)  # changed: with it the rest of its chunk
    (root / "000.png").unlink()  # gone
    before = {row.path: row for row in rows(made)}
    stale = {chunk_of[before[path].id] for path in ("dogs/big/003.png", "000.png")}
    assert len(stale) == 2
    anew = sum(chunk in stale for chunk in chunk_of.values()) - 1
    made = scan(root, tmp_path / "out")
    assert sum(counted) == anew < 21
    assert {row.path for row in rows(made)} == before.keys() - {"000.png"}
    (changed,) = (row for row in rows(made) if row.path == "dogs/big/003.png")
    assert changed.sha256 != before["dogs/big/003.png"].sha256
    same(made, scan(root, tmp_path / "fresh"))
    whole(made)


def test_what_was_moved_is_found_where_it_is_now(root, tmp_path):
    made = scan(root, tmp_path / "out")
    (root / "cats").rename(root / "felines")
    made = scan(root, tmp_path / "out")
    same(made, scan(root, tmp_path / "fresh"))
    assert {row.label for row in rows(made)} == {None, "felines", "dogs", "big"}


def test_a_file_that_was_mended_is_taken_in(root, tmp_path):
    (root / "late.png").write_text("not yet")
    made = scan(root, tmp_path / "out")
    assert list(made.unread()) == ["late.png"]
    draw(root / "late.png", 5)
    made = scan(root, tmp_path / "out")
    assert made.unread() == {}
    assert len(made) == 22
    same(made, scan(root, tmp_path / "fresh"))


def test_a_file_that_broke_is_forgotten(root, tmp_path):
    scan(root, tmp_path / "out")
    (root / "000.png").write_text("no more")
    made = scan(root, tmp_path / "out")
    assert list(made.unread()) == ["000.png"]
    assert len(made) == 20
    same(made, scan(root, tmp_path / "fresh"))


def test_images_below_a_folder_that_cannot_be_listed_are_kept(root, tmp_path, monkeypatch, shut):
    first = scan(root, tmp_path / "c")
    before, labels = rows(first), first.labels()
    with shut(root / "dogs"):
        counted = forwards(monkeypatch)
        made = scan(root, tmp_path / "c")
        assert counted == [1]  # the folder
        assert made.unread() == {"dogs/": "dogs/ cannot be read: Permission denied"}
        assert rows(made) == before
        assert made.labels() == labels
        draw(root / "new.png", 99)
        assert len(scan(root, tmp_path / "c")) == len(before) + 1
    assert not scan(root, tmp_path / "c").unread()


def test_many_scans_leave_no_old_versions_behind(root, tmp_path):
    for i in range(3):
        photos(root, 2, first=30 + 2 * i)
        made = scan(root, tmp_path / "out")
    assert len(lance.dataset(made.folder / tables.IMAGES).versions()) == 1
    assert len(lance.dataset(made.folder / tables.IMAGES).get_fragments()) == 1


# --- cut off


KILLED = """
import os, signal, sys
import nets, opsin
from opsin.collection.scan import scanning

scanning.LEAST_CHUNK = scanning.MOST_CHUNK = 8
left = int(sys.argv[3])

def listen(step):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    with opsin.listening(listen):
        opsin.scan(sys.argv[1], nets.model(nets.plain()), sys.argv[2], layers=["conv2", "flat"], workers=1)
"""


def script(tmp_path, text, *words):
    """A process that runs this."""
    (tmp_path / "main.py").write_text(text)
    paths = os.pathsep.join([str(Path(nets.__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, tmp_path / "main.py", *map(str, words)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_killed_and_run_again_equals_a_scan_without_a_break(root, tmp_path, monkeypatch, small_chunks):
    photos(root, 12, first=21)
    (root / "broken.png").write_text("no")
    done = script(tmp_path, KILLED, root, tmp_path / "out", 4)
    assert done.returncode == -signal.SIGKILL, done.stderr
    part = opsin.Collection(tmp_path / "out")
    assert 8 <= len(part) < 33
    whole(part)
    kept = len(part)
    counted = forwards(monkeypatch)
    made = scan(root, tmp_path / "out", layers=["conv2", "flat"])
    assert sum(counted) == 34 - kept
    fresh = scan(root, tmp_path / "fresh", layers=["conv2", "flat"])
    same(made, fresh)
    whole(made)
    assert made.unread() == fresh.unread() != {}


def test_a_chunk_is_handed_on_after_a_time_however_few_its_images_are(root, tmp_path, monkeypatch):
    photos(root, 12, first=21)
    fresh = scan(root, tmp_path / "fresh", layers=["conv2", "flat"])
    monkeypatch.setattr(local_engine, "CHUNK_SECONDS", 0.0)
    monkeypatch.setattr(local_engine, "CHUNK_SHARE", 0.0)
    made = scan(root, tmp_path / "out", layers=["conv2", "flat"])
    assert len(fresh.chunks()) == 1
    assert len(made.chunks()) == -(-33 // 8)  # one for each batch of the network
    same(made, fresh)


class StopError(Exception):
    pass


@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("at", [1, 3])
def test_a_listener_that_raises_keeps_what_was_done(root, tmp_path, monkeypatch, error, at):
    def listen(step):
        if step.done == 8 * at or step.done == step.total:
            raise error("enough")

    with pytest.raises(error, match="enough"), opsin.listening(listen):
        scan(root, tmp_path / "out")
    part = opsin.Collection(tmp_path / "out")
    assert len(part) == min(8 * at, 21)
    whole(part)
    counted = forwards(monkeypatch)
    made = scan(root, tmp_path / "out")
    assert sum(counted) == 21 - min(8 * at, 21)
    same(made, scan(root, tmp_path / "fresh"))


@pytest.mark.parametrize("where", ["_best", "as_maps"])
def test_an_interrupt_within_a_batch_keeps_the_batches_before(root, tmp_path, monkeypatch, where):
    def interrupted(*args):
        calls.append(args)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return real(*args)

    calls, real = [], getattr(chunks, where)
    stop = {"_best": 2, "as_maps": 8}[where]  # twice two layers are looked at, then two a batch
    monkeypatch.setattr(chunks, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        scan(root, tmp_path / "out", layers=["conv2", "flat"])
    part = opsin.Collection(tmp_path / "out")
    assert len(part) == 8
    whole(part)
    made = scan(root, tmp_path / "out", layers=["conv2", "flat"])
    same(made, scan(root, tmp_path / "fresh", layers=["conv2", "flat"]))


def failing_writes(monkeypatch, fails):
    """Lance's writes of the tables that `fails` (name, how often it was written) says find the disk full."""
    real, written = lance.write_dataset, []

    def write(data, place, *args, **settings):
        written.append(Path(place).name)
        if fails(written[-1], written.count(written[-1])):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(data, place, *args, **settings)

    monkeypatch.setattr(lance, "write_dataset", write)


@pytest.mark.parametrize("table", [tables.IMAGES, tables.TALLIES])
@pytest.mark.parametrize("time", [1, 2])
def test_an_append_that_was_cut_off_is_passed_over(root, tmp_path, monkeypatch, small_chunks, table, time):
    with monkeypatch.context() as patch:
        failing_writes(patch, lambda name, times: (name, times) == (table, time))
        with pytest.raises(opsin.InputError, match=r"no room left to write .*out: .* scan again"):
            scan(root, tmp_path / "out")
    part = opsin.Collection(tmp_path / "out")
    assert len(part) == 8 * (time - 1)
    whole(part)
    made = scan(root, tmp_path / "out")
    same(made, scan(root, tmp_path / "fresh"))
    whole(made)
    tallies = lance.dataset(made.folder / tables.TALLIES).to_table()
    assert set(tallies["chunk"].to_pylist()) == made.chunks()


def test_labels_that_find_no_room_leave_the_collection_readable(root, tmp_path, monkeypatch):
    before = scan(root, tmp_path / "out")
    kept = rows(before)
    with monkeypatch.context() as patch:
        failing_writes(patch, lambda name, _: name == tables.LABELS)
        with pytest.raises(opsin.InputError, match="no room left"):
            scan(root, tmp_path / "out")
    assert rows(opsin.Collection(tmp_path / "out")) == kept


@pytest.mark.parametrize("name", ["record.json", "unread.json"])
def test_a_record_that_finds_no_room_is_written_the_next_time(root, tmp_path, monkeypatch, name):
    def replace(self, target):
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, target)

    real = Path.replace
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(opsin.InputError, match="no room left"):
            scan(root, tmp_path / "out")
    same(scan(root, tmp_path / "out"), scan(root, tmp_path / "fresh"))


FULL = """
import resource, sys
import nets, opsin
from opsin.collection.scan import scanning

scanning.LEAST_CHUNK = scanning.MOST_CHUNK = 64
model = nets.model(nets.plain())

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
    try:
        opsin.scan(sys.argv[1], model, sys.argv[2], workers=0)
    except opsin.InputError as error:
        print(error)
"""


@pytest.mark.parametrize("room", [0, 40_000])
def test_a_disk_that_is_full_is_told_and_the_collection_stays_readable(tmp_path, room):
    photos(tmp_path / "photos", 8)
    made = scan(tmp_path / "photos", tmp_path / "out")
    kept = rows(made)
    photos(tmp_path / "photos", 90, first=8)
    done = script(tmp_path, FULL, tmp_path / "photos", tmp_path / "out", room)
    assert done.returncode == 0, done.stderr
    told = "no room left to write" if room else "cannot write to"  # not even the temporary file
    assert f"{told} {tmp_path / 'out'}" in done.stdout
    part = opsin.Collection(tmp_path / "out")
    assert {row.path for row in kept} <= {row.path for row in rows(part)}
    assert len(part) < 98
    whole(part)
    made = scan(tmp_path / "photos", tmp_path / "out")
    same(made, scan(tmp_path / "photos", tmp_path / "fresh"))


# --- what is refused


def test_the_second_of_two_scans_is_told(root, tmp_path):
    told = []

    def listen(_):
        with pytest.raises(opsin.InputError, match=r"another scan is writing .*out: wait for it"):
            scan(root, tmp_path / "out")
        told.append(len(opsin.Collection(tmp_path / "out")))  # to read is no harm

    with opsin.listening(listen):
        made = scan(root, tmp_path / "out")
    assert told == [0, 0, 0]
    whole(made)
    same(made, scan(root, tmp_path / "fresh"))


@pytest.mark.parametrize("change", ["weights", "preprocessing", "layers", "root", "top"])
def test_another_model_other_layers_another_root_are_refused_and_both_named(root, tmp_path, change):
    made = scan(root, tmp_path / "out")
    before = rows(made)
    model, folder, settings = MODEL, root, {}
    if change == "weights":
        model = nets.model(nets.plain(seed=1), name="the other")
        told = r"scanned with Plain \(weights \w{12}\), not with the other \(weights \w{12}\)"
    elif change == "preprocessing":
        model = nets.model(nets.plain(), std=(0.5, 0.5, 0.5))
        told = r"std \[0.2, 0.25, 0.3\], not \[0.5, 0.5, 0.5\]"
    elif change == "layers":
        settings, told = {"layers": ["conv1", "mean"]}, "layers flat, not conv1, mean: choose another"
    elif change == "top":
        settings, told = {"top": 3}, "top 9, not 3"
    else:
        folder = photos(tmp_path / "elsewhere", 2)
        told = f"root {root}, not {folder}"
    with pytest.raises(opsin.InputError, match=told):
        scan(folder, tmp_path / "out", model, **settings)
    assert rows(opsin.Collection(tmp_path / "out")) == before


def test_another_network_with_other_layers_is_told_as_another_network(root, tmp_path):
    scan(root, tmp_path / "out")
    with pytest.raises(opsin.InputError, match=r"scanned with Plain .* not with Viewing"):
        scan(root, tmp_path / "out", nets.model(nets.viewing()))


@pytest.mark.parametrize("files", [(), ("notes.txt", "below/a.mp4")])
def test_a_folder_without_images_is_told_and_nothing_written(tmp_path, files):
    (tmp_path / "in").mkdir()
    for name in files:
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text("x")
    with pytest.raises(opsin.InputError, match=r"in holds no images \(.*\.jpg"):
        scan(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_only_broken_files_leave_nothing_behind(tmp_path, workers):
    (tmp_path / "in").mkdir()
    for i in range(11):
        (tmp_path / f"in/{i}.png").write_text("no")
    with pytest.raises(opsin.InputError, match=r"none of the 11 images below .* is not an image"):
        scan(tmp_path / "in", tmp_path / "out", workers=workers)
    assert not (tmp_path / "out").exists()


def test_unread_files_are_listed_and_the_rest_is_kept(root, tmp_path):
    (root / "cut.png").write_bytes((root / "000.png").read_bytes()[:500])
    (root / "cats/text.jpg").write_text("no")
    (root / "gone.png").symlink_to("nowhere")
    Image.new("RGB", (4, 4)).save(root / "tiny.png")
    made = scan(root, tmp_path / "out")
    assert len(made) == 21
    whole(made)
    told = json.loads((made.folder / "unread.json").read_text())
    assert told == made.unread()
    assert told.keys() == {"cut.png", "cats/text.jpg", "gone.png", "tiny.png"}
    assert all(path in why for path, why in told.items())
    assert "4x4" in told["tiny.png"]


def test_a_folder_of_something_else_is_not_written_into(root, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("years")
    with pytest.raises(opsin.InputError, match="and is not a collection"):
        scan(root, tmp_path / "out")
    assert (tmp_path / "out/thesis.txt").read_text() == "years"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"layers": ["conv9"]}, "unknown layer 'conv9'; nearest: conv2"),
        ({"layers": ["image"]}, "'image' is not a layer"),
        ({"top": 0}, "top must be at least 1"),
        ({"engine": "rays"}, "unknown engine 'rays'; nearest: ray"),
        ({"address": "auto"}, "only for a Ray cluster"),
    ],
)
def test_settings_that_cannot_be_are_told(root, tmp_path, settings, told, request):
    if "engine" in settings:  # checked by its type while the tests run
        with pytest.raises(opsin.InputError, match=told):
            scanning._engine.__wrapped__(settings["engine"], None)
        return
    with pytest.raises(opsin.InputError, match=told):
        scan(root, tmp_path / "out", **settings)


def test_a_place_that_cannot_be_written_is_told(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(opsin.InputError, match=r"cannot write to .*file/out"):
        scan(root, tmp_path / "file/out")


def test_the_network_is_left_as_it_was(root, tmp_path):
    net = nets.plain().train()
    scan(root, tmp_path / "out", nets.model(net))
    assert net.training
    assert not any(m._forward_hooks for m in net.modules())


# --- the command


NET = """
import nets, torch

def net():
    torch.set_num_threads(1)
    return nets.model(nets.plain(), name="own")
"""


@pytest.fixture
def here(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    return tmp_path


OWN = ("-m", "net.py:net", "--workers", "0")


def test_scan_is_a_command(here, call):
    assert call("scan", "photos", *OWN) == (0, "21 images in collection, 15 labelled\n", "")
    made = opsin.Collection("collection")
    assert made.about.model["name"] == "own"
    assert made.about.layers[0].name == "flat"
    labelled(here / "l.csv", ("path", "label"), [("000.png", "beagle")])
    words = ("-l", "conv2", "-l", "fc", "--top", "3", "--labels", "l.csv", "-o", "other/place")
    assert call("scan", "photos", *OWN, *words) == (0, "21 images in other/place, 1 labelled\n", "")
    made = opsin.Collection("other/place")
    assert [about.name for about in made.about.layers] == ["conv2", "fc"]
    assert made.tally("fc").ids.shape == (5, 3)
    assert list(made.labels().values()) == ["beagle"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("photo",), "unknown folder 'photo'; nearest: photos"),
        (("net.py",), "net.py is a file"),
        (("photos", "-l", "conv9"), "unknown layer 'conv9'"),
        (("photos", "--labels", "nosuch.csv"), "nosuch.csv cannot be read"),
        (("photos", "--top", "0"), "0"),
        (("nosuch://bucket/photos",), "nosuch://bucket/photos cannot be opened"),
    ],
)
def test_what_is_wrong_ends_with_code_2(here, call, words, told):
    code, out, err = call("scan", *words, *OWN)
    assert (code, out) == (2, "")
    assert told in err
    assert "Traceback" not in err
    assert not Path("collection").exists()


def test_broken_files_are_told_on_stderr(here, call):
    for i in range(25):
        Path(f"photos/broken {i:02}.png").write_text("no")
    code, out, err = call("scan", "photos", *OWN)
    assert (code, out) == (0, "21 images in collection, 15 labelled, 25 not read\n")
    lines = err.splitlines()
    assert lines[0] == "not read: broken 00.png is not an image that Pillow can read"
    assert len(lines) == 21
    assert lines[-1] == "and 5 more, in collection/unread.json"


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_what_was_done(here, call, monkeypatch, by):
    real, seen = chunks.Growing.take, []

    def take(self, group):
        real(self, group)
        seen.append(group)
        if len(seen) == 2:
            os.kill(os.getpid(), by)

    before = signal.signal(by, signal.default_int_handler)  # it may be ignored where the tests are run
    with monkeypatch.context() as patch:
        patch.setattr(chunks.Growing, "take", take)
        code, out, err = call("scan", "photos", *OWN)
    signal.signal(by, before)
    assert (code, out) == (128 + by, "")
    assert "stopped; 16 images are kept" in err
    assert "Traceback" not in err
    assert call("scan", "photos", *OWN)[:2] == (0, "21 images in collection, 15 labelled\n")
    same(opsin.Collection("collection"), scan("photos", "fresh", opsin.load("net.py:net")))


PROGRAM = """
import sys
import opsin
from torch import nn

print("the program runs")
net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
model = opsin.Model(net, mean=[0.5] * 3, std=[0.5] * 3, size=16)
made = opsin.scan(sys.argv[1], model, sys.argv[2], workers=2)
opsin.leave_one_out(made, k=1).save(sys.argv[3])
print(len(made))
"""


def test_a_program_without_a_guard_is_not_run_again_by_its_decoders(root, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, program, root, tmp_path / "made", tmp_path / "page"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout == "the program runs\n21\n"
    loading = "import sys, opsin; print(type(opsin.Result.load(sys.argv[1])).__name__)"
    ran = subprocess.run(
        [sys.executable, "-c", loading, tmp_path / "page"], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "Findings\n"


def test_a_collection_whose_photos_are_all_broken_now_is_kept(root, tmp_path):
    scan(root, tmp_path / "made")
    (tmp_path / "made" / "mine").mkdir()
    (tmp_path / "made" / "mine" / "notes.txt").write_text("keep")
    for photo in root.rglob("*.png"):
        photo.write_bytes(b"broken now")
    with pytest.raises(opsin.InputError, match="none of the 21 images"):
        scan(root, tmp_path / "made")
    assert (tmp_path / "made" / "mine" / "notes.txt").read_text() == "keep"


def test_labels_are_read_with_spaces_around_them(root, tmp_path):
    (tmp_path / "labels.csv").write_text(" Path , Label\n ./000.png , beagle \n")
    made = scan(root, tmp_path / "made", labels=tmp_path / "labels.csv")
    assert list(made.labels().values()) == ["beagle"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"workers": -1}, "workers"),
        ({"address": "a"}, "engine 'ray'"),
        ({"top": 0}, "top must be at least 1"),
    ],
)
def test_what_does_not_fit_leaves_no_collection(root, tmp_path, settings, said):
    with pytest.raises(opsin.InputError, match=said):
        scan(root, tmp_path / "made", **settings)
    assert not (tmp_path / "made" / "record.json").exists()


def test_one_layer_may_be_given_as_a_text(root, tmp_path):
    assert [layer.name for layer in scan(root, tmp_path / "made", layers="conv1").about.layers] == ["conv1"]


def test_labels_that_are_no_classes_leave_the_image_to_the_network(root, tmp_path):
    made = scan(root, tmp_path / "made")
    seen = {
        label.split(" (")[0] for row in made.rows(range(len(made))) for label in [made.label(row.classes[0])]
    }
    found = [row for label in seen for row in made.showing(label)]
    assert len(found) == len(made)
    with pytest.raises(opsin.InputError, match="unknown layer of the collection 'conv2'"):
        made.showing("conv2:1")


def test_of_the_only_image_that_cannot_be_read_is_said_why(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(b"no")
    with pytest.raises(
        opsin.InputError, match=r"the only image below .* cannot be read: a\.png is not an image"
    ):
        scan(tmp_path / "photos", tmp_path / "c")
    assert not (tmp_path / "c").exists()
