"""Whatever a file is that is given for a photo: it is read, or refused in one line, and nothing hangs."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

import nets
import opsin
from hostile import photos
from opsin.collection.files.source import Source
from opsin.images.photos import LARGEST_FILE_VARIABLE, as_photo, folder_photos, open_photo

pytestmark = pytest.mark.filterwarnings("ignore:lance is not fork-safe")


HANGS = 120  # seconds after which a test is given up: it waits for a pipe
MEMORY = 8 * 2**30  # bytes of address space of a process that may read without end
MODEL = nets.model(nets.plain())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return photos.make(tmp_path_factory.mktemp("hostile") / "photos")


@pytest.fixture(autouse=True)
def _given_up():
    """Let a test that waits without end fail."""

    def give_up(*_):
        raise TimeoutError(f"still waiting after {HANGS} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(HANGS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def opsin_command(*words, **settings):
    """The command line in a process of its own, which cannot fill the memory: (exit code, stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, "-c", "from opsin.cli.main import main; main()", *map(str, words)],
        capture_output=True, text=True, timeout=HANGS, check=False, stdin=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)), **settings,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def is_one_line(stderr):
    return stderr.startswith("opsin: ") and stderr.count("\n") == 1 and stderr.endswith("\n")


@pytest.mark.parametrize("name", photos.READ)
def test_odd_photos_are_read(corpus, name):
    photo = open_photo(corpus[name])
    assert photo.mode == "RGB"
    assert min(photo.size) >= 8


@pytest.mark.parametrize("name", photos.REFUSED)
def test_what_is_no_photo_is_refused_by_name(corpus, name):
    with pytest.raises(opsin.InputError, match=photos.REFUSED[name][0]) as caught:
        open_photo(corpus[name])
    assert str(corpus[name]) in str(caught.value)


def test_pipes_devices_sockets_and_folders_are_refused_and_not_waited_for(corpus):
    script = """
import sys
from opsin.base.errors import InputError
from opsin.images.photos import open_photo
for path in sys.argv[1:]:
    try:
        open_photo(path)
    except InputError as error:
        print(error)
"""
    paths = [str(corpus[name]) for name in photos.SPECIAL]
    done = subprocess.run(
        [sys.executable, "-c", script, *paths, "/dev/stdin"],
        capture_output=True, text=True, timeout=HANGS, check=True, stdin=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    )  # fmt: skip
    kinds = ["a folder", "a pipe", "a pipe", "it is a socket", "a device", "a device", "a device", "a pipe"]
    for line, path, kind in zip(done.stdout.splitlines(), [*paths, "/dev/stdin"], kinds, strict=True):
        assert line.startswith(path)
        assert kind in line


@pytest.mark.parametrize("command", ["explain", "grad_cam", "deepdream"])
def test_a_command_refuses_a_pipe_and_a_device(corpus, tmp_path, command):
    for name in ("pipe.jpg", "zeros.jpg"):
        code, out, err = opsin_command(command, corpus[name], "-o", tmp_path / "out")
        assert (code, out) == (2, "")
        assert is_one_line(err)
        assert "not a regular file" in err
    assert not list(tmp_path.iterdir())


def test_a_style_and_a_guide_may_not_be_pipes(call, corpus, tmp_path):
    photo, pipe = corpus["exif1.jpg"], corpus["pipe.jpg"]
    for words in (("style_transfer", photo, "--style", pipe), ("deepdream", photo, "--guide", pipe)):
        code, _, err = call(*words, "-o", tmp_path / "out")
        assert code == 2
        assert "is a pipe, not a regular file" in err


def test_of_a_folder_pipes_devices_and_folders_are_passed_over(corpus, tmp_path):
    found = [path.name for path in folder_photos(corpus["pipe.jpg"].parent)]
    suffixes = (".jp2", ".ico")  # which a folder is not searched for
    assert found == sorted(n for n in photos.READ | photos.REFUSED if not n.endswith(suffixes))


def test_a_folder_of_pipes_alone_holds_no_images_and_says_so(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "below.png").mkdir()
    with pytest.raises(opsin.InputError, match=r"without images .*; no regular files: below\.png, pipe\.png"):
        folder_photos(tmp_path)


def test_a_folder_with_a_pipe_in_it_is_explained(call, corpus, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(corpus["exif1.jpg"], folder / "photo.jpg")
    os.mkfifo(folder / "pipe.jpg")
    code, _, err = call("saliency", folder, "-o", tmp_path / "out")
    assert (code, err) == (0, "")
    assert len(list((tmp_path / "out").glob("saliency-*.png"))) == 1


def test_a_folder_that_cannot_be_listed_is_told(tmp_path, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(opsin.InputError, match="cannot be listed: Permission denied"):
        folder_photos(tmp_path)


@pytest.mark.parametrize("path", ["x" * 5000, "photo\0.jpg", "nowhere/" * 600 + "photo.jpg"])
def test_a_name_that_no_file_can_have_is_an_unknown_file(path):
    for open_it in (open_photo, lambda path: [open_photo(one) for one in folder_photos(path)]):
        with pytest.raises(opsin.InputError, match="unknown file") as caught:
            open_it(path)
        assert len(str(caught.value)) < 1000
    with pytest.raises(opsin.InputError, match="unknown folder"):
        Source(path)


def test_the_largest_file_may_be_set_in_the_environment(corpus, monkeypatch):
    size = corpus["exif1.jpg"].stat().st_size
    monkeypatch.setenv(LARGEST_FILE_VARIABLE, str(size))
    open_photo(corpus["exif1.jpg"])
    source = Source(corpus["exif1.jpg"].parent)
    assert len(source.read("exif1.jpg")) == size
    monkeypatch.setenv(LARGEST_FILE_VARIABLE, str(size - 1))
    for read in (open_photo, lambda path: source.read(Path(path).name)):
        with pytest.raises(opsin.InputError, match=r"exif1\.jpg is larger than .*OPSIN_LARGEST_FILE"):
            read(corpus["exif1.jpg"])


@pytest.mark.parametrize("said", ["", "0", "-1", "1.5", "many", "9" * 5000])
def test_a_largest_file_that_is_no_number_of_bytes_is_told(corpus, monkeypatch, said):
    monkeypatch.setenv(LARGEST_FILE_VARIABLE, said)
    with pytest.raises(opsin.InputError, match="OPSIN_LARGEST_FILE must be a number of bytes"):
        open_photo(corpus["exif1.jpg"])


def test_postscript_is_not_run_whatever_the_file_is_called(corpus, monkeypatch):
    def run(*_, **__):
        raise AssertionError("Ghostscript was asked")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    with pytest.raises(opsin.InputError, match="EPS, a program that is not run"):
        open_photo(corpus["postscript.jpg"])


def test_postscript_that_pillow_has_opened_is_not_run(corpus, monkeypatch):
    def run(*_, **__):
        raise AssertionError("Ghostscript was asked")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    with (
        Image.open(corpus["postscript.jpg"]) as program,
        pytest.raises(opsin.InputError, match="EPS, a program that is not run"),
    ):
        as_photo(program)


def test_an_image_that_pillow_opened_but_cannot_decode_is_told(corpus):
    with (
        Image.open(corpus["half.jpg"]) as half,
        pytest.raises(opsin.InputError, match=r"half\.jpg cannot be read"),
    ):
        as_photo(half)


class Endless:
    """A file without an end."""

    def __init__(self, piece):
        self.piece, self.given = piece, 0

    def read(self, _size=-1):
        self.given += len(self.piece)
        return self.piece


def test_a_file_object_without_end_is_read_up_to_the_largest_file(monkeypatch):
    monkeypatch.setenv(LARGEST_FILE_VARIABLE, "1000")
    endless = Endless(bytes(100))
    with pytest.raises(opsin.InputError, match=r"the file object is larger than .*OPSIN_LARGEST_FILE"):
        as_photo(endless)
    assert endless.given == 1100
    with pytest.raises(opsin.InputError, match=r"given as bytes is larger than .*OPSIN_LARGEST_FILE"):
        as_photo(bytes(1001))


@pytest.mark.parametrize("given", [None, 3, [b"a"]])
def test_a_file_object_that_gives_no_bytes_is_told(given):
    class Odd:
        name = "odd.jpg"

        def read(self, _size=-1):
            return given

    with pytest.raises(opsin.InputError, match=r"odd\.jpg must give bytes, not"):
        as_photo(Odd())


def test_a_standard_input_without_end_is_read_up_to_the_largest_file(tmp_path):
    with Path("/dev/zero").open("rb") as zeros:
        done = subprocess.run(
            [sys.executable, "-c", "from opsin.cli.main import main; main()", "explain", "-"],
            capture_output=True, text=True, timeout=HANGS, check=False, stdin=zeros, cwd=tmp_path,
            env=os.environ | {LARGEST_FILE_VARIABLE: "1000000"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
        )  # fmt: skip
    assert done.returncode == 2
    assert is_one_line(done.stderr)
    assert "stdin is larger than" in done.stderr


def test_greys_that_no_photo_has_name_what_was_found(corpus):
    with pytest.raises(opsin.InputError, match="10,000 of 10,000 of them negative or not finite"):
        open_photo(corpus["all nan.tif"])
    with pytest.raises(opsin.InputError, match=r"1 of 400 of them negative .*: a photo's must be finite"):
        open_photo(corpus["one negative.tif"])


def test_a_photo_of_zeros_is_black_and_a_large_range_keeps_its_slope(corpus):
    assert open_photo(corpus["float of zeros.tif"]).getextrema() == ((0, 0),) * 3
    slope = np.asarray(open_photo(corpus["float to 6.5e13.tif"]))[..., 0].ravel()
    np.testing.assert_allclose(slope, np.linspace(0, 255, 100 * 100), atol=0.51)


@pytest.fixture(scope="module", params=["folder", "address"])
def scanned(request, corpus, tmp_path_factory):
    folder = corpus["pipe.jpg"].parent
    root = folder if request.param == "folder" else f"file://{folder}"
    return opsin.scan(root, MODEL, tmp_path_factory.mktemp("scan") / "collection", workers=1)


def test_a_scan_takes_in_what_is_a_photo_and_says_what_is_not(scanned):
    searched = {os.fsencode(name).decode("utf-8", "backslashreplace") for name in photos.READ}
    searched = {name for name in searched if not name.endswith((".jp2", ".ico"))}
    assert len(scanned) == len(searched)
    unread = scanned.unread()
    assert unread.keys() >= photos.REFUSED.keys()
    assert unread.keys() <= photos.REFUSED.keys() | photos.SPECIAL.keys()
    for name, why in unread.items():
        assert name in why


def test_a_scan_keeps_why_greys_were_not_read(scanned):
    unread = scanned.unread()
    assert "holds greys from nan" in unread["nan.tif"]
    assert "holds greys from -65535 to 0" in unread["negative integers.tif"]
    assert "holds greys from 0.5 to inf" in unread["infinite.tif"]


def test_a_pipe_in_place_of_a_record_is_not_waited_for(tmp_path):
    below = tmp_path / "photos/below"
    below.mkdir(parents=True)
    os.mkfifo(below / "record.json")
    Image.new("RGB", (20, 20)).save(below / "photo.png")
    for root in (tmp_path / "photos", f"file://{tmp_path}/photos"):
        assert [entry.path for entry in Source(root).entries()] == ["below/photo.png"]


def test_labels_are_read_from_a_regular_file(call, corpus, tmp_path):
    os.mkfifo(tmp_path / "labels.csv")
    for table in (tmp_path / "labels.csv", "/dev/zero", tmp_path):
        with pytest.raises(opsin.InputError, match="not a regular file"):
            opsin.scan(corpus["pipe.jpg"].parent, MODEL, tmp_path / "collection", labels=table)
