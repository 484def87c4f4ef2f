"""Where images lie: which files of a folder are taken, in which order, and what is odd about their names."""

import json
import os
import pickle
from pathlib import Path

import fsspec
import pytest

import nets
import opsin
from opsin.collection.files.source import Source
from opsin.images.photos import SUFFIXES

ODD = (
    "a b.png",
    "'single' \"double\".png",
    "new\nline.png",
    "tab\t.png",
    "日本 größe.png",
    "e\u0301.png",  # two characters that look like one
    "100%20#?&.png",
    "*[a-z]{1,2}.png",
    "-o.png",
    "~.png",
    "back\\slash.png",
    ".hidden.png",
    os.fsdecode(b"latin\xe9.png"),
    os.fsdecode(b"\xff\xfe.png"),
)


def fill(root, *paths):
    """Files of different bytes."""
    for number, path in enumerate(paths):
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"%d" % number * (number + 1))


def found(root):
    return [entry.path for entry in Source(root).entries()]


def test_folders_and_files_are_taken_in_the_order_of_their_names(tmp_path):
    fill(tmp_path, "b.png", "a/z.png", "c/2/y.png", "c/10/x.png", "a/b/w.png", "B.png", "d.png", "c/v.png")
    assert found(tmp_path) == [
        *("B.png", "a/b/w.png", "a/z.png", "b.png"),
        *("c/10/x.png", "c/2/y.png", "c/v.png", "d.png"),
    ]
    assert found(str(tmp_path) + "/") == found(tmp_path)


def test_the_order_and_the_numbers_are_the_same_each_time(tmp_path):
    fill(tmp_path, *(f"{i % 3}/{i * 7919 % 100}.png" for i in range(60)))
    first, second = (list(Source(tmp_path).entries()) for _ in range(2))
    assert first == second
    assert len({entry.id for entry in first}) == 60
    assert all(0 <= entry.id < 2**63 and 0 <= entry.version < 2**63 for entry in first)


def test_only_photos_are_taken_whatever_the_case_of_the_suffix(tmp_path):
    others = ("a.txt", "b.npz", "png", "c.png.part", ".png", "d.pngx", "Makefile", "e.mp4")
    fill(tmp_path, *others, *(f"x{suffix}" for suffix in SUFFIXES), "y.JPG", "z.JpEg")
    assert set(found(tmp_path)) == {f"x{suffix}" for suffix in SUFFIXES} | {"y.JPG", "z.JpEg"}


def test_a_folder_named_like_a_photo_is_a_folder(tmp_path):
    fill(tmp_path, "album.png/a.png")
    assert found(tmp_path) == ["album.png/a.png"]


def test_odd_names_are_read_back(tmp_path):
    fill(tmp_path, *ODD, *(f"{name}/{name}" for name in ("dir ' \"\n", os.fsdecode(b"\xe9dir.png"))))
    source = Source(tmp_path)
    entries = list(source.entries())
    assert len(entries) == len(ODD) + 1  # one folder's files are no photos
    assert {entry.path for entry in entries} >= set(ODD)
    for entry in entries:
        data = (tmp_path / entry.path).read_bytes()
        assert source.read(entry.path) == data
    again = pickle.loads(pickle.dumps(source))
    assert list(again.entries()) == entries


def test_a_change_is_seen_in_the_version_alone(tmp_path):
    fill(tmp_path, "a.png")
    (old,) = Source(tmp_path).entries()
    about = (tmp_path / "a.png").stat()
    (tmp_path / "a.png").write_bytes(b"longer")
    os.utime(tmp_path / "a.png", ns=(about.st_atime_ns, about.st_mtime_ns))
    (longer,) = Source(tmp_path).entries()
    os.utime(tmp_path / "a.png", ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    (later,) = Source(tmp_path).entries()
    assert len({old.id, longer.id, later.id}) == 1
    assert len({old.version, longer.version, later.version}) == 3


def test_the_same_path_has_the_same_number_below_any_root(tmp_path):
    fill(tmp_path, "one/x/a.png", "two/x/a.png", "two/x/b.png")
    (one,), (two, other) = Source(tmp_path / "one").entries(), Source(tmp_path / "two").entries()
    assert one.id == two.id != other.id


def test_links_in_a_loop_end(tmp_path):
    fill(tmp_path, "a/x.png", "b/y.png")
    (tmp_path / "a/up").symlink_to("..")
    (tmp_path / "a/here").symlink_to(".")
    (tmp_path / "a/other").symlink_to("../b")
    (tmp_path / "b/other").symlink_to(tmp_path / "a")
    (tmp_path / "itself.png").symlink_to("itself.png")
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "one.png").symlink_to("two.png")
    (tmp_path / "two.png").symlink_to("one.png")
    paths = found(tmp_path)
    assert {Path(path).name for path in paths} == {"x.png", "y.png", "itself.png", "one.png", "two.png"}
    assert len(paths) == 5  # each real folder once


def test_a_link_does_not_take_the_name_of_the_folder_that_it_leads_to(tmp_path):
    fill(tmp_path, "photos/z/x.png", "photos/b/deep/y.png", "elsewhere/v.png", "elsewhere/w/u.png")
    (tmp_path / "photos/a").symlink_to("z")
    (tmp_path / "photos/c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/a deep").symlink_to("b/deep")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "photos/z")
    assert found(tmp_path / "photos") == ["b/deep/y.png", "c/v.png", "c/w/u.png", "z/x.png"]
    (tmp_path / "root").symlink_to("photos")
    assert found(tmp_path / "root") == found(tmp_path / "photos")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_that_cannot_be_listed_is_an_entry_that_says_why(tmp_path, shut, scheme):
    fill(tmp_path, "a/x.png", "b/c/y.png", "b/z.png")
    shut(tmp_path / "b/c")
    source = Source(f"{scheme}{tmp_path}")
    assert [entry.path for entry in source.entries()] == ["a/x.png", "b/c/", "b/z.png"]
    with pytest.raises(opsin.InputError, match="b/c/ cannot be read: Permission denied"):
        source.read("b/c/")
    shut(tmp_path)
    with pytest.raises(opsin.InputError, match=f"{tmp_path} cannot be (read|listed): Permission denied"):
        list(source.entries())


def test_a_root_that_is_a_link_and_links_to_photos_are_followed(tmp_path):
    fill(tmp_path, "real/x.png", "elsewhere/y.png")
    (tmp_path / "real/link.png").symlink_to(tmp_path / "elsewhere/y.png")
    (tmp_path / "real/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root").symlink_to("real")
    assert found(tmp_path / "root") == ["link.png", "more/y.png", "x.png"]
    assert Source(tmp_path / "root").read("link.png") == (tmp_path / "elsewhere/y.png").read_bytes()


def test_a_broken_link_is_an_entry_that_cannot_be_read(tmp_path):
    fill(tmp_path, "a.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "gone").symlink_to("nowhere")
    source = Source(tmp_path)
    _, gone = source.entries()
    assert gone.path == "gone.png"
    with pytest.raises(opsin.InputError, match=r"gone\.png cannot be read: No such file"):
        source.read("gone.png")


def test_pipes_are_no_photos(tmp_path):
    fill(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")  # to read it would be to wait for ever
    (tmp_path / "link.png").symlink_to("/dev/zero")
    assert found(tmp_path) == ["a.png"]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_what_opsin_wrote_is_passed_over(tmp_path, scheme):
    image = nets.images(1)
    opsin.saliency(nets.model(nets.plain()), image, "beagle").save(tmp_path / "out/saliency")
    fill(tmp_path, "a.png", "data/b.png", "odd/c.png", "list/d.png", "made/assets/e.png", "kind/f.png")
    fill(tmp_path, ".opsin-killed/g.png")
    assert (tmp_path / "out/saliency/saliency-beagle.png").is_file()
    (tmp_path / "made/record.json").write_text(json.dumps({"kind": "Collection"}))
    (tmp_path / "data/record.json").write_text(json.dumps({"title": "not ours"}))
    (tmp_path / "kind/record.json").write_text(json.dumps({"kind": "a wedding"}))
    (tmp_path / "kind/manifest.json").write_text(json.dumps({"name": "of a web page"}))
    (tmp_path / "odd/record.json").write_bytes(b"\xff{")
    (tmp_path / "list/record.json").write_text("3")
    theirs = ["a.png", "data/b.png", "kind/f.png", "list/d.png", "odd/c.png"]
    assert sorted(found(f"{scheme}{tmp_path}")) == theirs
    assert found(f"{scheme}{tmp_path}/out/saliency") == [
        "saliency-beagle.png"
    ]  # unless it is what is asked for


def test_an_address_gives_the_same_entries_and_bytes_as_the_folder(tmp_path):
    fill(
        tmp_path, "b.png", "a/z.JPG", "c/10/x.png", "c/2/y.png", "notes.txt", *(f"odd/{name}" for name in ODD)
    )
    here, there = Source(tmp_path), Source(f"file://{tmp_path}")
    ours, theirs = ({e.path: e for e in source.entries()} for source in (here, there))
    assert len(ours) == 4 + len(ODD)
    assert ours.keys() == theirs.keys()
    for path, entry in ours.items():
        assert theirs[path].id == entry.id
        assert there.read(path) == here.read(path)
    assert [e.path for e in pickle.loads(pickle.dumps(there)).entries()] == list(theirs)


def test_a_change_below_an_address_is_seen(tmp_path):
    fill(tmp_path, "a.png")
    (old,) = Source(f"file://{tmp_path}").entries()
    os.utime(tmp_path / "a.png", (1, 1))
    (new,) = Source(f"file://{tmp_path}").entries()
    assert old.id == new.id
    assert old.version != new.version


def test_photos_in_memory_can_be_addressed():
    system = fsspec.filesystem("memory")
    system.pipe({"/photos/x/b.png": b"b", "/photos/a.png": b"aa", "/other/c.png": b"c"})
    source = Source("memory://photos/")
    assert [(e.path, source.read(e.path)) for e in source.entries()] == [("a.png", b"aa"), ("x/b.png", b"b")]
    with pytest.raises(opsin.InputError, match=r"gone\.png cannot be read"):
        source.read("gone.png")


@pytest.mark.parametrize("address", ["nosuch://bucket/photos", "hdfs2://a"])
def test_an_address_of_an_unknown_kind_is_told(address):
    with pytest.raises(opsin.InputError, match=f"{address} cannot be opened"):
        next(Source(address).entries())


def test_an_unknown_folder_is_told_with_the_nearest(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "other").mkdir()
    with pytest.raises(opsin.InputError, match=r"unknown folder '.*/photo'; nearest: .*photos"):
        Source(tmp_path / "photo")
    with pytest.raises(opsin.InputError, match="unknown folder"):
        Source(tmp_path / "neither/here")


def test_a_file_is_no_folder(tmp_path):
    fill(tmp_path, "a.png")
    with pytest.raises(opsin.InputError, match=r"a\.png is a file: pass the folder"):
        Source(tmp_path / "a.png")


def test_an_empty_folder_has_no_entries(tmp_path):
    assert found(tmp_path) == found(f"file://{tmp_path}") == []
    fill(tmp_path, "notes.txt")
    (tmp_path / "below").mkdir()
    assert found(tmp_path) == found(f"file://{tmp_path}") == []


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    fill(tmp_path, "a.png")
    source = Source(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(opsin.InputError, match=r"a\.png cannot be read: No such file"):
        source.read("a.png")


def test_a_root_has_one_name_whatever_dots_lead_to_it(tmp_path, monkeypatch):
    fill(tmp_path, "one/a.png", "two/b.png", "two/three/c.png")
    (tmp_path / "link").symlink_to("two/three")
    for path in ("two", "two/", "./two", "two/../two", "one/.././two/.", "two//"):
        assert Source(f"{tmp_path}/{path}").root == f"{tmp_path}/two"
    assert Source(tmp_path / "link").root == f"{tmp_path}/link"
    assert Source(f"{tmp_path}/link/..").root == f"{tmp_path}/two"  # where the link leads, and up
    monkeypatch.chdir(tmp_path / "one")
    assert Source("../two").root == f"{tmp_path}/two"


def test_a_relative_root_stays_the_same_folder(tmp_path, monkeypatch):
    fill(tmp_path, "photos/a.png")
    monkeypatch.chdir(tmp_path)
    source = Source("photos")
    monkeypatch.chdir("/")
    assert [e.path for e in source.entries()] == ["a.png"]
    assert source.root == str(tmp_path / "photos")
