"""Files to images, in processes that may die. It does not import torch, as its workers import it."""

import hashlib
import io
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from opsin.collection.files import decoding as module
from opsin.collection.files.decoding import Cut, Decoded, Unread, decode, decoding
from opsin.collection.files.source import Source
from opsin.images.photos import fitted

CUT = Cut((16, 20), 0.875, "bicubic", False)


def noise(h, w, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8))


def photos(root, n, suffix="png"):
    for i in range(n):
        place = root / f"{i % 3}" / f"{i:03}.{suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        noise(16 + i % 5, 24 - i % 7, i).save(place)
    return Source(root)


def encoded(kind, **settings):
    data = io.BytesIO()
    noise(20, 20).save(data, kind, **settings)
    return data.getvalue()


def oddly_tagged():
    """A JPEG whose metadata give text where a number must be: Pillow raises TypeError or struct.error."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "hello"  # upright, description
    return encoded("JPEG", exif=exif).replace(b"\x01\x0e\x00\x02", b"\x01\x1e\x00\x02")  # its x position


def huge():
    """A PNG that says it is of 10^10 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 10**5, 10**5, 8, 2, 0, 0, 0)
    data = encoded("PNG")
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


BROKEN = {
    "empty.png": (b"", "is not an image"),
    "text.jpg": (b"hello", "is not an image"),
    "page.gif": (b"<html>not found</html>", "is not an image"),
    "cut.jpg": (encoded("JPEG")[:-200], "cannot be read"),
    "cut.png": (encoded("PNG")[:300], "cannot be read"),
    "head.webp": (encoded("WEBP")[:20], "cannot be read"),
    "tiny.png": (b"", "4x4 pixels"),
    "huge.png": (huge(), "too large"),
    "tagged.jpg": (oddly_tagged(), "cannot be read"),
}


def broken(root):
    """Broken files among good ones, and what is told of each."""
    for name, (data, _) in BROKEN.items():
        (root / name).write_bytes(data)
    noise(4, 4).save(root / "tiny.png")
    (root / "link.png").symlink_to("nowhere.png")
    return {name: why for name, (_, why) in BROKEN.items()} | {"link.png": "No such file"}


def plain(one):
    """What can be compared."""
    return one if isinstance(one, Unread) else (*one[:-1], one.pixels.tolist())


def slowly(source):
    return [plain(one) for one in decoding(source, source.entries(), CUT, 0)]


def children():
    return {child.pid: child for child in multiprocessing.active_children()}


def test_of_a_file_is_told_what_it_is(tmp_path):
    upright = Image.Exif()
    upright[0x0112] = 6  # to be turned by 90 degrees
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG"))
    noise(3, 5).resize((500, 300)).save(tmp_path / "b.jpg", exif=upright)
    noise(9, 3000).save(tmp_path / "c.png")
    noise(30, 40).convert("RGBA").save(tmp_path / "d.png")
    source = Source(tmp_path)
    found = list(decoding(source, source.entries(), CUT, 0))
    assert [(one.width, one.height) for one in found] == [(20, 20), (300, 500), (3000, 9), (40, 30)]
    for one, entry in zip(found, source.entries(), strict=True):
        data = (tmp_path / entry.path).read_bytes()
        assert one.entry == entry
        assert one.sha256 == hashlib.sha256(data).hexdigest()
        assert one.pixels.shape == (16, 20, 3)
        with Image.open(io.BytesIO(one.thumbnail)) as small:
            assert small.format == "JPEG"
            assert max(small.size) == min(160, max(one.width, one.height))
            ratio = one.width / one.height
            assert small.width / small.height == pytest.approx(ratio, rel=0.02) or min(small.size) == 1
    with Image.open(tmp_path / "b.jpg") as photo:
        turned = photo.transpose(Image.Transpose.ROTATE_270).convert("RGB")
    assert np.array_equal(found[1].pixels, fitted(turned, CUT))
    with Image.open(io.BytesIO(found[1].thumbnail)) as small:
        expected = np.asarray(turned.resize(small.size, Image.Resampling.BOX), np.float64)
        assert abs(np.asarray(small, np.float64) - expected).mean() < 2


def test_a_cut_is_the_model_s_own():
    frame = namedtuple("frame", [*Cut._fields, "other"])((8, 9), 0.5, "nearest", True, 1)
    assert Cut.of(frame) == ((8, 9), 0.5, "nearest", True)


def test_with_workers_all_is_as_without_and_broken_files_are_told(tmp_path):
    source = photos(tmp_path, 40)
    told = broken(tmp_path)
    alone = slowly(source)
    taken = []

    def entries():
        for entry in source.entries():
            taken.append(entry)
            yield entry

    before = children().keys()
    stream = decoding(source, entries(), CUT, 2)
    first = next(stream)
    assert len(taken) <= 2 * module.AHEAD * module.TASK
    assert len(children().keys() - before) == 2
    found = [plain(one) for one in (first, *stream)]
    assert children().keys() == before
    assert found == alone
    assert [e.path for e in taken] == [getattr(one, "path", None) or one[0].path for one in found]
    unread = {one.path: one.why for one in found if isinstance(one, Unread)}
    assert unread.keys() == told.keys()
    for path, why in told.items():
        assert why in unread[path]
        assert path in unread[path]
    assert len(found) == 40 + len(told)


@pytest.mark.parametrize(
    "error", [RuntimeError("no luck"), struct.error("odd"), KeyError("x"), MemoryError()]
)
def test_whatever_pillow_raises_the_file_alone_is_unread(tmp_path, monkeypatch, error):
    def failing(photo):
        calls.append(photo)
        if len(calls) == 2:
            raise error
        return real(photo)

    calls, real = [], ImageOps.exif_transpose
    monkeypatch.setattr(ImageOps, "exif_transpose", failing)
    source = photos(tmp_path, 3)
    found = list(decoding(source, source.entries(), CUT, 0))
    assert [type(one) for one in found] == [Decoded, Unread, Decoded]
    assert found[1].path == "1/001.png"
    assert "1/001.png" in found[1].why


def test_killed_workers_lose_nothing(tmp_path):
    source = photos(tmp_path, 130)
    before = children().keys()
    stream = decoding(source, source.entries(), CUT, 2)
    found = [next(stream) for _ in range(3)]
    for wait in (0, 1):  # at once, and when the death has been seen before more work is handed on
        workers = children().keys() - before
        assert workers
        for pid in list(workers)[: 1 + wait]:
            os.kill(pid, signal.SIGKILL)
        time.sleep(wait)
        found += [next(stream) for _ in range(5 * module.TASK)]
    found += stream
    assert [plain(one) for one in found] == slowly(source)
    assert children().keys() == before


class Deadly(Source):
    """A file that kills whoever reads it; another that takes its time."""

    def __reduce__(self):
        return Deadly, (self.root,)

    def read(self, path):
        if "kill" in path:
            os.kill(os.getpid(), signal.SIGKILL)
        if "slow" in path:
            time.sleep(0.3)
        return super().read(path)


def test_a_file_that_kills_each_worker_is_given_up_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RESTARTS", 0)
    monkeypatch.setattr(module, "TASK", 3)
    for name in ("0 slow", "1", "2", "3 kill", "4", "5"):
        noise(16, 16).save(tmp_path / f"{name}.png")
    source = Deadly(tmp_path)
    found = list(decoding(source, source.entries(), CUT, 2))
    assert [type(one) for one in found] == [Decoded] * 3 + [Unread] + [Decoded] * 2
    assert [one.entry.path for one in found if isinstance(one, Decoded)] == [
        *("0 slow.png", "1.png", "2.png", "4.png", "5.png")
    ]
    assert found[3].path == "3 kill.png"
    assert "3 kill.png" in found[3].why
    assert "crashes" in found[3].why


def test_workers_are_gone_when_the_work_is_left(tmp_path):
    source = photos(tmp_path, 60)
    before = children().keys()
    stream = decoding(source, source.entries(), CUT, 2)
    next(stream)
    pids = children().keys() - before
    assert len(pids) == 2
    stream.close()
    assert children().keys() == before
    assert not any(map(alive, pids))

    def failing():
        yield from list(source.entries())[:3]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(decoding(source, failing(), CUT, 1))
    assert children().keys() == before


def alive(pid):
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


ORPHANS = """
import multiprocessing, sys, time
from opsin.collection.files.decoding import Cut
from opsin.collection.files.decoding import decoding
from opsin.collection.files.source import Source

if __name__ == "__main__":
    source = Source(sys.argv[1])
    stream = decoding(source, source.entries(), Cut((16, 16), 1.0, "bicubic", False), 2)
    next(stream)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_workers_are_gone_when_their_parent_was_killed(tmp_path):
    photos(tmp_path / "photos", 60)
    (tmp_path / "main.py").write_text(ORPHANS)
    command = [sys.executable, tmp_path / "main.py", tmp_path / "photos"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        pids = list(map(int, parent.stdout.readline().split()))
        assert len(pids) == 2
        assert all(map(alive, pids))
        parent.kill()
    end = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(map(alive, pids))


def test_workers_do_not_import_torch():
    script = "import sys, opsin.collection.files.decoding; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_source_that_is_gone_makes_every_file_unread(tmp_path):
    source = photos(tmp_path / "photos", 3)
    entries = list(source.entries())
    (tmp_path / "photos").rename(tmp_path / "moved")
    assert [one.why for one in decode(source, entries, CUT)] == [
        f"{e.path} cannot be read: No such file or directory" for e in entries
    ]
