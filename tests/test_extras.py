"""What needs a package of an extra says what to install; the rest works without."""

import subprocess
import sys

import pytest

WITHOUT = """
import sys
for package in sys.argv[1].split(","):
    sys.modules[package] = None
from opsin.cli.main import main
sys.argv = ["opsin", *sys.argv[2:]]
main()
"""
NET = """
import torch, opsin

def net():
    nn = torch.nn
    chain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 5))
    return opsin.Model(chain, mean=[0.5] * 3, std=[0.2] * 3, size=16)
"""
EXTRAS = "matplotlib,lance,pyarrow,sklearn,skimage,onnx,fsspec,threadpoolctl"


@pytest.fixture
def here(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "photos").mkdir()
    for number in range(4):
        Image.new("RGB", (20, 20), (60 * number, 100, 20)).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path


def without(packages, *words):
    command = [sys.executable, "-c", WITHOUT, packages, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("package", "words", "name"),
    [
        ("lance", ("scan", "photos", "-m", "net.py:net"), "collection"),
        ("pyarrow", ("map", "photos"), "collection"),
        ("sklearn", ("facets", "photos", "-m", "net.py:net", "--steps", "1"), "collection"),
        ("skimage", ("gallery",), "gallery"),
    ],
)
def test_a_command_whose_package_is_missing_says_what_to_install(here, package, words, name):
    code, err = without(package, *words)
    assert code == 2
    assert err.startswith("opsin: this needs an extra: ")
    assert f"pip install 'opsin[{name}]'" in err
    assert err.count("\n") == 1


def test_photos_are_explained_without_any_extra(here):
    code, err = without(EXTRAS, "explain", "photos", "-m", "net.py:net", "--technique", "grad_cam")
    assert (code, err) == (0, "")
    assert (here / "explain/index.html").is_file()


def test_plotting_says_what_to_install(monkeypatch):
    import torch

    import opsin

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    heat = opsin.Heatmap(torch.ones(1, 1, 4, 4), torch.ones(1, 3, 4, 4), signed=True, overlay=False)
    with pytest.raises(opsin.InputError, match=r"opsin\[plot\]"):
        heat.plot()


def test_converting_vgg_says_what_to_install(monkeypatch):
    import opsin
    from opsin.zoo import vgg

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(opsin.InputError, match=r"opsin\[vgg\]"):
        vgg._converted(b"")
