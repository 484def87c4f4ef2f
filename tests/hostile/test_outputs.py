"""An output folder loses nothing that Opsin did not write, whatever it is and whatever happens."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

import opsin
from opsin.base.folders import RESCUED, WORKING, writing
from opsin.cli import watch

NET = """
import torch, opsin

def net():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(4, 5)).eval()
    return opsin.Model(network, mean=[0.5] * 3, std=[0.5] * 3, size=32, name="own")
"""
OWN = ("-m", "net.py:net")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    for name in ("a", "b"):
        Image.fromarray(data.cat()).resize((60, 40)).save(f"{name}.png")
    return tmp_path


def tree(folder="."):
    """Every file and folder below one, with its content; without what Python leaves."""
    paths = [path for path in Path(folder).rglob("*") if "__pycache__" not in path.parts]
    return {path: None if path.is_dir() else path.read_bytes() for path in sorted(paths)}


def saliency(call, out, *photos):
    return call("saliency", *(photos or ("a.png",)), *OWN, "-o", out)


# Folders of other people's, which look as if Opsin had written them.
FOREIGN = {
    "a record and photos named like pictures": {
        "record.json": "{}",
        "20240517.jpg": "holiday",
        "001.jpg": "x",
    },
    "a page": {"record.json": '{"kind": "Report"}', "index.html": "my page"},
    "a photo below": {"record.json": "{}", "sub/0042.jpg": "holiday"},
    "only numbered photos": {"001.jpg": "holiday"},
    "a manifest of another program": {"manifest.json": '{"name": "a web app"}', "001.jpg": "holiday"},
    "a manifest that lists nothing": {"manifest.json": '{"kind": "Manifest", "files": []}', "001.jpg": "x"},
    "a manifest with another hash": {
        "manifest.json": json.dumps({"kind": "Manifest", "files": [["001.jpg", "0" * 64]]}),
        "001.jpg": "holiday",
    },
    "a folder named like a working folder": {f"{WORKING}abc/holiday.jpg": "holiday"},
    "a folder with a lock, named like a working folder": {
        f"{WORKING}abc/lock": "",
        f"{WORKING}abc/holiday.jpg": "holiday",
    },
    "a working folder's lock in another folder": {
        f"{WORKING}abc/{WORKING}xyz.lock": "",
        f"{WORKING}abc/holiday.jpg": "holiday",
    },
    "a working folder whose lock says something": {f"{WORKING}abc/{WORKING}abc.lock": "my diary"},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_folder_of_somebody_elses_stays_as_it_is(here, call, kind):
    for name, text in FOREIGN[kind].items():
        path = Path("theirs", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    before = tree()
    code, out, err = saliency(call, "theirs")
    assert (code, out) == (2, "")
    assert "which Opsin did not write" in err
    assert "choose another output folder" in err
    assert tree() == before


def picture_in(folder):
    (picture,) = folder.glob("*.png")
    return picture


def linked(picture):
    picture.unlink()
    picture.symlink_to("values.npz")


@pytest.mark.parametrize(
    "add",
    [
        lambda out: (out / "notes.txt").write_text("mine"),
        lambda out: (out / "a.png" / "notes.txt").write_text("mine"),
        lambda out: (out / "mine").mkdir(),
        lambda out: picture_in(out / "a.png").write_text("edited"),
        lambda out: linked(picture_in(out / "a.png")),
        lambda out: (out / "record.json").write_text("{}"),
    ],
    ids=["a file", "a file below", "an empty folder", "an edited picture", "a link", "an edited record"],
)
def test_what_was_added_or_changed_in_a_result_stays(here, call, add):
    assert saliency(call, "out", "a.png", "b.png")[0] == 0
    add(Path("out"))
    before = tree()
    assert saliency(call, "out", "a.png", "b.png")[0] == 2
    assert tree() == before


def test_an_own_result_is_replaced_whole_and_nothing_of_it_is_left(here, call):
    assert saliency(call, "out", "a.png", "b.png")[0] == 0
    assert saliency(call, "fresh")[0] == 0
    assert saliency(call, "out")[0] == 0
    assert {path.relative_to("out") for path in tree("out")} == {
        path.relative_to("fresh") for path in tree("fresh")
    }
    assert opsin.Result.load("out") == opsin.Result.load("fresh")


def test_one_result_of_several_is_replaced_by_itself(here, call):
    climb = ("deepdream", "--layers", "0", "--steps", "1", "--octaves", "1", *OWN)
    assert call(*climb, "a.png", "b.png", "-o", "out")[0] == 0
    assert call("resume", "out/a.png", *OWN, "--steps", "2")[0] == 0
    assert len(opsin.Result.load("out/a.png").numbers["frame 1, octave 1"]) == 2
    assert call(*climb, "a.png", "-o", "out")[0] == 0


def test_several_results_are_resumed_together(here, call):
    climb = ("deepdream", "--layers", "0", "--octaves", "1", *OWN)
    assert call(*climb, "a.png", "b.png", "--steps", "2", "-o", "out")[0] == 0
    assert call("resume", "out", *OWN, "--steps", "3")[0] == 0
    assert call(*climb, "a.png", "b.png", "--steps", "3", "-o", "whole")[0] == 0
    for name in ("a.png", "b.png"):
        assert opsin.Result.load(f"out/{name}") == opsin.Result.load(f"whole/{name}")


def test_what_comes_into_the_folder_meanwhile_stays_and_the_result_is_kept_beside_it(tmp_path):
    out = tmp_path / "out"

    def work():
        with writing(out) as fresh:
            (fresh / "000.png").write_text("new")
            (out / "holiday.jpg").write_text("theirs")

    with pytest.raises(opsin.InputError, match=r"holiday\.jpg.*the result is in"):
        work()
    (rescued,) = out.glob(f"{RESCUED}*")
    assert (rescued / "000.png").read_text() == "new"
    assert (out / "holiday.jpg").read_text() == "theirs"


def test_the_folder_is_written_in_place_so_that_it_may_be_a_mount_point(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    number = out.stat().st_ino
    for text in ("first", "second"):
        with writing(out) as fresh:
            assert fresh.parent == out
            (fresh / "000.png").write_text(text)
    assert out.stat().st_ino == number
    assert (out / "000.png").read_text() == "second"
    assert sorted(path.name for path in out.iterdir()) == ["000.png", "manifest.json"]


def never():
    raise AssertionError("the work began")


@pytest.mark.parametrize(
    "out",
    ["file", "file/out", "n" * 256, "/proc/out", "loop", "nul\0", "dangling/out/x"],
    ids=[
        "a file",
        "below a file",
        "too long a name",
        "where nothing is written",
        "a circle",
        "a NUL",
        "a link",
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("/proc/nowhere")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(opsin.InputError), writing(out):
        never()
    assert sorted(tmp_path.iterdir()) == before


def test_a_link_to_a_folder_is_followed_and_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):
        with writing(tmp_path / "link") as fresh:
            (fresh / "000.png").write_text("x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "000.png").read_text() == "x"


def test_errors_of_the_work_are_not_taken_for_errors_of_writing(tmp_path):
    with pytest.raises(FileNotFoundError), writing(tmp_path / "out"):
        Path("nowhere/at/all").read_bytes()
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_is_said_and_leaves_the_old_result(here, call, monkeypatch):
    assert saliency(call, "out")[0] == 0
    before = tree("out")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    code, _, err = saliency(call, "out")
    assert code == 2
    assert "cannot write to out: No space left on device" in err
    assert tree("out") == before


def test_an_interrupt_while_files_take_their_place_comes_when_all_of_them_are_there(tmp_path, monkeypatch):
    out = tmp_path / "out"
    for text in ("first", "second"):
        with writing(out) as fresh:
            for index in range(5):
                (fresh / f"{index:03d}.png").write_text(text)
    replace, calls = Path.replace, []

    def interrupted(self, target):
        calls.append(target)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return replace(self, target)

    def work():
        with writing(out) as fresh:
            for index in range(5):
                (fresh / f"{index:03d}.png").write_text("third")
            monkeypatch.setattr(Path, "replace", interrupted)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert {path.read_text() for path in out.glob("*.png")} == {"third"}
    monkeypatch.undo()
    with writing(out) as fresh:
        (fresh / "000.png").write_text("fourth")
    assert sorted(path.name for path in out.iterdir()) == ["000.png", "manifest.json"]


@pytest.mark.parametrize("kills_at", range(1, 9))
def test_a_kill_while_files_take_their_place_leaves_a_folder_that_the_next_command_replaces(
    tmp_path, monkeypatch, kills_at
):
    class KilledError(BaseException):
        pass

    out = tmp_path / "out"
    with writing(out) as fresh:
        for name in ("000.png", "001.png", "old.png"):
            (fresh / name).write_text("old")
        (fresh / "below").mkdir()
        (fresh / "below" / "000.png").write_text("old")
    replace, calls = Path.replace, []

    def killed(self, target):
        calls.append(target)
        if len(calls) == kills_at:
            raise KilledError
        return replace(self, target)

    def work():
        with writing(out) as fresh:
            for name in ("000.png", "001.png", "new.png"):
                (fresh / name).write_text("new")
            (fresh / "below").mkdir()
            (fresh / "below" / "000.png").write_text("new")
            monkeypatch.setattr(Path, "replace", killed)
            monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # nor is anything tidied up

    with pytest.raises(KilledError):
        work()
    monkeypatch.undo()
    with writing(out) as fresh:
        (fresh / "last.png").write_text("last")
    assert sorted(path.name for path in out.iterdir()) == ["last.png", "manifest.json"]


# --- commands that are killed

KILLED = """
import sys
from opsin.cli import main
from opsin.cli import watch
watch.TELL_EVERY = 0.01
watch.CHECKPOINT_EVERY, watch.CHECKPOINT_SHARE = 0.05, 1
sys.argv = ["opsin", *sys.argv[1:]]
main.main()
"""


def killed(*words, when):
    """Run a command in a process of its own and kill it as soon as `when()` holds."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while not when():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)


CLIMB = ("class_model", "-t", "1", *OWN, "-o", "out")


def has_checkpoint(*names):
    return lambda: any(Path("out").glob("/".join([f"{WORKING}*", *names, "checkpoint-*"])))


def test_a_climb_that_is_killed_goes_on_to_the_same_bits(here, call):
    killed(*CLIMB, "--steps", "100000", when=has_checkpoint())
    (place,) = Path("out").iterdir()
    (kept,) = place.glob("checkpoint-*")
    steps = len(opsin.Result.load(kept).state["class model/scores"])
    wanted = str(steps + 3)
    assert call("resume", "out", *OWN, "--steps", wanted)[:2] == (0, "out\n")
    assert call(*CLIMB[:-1], "whole", "--steps", wanted)[0] == 0
    assert opsin.Result.load("out") == opsin.Result.load("whole")
    assert not list(Path("out").glob(f"{WORKING}*"))


def test_what_was_finished_before_the_kill_is_kept_and_what_was_not_begun_is_said(here, call):
    words = ("deepdream", "a.png", "b.png", "--layers", "0", "--octaves", "1", "--tile", "64", *OWN)
    killed(*words, "--steps", "300", "-o", "out", when=has_checkpoint("b.png"))
    assert call("resume", "out", *OWN, "--steps", "300", "-o", "on")[0] == 0
    assert call(*words, "--steps", "300", "-o", "whole")[0] == 0
    for name in ("a.png", "b.png"):
        assert opsin.Result.load(f"on/{name}") == opsin.Result.load(f"whole/{name}")


def test_what_was_not_begun_before_the_kill_is_said_by_who_goes_on(here, call):
    words = ("deepdream", "a.png", "b.png", "--layers", "0", "--octaves", "1", "--tile", "64", *OWN)
    killed(*words, "--steps", "100000", "-o", "out", when=has_checkpoint("a.png"))
    code, _, err = call("resume", "out", *OWN, "--steps", steps_of("a.png") + 1)
    assert code == 0
    assert "not begun: b.png; for these, run the command into another folder (-o)" in err
    assert call("resume", "out", *OWN)[2].count("not begun: b.png") == 1


def steps_of(name):
    (kept,) = Path("out").glob(f"{WORKING}*/{name}/checkpoint-*")
    return len(opsin.Result.load(kept).state["octave 1/scores"])


LINKS = {
    "a link to a file elsewhere": lambda path: path.symlink_to("/etc/hostname"),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "an endless file": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
}


@pytest.mark.parametrize("suffix", ["txt", "webp", "gif"])
@pytest.mark.parametrize("kind", LINKS)
def test_only_an_animation_of_its_own_is_taken_along_by_who_goes_on(here, call, kind, suffix):
    assert call(*CLIMB, "--steps", "2")[0] == 0
    LINKS[kind](Path("out", f"steps.{suffix}"))
    assert call("resume", "out", *OWN, "--steps", "3", "-o", "on")[0] == 0
    assert not list(Path("on").glob("steps.*"))


def test_an_animation_of_the_steps_before_is_taken_along(here, call):
    assert call(*CLIMB, "--steps", "3", "--every", "1")[0] == 0
    assert call("resume", "out", *OWN, "--steps", "4", "-o", "on")[0] == 0
    assert Path("on/steps.webp").read_bytes() == Path("out/steps.webp").read_bytes()


def nested(folder):
    """As many folders in each other as Python cannot walk down."""
    before = Path.cwd()
    Path(folder).mkdir()
    os.chdir(folder)
    for _ in range(1500):
        Path("a").mkdir()
        os.chdir("a")
    os.chdir(before)


def test_folders_too_deep_in_each_other_are_refused(here, call):
    nested("deep")
    for words in (("saliency", "a.png", *OWN, "-o", "deep"), ("scan", "deep", *OWN, "-o", "collection")):
        code, _, err = call(*words)
        assert code == 2
        assert "deep has folders nested too deeply" in err
    subprocess.run(["rm", "-rf", "deep"], check=True)


def test_a_recursion_of_the_work_itself_is_not_taken_for_deep_folders(tmp_path):
    with pytest.raises(RecursionError, match="of the network"), writing(tmp_path / "out"):
        raise RecursionError("of the network")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", [("saliency", "a.png"), ("scan", "."), ("gallery",), ("resume", "out"), ("explain", "a.png")]
)
def test_an_output_folder_without_a_name_is_refused(here, call, words):
    before = tree()
    code, _, err = call(*words, "-o", "")
    assert (code, tree()) == (2, before)
    assert "the name of the output folder is empty" in err


def test_a_photo_without_a_name_is_refused(here, call):
    assert call("saliency", "", *OWN)[0] == 2


def test_a_technique_that_is_named_twice_runs_once(here, call):
    once = ("--technique", "saliency")
    for out, chosen in (("once", once), ("twice", once * 2)):
        assert call("explain", "a.png", *OWN, *chosen, "-o", out)[0] == 0
    assert Path("twice/index.html").read_text("utf-8") == Path("once/index.html").read_text("utf-8")


def test_the_next_command_says_what_could_be_gone_on_with_and_removes_it_at_its_end(here, call):
    killed(*CLIMB, "--steps", "100000", when=has_checkpoint())
    code, out, err = call(*CLIMB, "--steps", "2")
    assert (code, out) == (0, "out\n")
    assert "was killed; `opsin resume out` would resume" in err
    assert not list(Path("out").glob(f"{WORKING}*"))


def test_a_folder_into_which_another_command_writes_is_left_alone(tmp_path):
    with writing(tmp_path / "out") as fresh:
        (fresh / "000.png").write_text("x")
        with (
            pytest.raises(opsin.InputError, match="another command is writing into"),
            writing(tmp_path / "out"),
        ):
            never()
    assert (tmp_path / "out" / "000.png").read_text() == "x"


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_climb(here, call, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(watch, "CHECKPOINT_EVERY", 0.0)
    monkeypatch.setattr(np, "savez", full)  # results are compressed, checkpoints are not
    code, out, err = call(*CLIMB, "--steps", "3")
    assert (code, out) == (0, "out\n")
    assert "opsin: no checkpoint could be written: No space left on device" in err
