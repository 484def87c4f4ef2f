"""A scan on Ray gives the collection that a scan without it gives, whatever dies meanwhile."""

import os
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import nets
import opsin
from opsin.collection.scan import ray_engine, scanning

import ray  # isort: skip (as `ray_engine` imports it: with its log turned down)
import psutil  # isort: skip (comes with Ray)

MODEL = nets.model(nets.plain())
LAYERS = ("conv2", "flat")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")  # it warns of itself

NET = """
import torch
from torch import nn

import helper
import opsin

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))

def net():
    torch.manual_seed(0)
    return opsin.Model(Own(), mean=[0.5] * 3, std=[helper.STD] * 3, size=16)
"""


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Ray on this machine, once."""
    paths = os.pathsep.join([str(Path(nets.__file__).parent), os.environ.get("PYTHONPATH", "")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            object_store_memory=100 * 2**20,
            runtime_env={"env_vars": {"PYTHONPATH": paths}},
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for i in range(45):
        place = root / ("", "cats", "dogs")[i % 3] / f"{i:03}.png"
        place.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (18 + i % 7, 24, 3), np.uint8)
        Image.fromarray(pixels).save(place)
    (root / "broken.png").write_text("no")
    (root / "cats/broken.png").write_text("no")
    return root


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory):
    """The collection of a scan without Ray."""
    return opsin.scan(root, MODEL, tmp_path_factory.mktemp("alone") / "out", layers=LAYERS, workers=0)


def scan(root, place, model=MODEL, layers=LAYERS, **settings):
    return opsin.scan(root, model, place, layers=layers, engine="ray", **{"workers": 2, **settings})


def rows(made):
    return sorted(made.rows(range(len(made))), key=lambda row: row.id)


def same(one, other):
    """Two collections, each scanned in an order of its own."""
    ours, theirs = rows(one), rows(other)
    assert [row.path for row in ours] == [row.path for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.probabilities, b.probabilities, rtol=1e-5)
        assert {**vars(a), "probabilities": ()} == {**vars(b), "probabilities": ()}
    for about in one.about.layers:
        found = [made.features(about.name)[made.ids().argsort()] for made in (one, other)]
        np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)
        ours, theirs = one.tally(about.name), other.tally(about.name)
        assert torch.equal(ours.ids, theirs.ids)
        assert torch.equal(ours.places, theirs.places)
        assert (ours.count, ours.images) == (theirs.count, theirs.images)
        for name in ("values", "sums", "squares", "active"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-5, atol=1e-5)
    assert one.unread() == other.unread()


def test_ray_gives_an_equal_collection(root, alone, tmp_path):
    told = []
    with opsin.listening(told.append):
        made = scan(root, tmp_path / "out")
    same(made, alone)
    assert len(made.chunks()) >= 4  # each of two workers has something to do
    assert made.unread().keys() == {"broken.png", "cats/broken.png"}
    assert (told[-1].label, told[-1].done, told[-1].total) == ("scan", 47, 47)
    assert ray.is_initialized()  # a cluster that was there is left


@pytest.mark.thorough
def test_a_scan_is_taken_over_from_one_engine_by_the_other(root, alone, tmp_path):
    def listen(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), opsin.listening(listen):
        scan(root, tmp_path / "out")
    part = opsin.Collection(tmp_path / "out")
    assert 0 < len(part) < 45  # what had come back is kept
    kept = set(part.chunks())
    made = opsin.scan(root, MODEL, tmp_path / "out", layers=LAYERS, workers=0)
    assert kept < made.chunks()
    same(made, alone)


def networks():
    """The processes that hold a network."""
    found = []
    for child in psutil.process_iter(["name", "cmdline"]):
        words = " ".join([child.info["name"] or "", *(child.info["cmdline"] or [])])
        ours = any(parent.pid == os.getpid() for parent in child.parents())
        if ours and "MapWorker" in words and "IDLE" not in words:
            found.append(child)
    return found


def test_a_network_that_is_killed_loses_nothing(root, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(scanning, "LEAST_CHUNK", 2)
    monkeypatch.setattr(scanning, "MOST_CHUNK", 2)
    killed = []

    def listen(_):
        if not killed:
            one = networks()[0]
            killed.append(one.pid)
            os.kill(one.pid, signal.SIGKILL)

    with opsin.listening(listen):
        made = scan(root, tmp_path / "out")
    assert len(killed) == 1
    assert not psutil.pid_exists(killed[0]) or psutil.Process(killed[0]).status() == "zombie"
    same(made, alone)


@pytest.mark.thorough
def test_a_network_of_the_user_s_own_file_travels(root, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/net.py").write_text(NET)
    (tmp_path / "own/helper.py").write_text("STD = 0.5\n")
    model = opsin.load(f"{tmp_path}/own/net.py:net")
    made = scan(root / "cats", tmp_path / "ray", model, None)
    same(made, opsin.scan(root / "cats", model, tmp_path / "alone", workers=0))
    (root / "cats/broken.png").unlink()  # nothing is left to do
    chunks, told = made.chunks(), []
    with opsin.listening(told.append):
        made = scan(root / "cats", tmp_path / "ray", model, None)
    assert (made.chunks(), told, made.unread()) == (chunks, [], {})
    (root / "cats/broken.png").write_text("no")


@pytest.mark.thorough
def test_an_address_is_read_by_the_workers_round_by_round(root, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "ROUND", 1)
    same(scan(f"file://{root}", tmp_path / "out", workers=1), alone)
