import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

import opsin
from opsin import cli, registry

NET = """
import torch, opsin
from torch import nn

class Fails(nn.Module):
    def forward(self, x):
        raise ValueError("no luck")

def net():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU())
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))

def good():
    labels = ["red cat, tabby", "blue dog", "red dog", "green bird", "grey fish"]
    return opsin.Model(net(), mean=[0.5] * 3, std=[0.5] * 3, size=32, labels=labels, name="own")

def smooth():
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    body.append(nn.Linear(4, 5))
    return opsin.Model(body, mean=[0.5] * 3, std=[0.5] * 3, size=32)

def failing():
    return opsin.Model(Fails(), mean=[0.5] * 3, std=[0.5] * 3, size=32)

def nan():
    made = good()
    made.network[3].weight.data[0, 0] = float("nan")
    return made

def bare():
    return net()

def broken():
    raise KeyError("config")
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a photo and an own network, to work in."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    Image.fromarray(data.cat()).resize((90, 60)).save("photo.png")
    return tmp_path


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["opsin", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


OWN = ("-m", "net.py:good")


@pytest.mark.parametrize("name", registry.names())
def test_every_technique_is_a_command(here, call, name):
    photos = ["photo.png"] if registry.get(name).takes_images else []
    code, out, err = call(name, *photos, *OWN, "-o", "out")
    assert (code, out, err) == (0, "out\n", "")
    result = opsin.Result.load("out")
    assert result.record.technique == name
    assert result.record.model["name"] == "own"
    with Image.open("out/000.png") as picture:
        assert min(picture.size) >= 32


@pytest.mark.parametrize("name", registry.names())
def test_every_command_has_help(call, name):
    code, out, _ = call(name, "--help")
    assert code == 0
    for parameter in registry.get(name).parameters:
        assert f"--{parameter.replace('_', '-')}" in out


def test_settings_reach_the_technique(here, call):
    call("occlusion", "photo.png", *OWN, "--patch", "8", "--stride", "8", "-t", "blue dog", "-o", "out")
    record = opsin.Result.load("out").record
    assert record.arguments["target"] == "1 (blue dog)"
    assert (record.arguments["patch"], record.arguments["stride"]) == (8, 8)
    call("grad_cam", "photo.png", *OWN, "--no-relu", "-l", "0.3", "-o", "cam")
    record = opsin.Result.load("cam").record
    assert (record.arguments["relu"], record.arguments["layer"]) == (False, "0.3")


def test_several_photos_give_a_folder_each(here, call):
    Image.open("photo.png").rotate(180).save("other.png")
    assert call("saliency", "photo.png", "other.png", *OWN, "-o", "out")[0] == 0
    assert sorted(p.name for p in Path("out").iterdir()) == ["other.png", "photo.png", "record.json"]
    assert opsin.Result.load("out/photo.png") != opsin.Result.load("out/other.png")


def test_explain_writes_a_self_contained_page(here, call):
    code, out, err = call("explain", "photo.png", *OWN, "-o", "out")
    assert (code, out, err) == (0, "out/index.html\n", "")
    page = Path("out/index.html").read_text()
    assert "http" not in page.replace("https://cs.stanford.edu", "")
    assert 'src="data:image' in page
    cheap = [t.name for t in registry.techniques().values() if not t.dear]
    for name in cheap:
        assert f"<h3>{name}</h3>" in page
    for name in ("smooth_grad", "score_cam"):
        assert name not in cheap
        assert f"<dt>{name}</dt><dd>asked for by name only" in page
    assert opsin.Result.load("out/photo.png/grad_cam").record.technique == "grad_cam"


def test_explain_says_what_does_not_fit_the_network(here, call):
    assert call("explain", "photo.png", "-m", "net.py:smooth", "-o", "out")[0] == 0
    page = Path("out/index.html").read_text()
    assert "<dt>guided_backprop</dt><dd>the guided rule met no rectifier" in page
    assert "Silu" in page
    code, _, err = call(
        "explain", "photo.png", "-m", "net.py:smooth", "-o", "other", "--technique", "guided_backprop"
    )
    assert code == 2
    assert "met no rectifier" in err
    assert not Path("other").exists()


def test_nan_weights_are_said_in_the_result(here, call):
    assert call("explain", "photo.png", "-m", "net.py:nan", "-o", "out", "--technique", "saliency")[0] == 0
    assert "NaN" in Path("out/index.html").read_text()
    assert "NaN" in opsin.Result.load("out/photo.png/saliency").record.notes[0]


def test_names_that_are_folders_or_repeat_do_not_collide(here, call):
    Path("a").mkdir()
    Image.open("photo.png").save("a/photo.png")
    assert call("explain", "photo.png", "a/photo.png", *OWN, "--technique", "saliency", "-o", "out")[0] == 0
    assert sorted(p.name for p in Path("out").iterdir() if p.is_dir()) == ["photo.png", "photo.png (2)"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("explain missing.png", "unknown file 'missing.png'"),
        ("explain photo.pgn", "nearest: photo.png"),
        ("explain net.py", "not an image"),
        ("explain photo.png -m nosuch", "tf_efficientnet_lite0"),
        ("explain photo.png -m timm:resnet8", "nearest: resnet"),
        ("explain photo.png -m torchvision:resnet8", "nearest: resnet"),
        ("explain photo.png -m resnet18", "say timm:resnet18"),
        ("explain photo.png -m weights.pth", "no network"),
        ("explain photo.png -m net.py:god", "nearest: good"),
        ("explain photo.png -m nett.py:good", "nearest: net.py"),
        ("explain photo.png -m net.py:bare", "return opsin.Model"),
        ("explain photo.png -m net.py:broken", "KeyError: 'config'"),
        ("explain photo.png -m net.py:failing", "no luck"),
        ("explain photo.png -m net.py:good --weights net.py", "cannot be read as weights"),
        ("explain photo.png -m net.py:good --technique gradcam", "nearest: grad_cam"),
        ("explain photo.png -m net.py:good -l 0.33", "unknown layer '0.33'; nearest: 0.3"),
        ("grad_cam photo.png -m net.py:good -l 7.1", "unknown layer '7.1'"),
        ("grad_cam photo.png -m net.py:good -l 3", "no spatial extent"),
        ("saliency photo.png -m net.py:good -t dog", "ambiguous: 1 (blue dog), 2 (red dog)"),
        ("saliency photo.png -m net.py:good -t gren", "unknown class 'gren'; nearest: green bird"),
        ("saliency photo.png -m net.py:good -t 99", "classes 0 to 4"),
        ("saliency photo.png -m net.py:good -t 0.0:9", "channels 0 to 3, not 9"),
        ("saliency photo.png -m net.py:good -t 0.0:1@99,0", "outside layer '0.0', which is 15x15"),
        ("saliency photo.png -m net.py:good -t 0.9:1", "unknown layer '0.9'"),
        ("saliency photo.png -m net.py:good -t 0.0", "0.0:0"),
        ("occlusion photo.png -m net.py:good --patch 99", "larger than the image"),
        ("occlusion photo.png -m net.py:good --patch 0", "at least 1"),
        ("occlusion photo.png -m net.py:good --patch x", "not a valid integer"),
        ("occlusion photo.png -m net.py:good --patch 4 --stride 8", "skips pixels"),
        ("filters -m net.py:good --layer 3", "no convolution weights"),
        ("layers net.py:god", "nearest: good"),
        ("ocklusion photo.png", "nearest: occlusion"),
        ("saliency", "Missing argument"),
    ],
)
def test_bad_input_is_told_with_exit_code_2_and_nothing_written(here, call, words, said):
    before = sorted(here.rglob("*"))
    code, out, err = call(*words.split())
    assert code == 2
    assert said in err
    assert out == ""
    assert "Traceback" not in err
    assert [p for p in sorted(here.rglob("*")) if "__pycache__" not in str(p)] == before


def test_a_folder_of_somebody_elses_is_not_overwritten(here, call):
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years")
    code, _, err = call("saliency", "photo.png", *OWN, "-o", "mine")
    assert code == 2
    assert "choose another" in err
    assert Path("mine/thesis.txt").read_text() == "years"


def test_an_own_earlier_result_is_replaced(here, call):
    call("saliency", "photo.png", *OWN, "-o", "out")
    assert call("grad_cam", "photo.png", *OWN, "-o", "out")[0] == 0
    assert opsin.Result.load("out").record.technique == "grad_cam"


def test_an_output_folder_that_cannot_be_written_is_told(here, call):
    Path("file").write_text("")
    code, _, err = call("saliency", "photo.png", *OWN, "-o", "file/out")
    assert code == 2
    assert "cannot write to file/out" in err


def test_cancelling_leaves_nothing_behind(here, call, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("opsin.techniques.occlusion._spread", interrupted)
    before = sorted(here.iterdir())
    code, _, err = call("occlusion", "photo.png", *OWN, "-o", "out")
    assert code == 130
    assert "cancelled" in err
    assert [p for p in sorted(here.iterdir()) if p.name != "__pycache__"] == before


def test_layers_lists_a_model_and_explains_a_photo(here, call):
    code, out, _ = call("layers", "net.py:good")
    assert code == 0
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["0.0"] == ["0.0", "Conv2d", "4×15×15", "112", "3×3"]
    assert rows["3"] == ["3", "Linear", "5", "35"]
    assert "default layer for maps: 0" in out
    assert call("layers", "photo.png", *OWN, "-o", "out")[0] == 0
    assert opsin.Result.load("out").record.technique == "layers"


def test_the_lists(call):
    _, out, _ = call("techniques")
    assert all(name in out for name in registry.names())
    _, out, _ = call("models")
    assert "tf_efficientnet_lite0" in out
    _, out, _ = call("models", "torchvision")
    assert "torchvision:resnet50" in out.splitlines()


def test_help_does_not_import_torch():
    lines = ("import sys", "from opsin import cli", "sys.argv = ['opsin', '-h']", "cli.main()")
    script = "\n".join((*lines, "print('torch' in sys.modules)"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "grad_cam" in done.stdout


def test_record_is_json_that_others_can_read(here, call):
    call("saliency", "photo.png", *OWN, "-o", "out")
    record = json.loads(Path("out/record.json").read_text())["record"]
    assert record["paper"].startswith("Simonyan")
    assert len(record["model"]["sha256"]) == 64
    assert "torch" in record["versions"]
    with np.load("out/values.npz") as values:
        assert values["values"].shape == (1, 1, 32, 32)


def test_a_folder_that_only_looks_like_a_result_is_kept(here, call):
    Path("data").mkdir()
    Path("data/record.json").write_text("{}")
    Path("data/thesis.txt").write_text("years")
    assert call("saliency", "photo.png", *OWN, "-o", "data")[0] == 2
    assert Path("data/thesis.txt").read_text() == "years"


def test_a_failed_run_leaves_no_parent_folders(here, call):
    assert call("saliency", "missing.png", *OWN, "-o", "new/a/b")[0] == 2
    assert not Path("new").exists()


def test_listing_layers_refuses_what_it_would_ignore(here, call):
    code, _, err = call("layers", "net.py:good", "--tiles", "3")
    assert code == 2
    assert "tiles" in err


def test_a_channel_target_needs_no_layer(here, call):
    assert call("grad_cam", "photo.png", *OWN, "-t", "0.0:2", "-o", "out")[0] == 0
    assert opsin.Result.load("out").record.arguments["layer"] == "0.0"


def test_a_folder_of_several_results_names_them(here, call):
    call("explain", "photo.png", *OWN, "--technique", "saliency", "-o", "out")
    with pytest.raises(opsin.InputError, match=r"out/photo\.png/saliency"):
        opsin.Result.load("out")
