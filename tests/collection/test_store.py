"""A collection that is read while it is written, and one that is damaged."""

import json
import os
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

import nets
import opsin
from opsin.collection.scan import scanning
from opsin.collection.store import intake, tables

MODEL = nets.model(nets.plain())
USES = {
    "len": len,
    "rows": lambda made: made.rows([0, 3]),
    "all": lambda made: made.showing(),
    "features": lambda made: made.features(),
    "some": lambda made: made.features(places=[1, 2]),
    "tally": lambda made: made.tally(),
    "labels": lambda made: made.labels(),
    "map": opsin.map,
    "nearest": lambda made: opsin.neighbours(MODEL, made, nets.images(1).float(), k=2),
}


def draw(root, numbers):
    for i in numbers:
        place = root / f"{i % 2}" / f"{i:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 26, 3), np.uint8)).save(place)
    return root


def scan(root, place):
    return opsin.scan(root, MODEL, place, workers=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder and a collection of twenty photos."""
    place = tmp_path_factory.mktemp("store")
    scan(draw(place / "photos", range(20)), place / "made")
    return place


@pytest.fixture
def made(whole, tmp_path):
    """A copy of that collection."""
    shutil.copytree(whole / "made", tmp_path / "made")
    return opsin.Collection(tmp_path / "made")


def test_a_collection_may_be_named_by_its_folder(made, whole):
    folder, photo = made.folder, nets.images(1).float()
    scan(whole / "photos", folder)
    for use in (
        opsin.map,
        opsin.leave_one_out,
        lambda given: opsin.units(MODEL, given),
        lambda given: opsin.neighbours(MODEL, given, photo, k=2),
        lambda given: opsin.explain(MODEL, photo, techniques="saliency", collection=given).sections[0].near,
    ):
        assert use(folder) == use(str(folder)) == use(opsin.Collection(folder))
    with pytest.raises(opsin.InputError, match="nowhere is not a collection"):
        opsin.map("nowhere")


def damage(made, file, how):
    for place in made.folder.glob(file):
        if how == "gone":
            place.unlink()
        else:
            os.truncate(place, 0 if how == "empty" else place.stat().st_size // 2)


@pytest.mark.parametrize("how", ["half", "empty", "gone"])
@pytest.mark.parametrize("table", [tables.IMAGES, tables.TALLIES, tables.LABELS])
def test_a_table_that_is_damaged_is_told(made, whole, table, how):
    damage(made, f"{table}/data/*", how)
    told = []
    for use in USES.values():
        try:
            use(made)
        except opsin.InputError as error:
            told.append(str(error))
    assert told
    assert all(one.startswith(f"{made.folder} is damaged: delete it and scan again (") for one in told)
    if table == tables.LABELS:  # which are written anew by each scan
        assert scan(whole / "photos", made.folder).labels()
    else:
        with pytest.raises(opsin.InputError, match=str(made.folder)):
            scan(whole / "photos", made.folder)


@pytest.mark.parametrize("how", ["half", "empty"])
@pytest.mark.parametrize("table", [tables.IMAGES, tables.TALLIES, tables.LABELS])
def test_a_table_without_a_version_that_can_be_read_is_told_when_it_is_opened(made, table, how):
    damage(made, f"{table}/_versions/*.manifest", how)
    with pytest.raises(opsin.InputError, match=f"{made.folder} is damaged: delete it"):
        opsin.Collection(made.folder)


@pytest.mark.parametrize("name", [None, "about", "layers", "model", "extent"])
def test_a_record_that_lacks_something_is_told(made, name):
    facts = json.loads((made.folder / "record.json").read_text())
    if name == "about":
        del facts["about"]
    elif name == "extent":
        del facts["about"]["layers"][0]["extent"]
    elif name:
        del facts["about"][name]
    else:
        del facts["format"]
    (made.folder / "record.json").write_text(json.dumps(facts))
    with pytest.raises(opsin.InputError, match=r"is damaged|has format None") as told:
        opsin.Collection(made.folder)
    assert name is None or name in str(told.value)


def test_rows_that_there_are_not_are_no_damage(made):
    for places in ([20], [-1], [0, 99]):
        with pytest.raises(IndexError, match="has the rows 0 to 19"):
            made.rows(places)


def test_a_pinned_collection_stays_while_a_scan_goes_on(made, whole, monkeypatch, tmp_path):
    monkeypatch.setattr(scanning, "LEAST_CHUNK", 8)
    monkeypatch.setattr(scanning, "MOST_CHUNK", 8)
    before, looked = opsin.Collection(made.folder).pinned(), []
    ids, rows, mean = before.ids().tolist(), before.showing(), before.tally().mean

    def look(self):
        looked.append((before.ids().tolist(), before.showing()))
        looked.append(len(made))
        assert before.tally().mean.equal(mean)

    monkeypatch.setattr(intake.Intake, "tidy", look)
    shutil.copytree(whole / "photos", tmp_path / "more")
    facts = json.loads((made.folder / "record.json").read_text())
    facts["about"]["root"] = str(tmp_path / "more")
    (made.folder / "record.json").write_text(json.dumps(facts))
    scan(draw(tmp_path / "more", range(20, 40)), made.folder)
    assert looked == [(ids, rows), 40]


def test_what_a_scan_has_taken_away_from_a_pinned_collection_is_told(made, whole):
    live, before = opsin.Collection(made.folder), opsin.Collection(made.folder).pinned()
    ids = live.ids().tolist()
    scan(whole / "photos", made.folder)
    with pytest.raises(opsin.InputError, match="was scanned again while it was read: try again"):
        before.labels()
    assert len(live.labels()) == len(live.ids()) == 20
    assert live.ids().tolist() == ids


def test_whoever_reads_while_scans_write_sees_a_whole_collection_or_is_told(made, whole, monkeypatch):
    """Readings of all kinds, beside scans that forget and take in chunks."""
    monkeypatch.setattr(scanning, "LEAST_CHUNK", 4)
    monkeypatch.setattr(scanning, "MOST_CHUNK", 4)
    shutil.rmtree(made.folder)
    ended, wrong, seen = threading.Event(), [], []

    def read():
        last = False
        while not last:
            last = ended.is_set()  # one more round when all is written, which a slow machine may need
            for name, use in USES.items():
                try:
                    use(opsin.Collection(made.folder))
                    seen.append(name)
                except opsin.InputError as error:
                    known = ("scanned again", "not a collection", "holds no images", "at least 2", "no image")
                    if not any(said in str(error) for said in known):
                        wrong.append((name, str(error)))
                except IndexError:  # fewer rows than are asked for here
                    assert name in ("rows", "some")
                except Exception as error:
                    wrong.append((name, repr(error)))

    reader = threading.Thread(target=read)
    reader.start()
    for round_ in range(3):
        for i in range(4):
            draw(whole / "photos", [round_ * 4 + i])  # written anew, so that it counts as changed
        scan(whole / "photos", made.folder)
    ended.set()
    reader.join()
    assert not wrong
    assert set(seen) == set(USES)
