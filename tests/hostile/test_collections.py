"""A collection may come from anybody, or be damaged: whatever reads it gives a result or one error."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import lance
import pytest

import nets
import opsin
from hostile.collections import (
    BESIDE,
    LAYERS,
    MODEL,
    REFUSED,
    SILENT,
    TABLES,
    TOLD,
    UNRECOGNISED,
    make,
    random_bytes,
)
from opsin.cli.inputs import open_photos
from opsin.collection.store.tables import IMAGES

PHOTO = nets.images(1).float()


def scan(folder):
    root = opsin.Collection(folder).about.root
    return opsin.scan(root, MODEL, folder, layers=LAYERS, top=3, workers=0)


# Every surface that reads a collection.
READERS = {
    "neighbours": lambda folder: opsin.neighbours(MODEL, folder, PHOTO, k=3),
    "neighbours by an index": lambda folder: opsin.neighbours(MODEL, folder, PHOTO, k=3, index=True),
    "leave one out": lambda folder: opsin.leave_one_out(folder, k=3),
    "units": lambda folder: opsin.units(MODEL, folder, channels=[0], projection="none"),
    "inner units": lambda folder: opsin.units(
        MODEL, folder, layer="conv2", channels=[0], projection="none", inside=True
    ),
    "export": lambda folder: opsin.Collection(folder).export(folder.parent / "out.npz", overwrite=True),
    "map": lambda folder: opsin.map(folder, method="pca"),
    "mistakes": lambda folder: opsin.mistakes(MODEL, folder, count=2),
    "explain": lambda folder: opsin.explain(MODEL, PHOTO, techniques="saliency", collection=folder),
    "photos of a class": lambda folder: [photo() for _, photo in open_photos((str(folder),), "tabby")],
    "photos of a channel": lambda folder: [photo() for _, photo in open_photos((str(folder),), "conv2:0")],
    "files that were not read": lambda folder: opsin.Collection(folder).unread(),
    "scan": scan,
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A sound collection."""
    return make(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def copy(sound, tmp_path, monkeypatch):
    """A copy of it, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(sound, tmp_path / "made"))


def read(folder, *names):
    """What each reader, or some of them, says of a collection: its error, or nothing."""
    told = {}
    for name in names or READERS:
        told[name] = ""
        try:
            READERS[name](folder)
        except opsin.OpsinError as error:
            told[name] = str(error)
    return told


def test_a_sound_collection_is_read(copy):
    assert read(copy) == dict.fromkeys(READERS, "")


@pytest.mark.parametrize("damage", REFUSED)
def test_a_collection_that_contradicts_itself_is_not_opened(copy, damage):
    REFUSED[damage](copy)
    for name, told in read(copy).items():
        assert told.startswith(f"{copy} is damaged: "), name
        assert "record.json" in told or any(table in told for table in TABLES)
        assert "\n" not in told


@pytest.mark.parametrize("damage", UNRECOGNISED)
def test_a_collection_without_a_record_that_can_be_read_is_not_opened(copy, damage):
    UNRECOGNISED[damage](copy)
    for name, told in read(copy).items():
        assert ("record.json" in told) != name.startswith("photos of"), name  # these find no images in it
        assert "\n" not in told


@pytest.mark.parametrize("damage", TOLD)
def test_damaged_data_are_told_by_what_reads_them(copy, damage):
    TOLD[damage](copy)
    said = {told for told in read(copy).values() if told}
    assert said
    for told in said:
        assert str(copy) in told
        assert "\n" not in told


@pytest.mark.parametrize("damage", BESIDE)
def test_damaged_files_beside_the_tables_are_told_by_what_reads_them(copy, damage):
    BESIDE[damage](copy)
    said = [told for told in read(copy, "files that were not read", "scan").values() if told]
    assert said
    assert all(told.startswith(f"{copy}") or "cannot write to" in told for told in said)


@pytest.mark.parametrize("damage", SILENT)
def test_what_cannot_be_told_gives_a_result_or_one_error(copy, damage):
    SILENT[damage](copy)
    read(copy)


@pytest.mark.parametrize("seed", range(12))
def test_random_bytes_in_a_table_give_a_result_or_one_error(copy, seed):
    random_bytes(copy, seed)
    read(copy)


@pytest.mark.parametrize("damage", ["a path out of the folder", "an absolute path"])
def test_no_file_outside_the_folder_is_read(copy, damage, monkeypatch):
    TOLD[damage](copy)
    opened, real = [], os.open
    monkeypatch.setattr(
        os, "open", lambda path, *args, **more: opened.append(path) or real(path, *args, **more)
    )
    read(copy)
    assert opened
    assert not any("hostname" in os.fspath(path) for path in opened)
    source = opsin.Collection(copy).source
    with pytest.raises(opsin.InputError, match="is not inside the scanned folder"):
        source.read("../../etc/hostname")


def test_a_scan_deletes_nothing_behind_a_link(copy, tmp_path):
    """Of a table that is a link, old versions would be deleted where it leads."""
    shutil.copytree(copy / "images.lance", tmp_path / "theirs")
    shutil.rmtree(copy / "images.lance")
    (copy / "images.lance").symlink_to(tmp_path / "theirs")
    before = {path: path.is_file() and path.read_bytes() for path in (tmp_path / "theirs").rglob("*")}
    with pytest.raises(opsin.InputError, match=r"images\.lance is a link that leads out of the folder"):
        scan(copy)
    assert {path: path.is_file() and path.read_bytes() for path in (tmp_path / "theirs").rglob("*")} == before


@pytest.mark.parametrize("name", ["labels.json", "unread.json"])
def test_a_scan_writes_through_no_link(copy, tmp_path, name):
    (tmp_path / "theirs").write_text("years")
    (copy / f".{name}.fresh").symlink_to(tmp_path / "theirs")
    with suppress(opsin.InputError):
        scan(copy)
    assert (tmp_path / "theirs").read_text() == "years"
    assert not (copy / name).is_symlink()


def test_a_lock_that_is_a_link_is_no_lock(copy, tmp_path):
    (tmp_path / "theirs").write_text("years")
    (copy / ".lock").unlink()
    (copy / ".lock").symlink_to(tmp_path / "theirs")
    with pytest.raises(opsin.InputError, match=r"\.lock was not written by Opsin"):
        scan(copy)
    assert (tmp_path / "theirs").read_text() == "years"


def test_a_collection_whose_scan_was_killed_before_its_first_images_is_said_to_hold_none(copy):
    lance.dataset(copy / IMAGES).delete("true")
    for name in ("neighbours", "units", "photos of a class", "map"):
        with pytest.raises(opsin.InputError, match=r"holds (no images|0)"):
            READERS[name](copy)
