import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

import opsin
from opsin.cli import watch
from opsin.cli.options import sentence
from opsin.cli.signals import handling
from opsin.registry import catalogue

NET = """
import time, torch, opsin
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

class Slow(nn.Module):
    def forward(self, x):
        time.sleep(0.01 * len(x))
        return x.mean((2, 3))

def slow():
    return opsin.Model(Slow(), mean=[0.5] * 3, std=[0.5] * 3, size=32)

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

def few_labels():
    return opsin.Model(net(), mean=[0.5] * 3, std=[0.5] * 3, size=32, labels=["cat"], name="own")

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
    photo = Image.fromarray(data.cat()).resize((90, 60))
    photo.save("photo.png")
    photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save("flipped.png")
    photo.rotate(180).save("turned.png")
    return tmp_path


OWN = ("-m", "net.py:good")


# What a technique cannot do without, and what makes its pictures small
GIVEN = {
    "class_model": "-t blue.dog",
    "feature_visualization": "-t blue.dog",
    "facets": "flipped.png turned.png --clusters 2",
    "unrecognisable": "-t blue.dog",
    "texture": "--size 32 --source 64",
    "efros_leung": "--size 32 --source 48",
    "portilla_simoncelli": "--size 32 --source 48 --scales 1",
    "style_transfer": "--style flipped.png --size 32",
}


def words(name, steps=2):
    """The command of a technique, on the own network, with as little work as possible."""
    technique = catalogue.get(name)
    photo = ["photo.png"] if technique.takes_images else []
    few = ["--steps", str(steps)] if "steps" in technique.parameters else []
    given = [word.replace(".dog", " dog") for word in GIVEN.get(name, "").split()]
    own = OWN if technique.takes_model else ()
    return [name, *photo, *given, *(few if technique.iterative else []), *own]


@pytest.mark.parametrize("name", catalogue.names())
def test_every_technique_is_a_command(here, call, name):
    code, out, err = call(*words(name), "-o", "out")
    assert (code, out, err) == (0, "out\n", "")
    result = opsin.Result.load("out")
    assert result.record.technique == name
    assert result.record.model.get("name") == ("own" if catalogue.get(name).takes_model else None)
    assert Path("out", result.files()[0][0]).is_file()
    for path in Path("out").glob("*.png"):
        with Image.open(path) as picture:
            assert max(picture.size) >= 32


@pytest.mark.parametrize("name", catalogue.names())
def test_every_command_has_help(call, name):
    code, out, _ = call(name, "--help")
    assert code == 0
    for parameter in catalogue.get(name).parameters:
        assert f"--{parameter.replace('_', '-')}" in out
    assert ("--model" in out) == ("--weights" in out) == catalogue.get(name).takes_model


def test_a_technique_without_a_network_loads_none_and_takes_none(here, call, monkeypatch):
    monkeypatch.setattr("opsin.zoo.by_name.load", None)
    assert call("random_phase", "photo.png", "--size", "32", "-o", "out")[0] == 0
    code, _, err = call("random_phase", "photo.png", *OWN, "-o", "out")
    assert code == 2
    assert "No such option" in err
    rows = json.loads(call("techniques", "--json")[1])
    assert next(row for row in rows if row["name"] == "random_phase")["passes"] == 0


def test_explain_runs_a_technique_without_a_network_once_and_only_by_name(here, call):
    call("compare", "photo.png", *OWN, "-l", "0", "-l", "0.3", "--technique", "random_phase", "-o", "out")
    records = list(Path("out/photo.png").glob("random_phase*/record.json"))
    assert len(records) == 1


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
    assert sorted(p.name for p in Path("out").iterdir()) == [
        "manifest.json",
        "other.png",
        "photo.png",
        "record.json",
    ]
    assert opsin.Result.load("out/photo.png") != opsin.Result.load("out/other.png")


def test_each_photo_may_have_its_own_target(here, call):
    photos = ("photo.png", "flipped.png", *OWN, "-t", "blue dog; red dog")
    assert call("saliency", *photos, "-o", "out")[0] == 0
    found = [json.loads(path.read_text()) for path in sorted(Path("out").rglob("record.json"))]
    targets = [one["record"]["arguments"]["target"] for one in found if "record" in one]
    assert sorted(targets) == ["1 (blue dog)", "2 (red dog)"]


def test_explain_writes_a_self_contained_page(here, call):
    code, out, err = call("explain", "photo.png", *OWN, "-o", "out")
    assert (code, out, err) == (0, "out/index.html\n", "")
    page = Path("out/index.html").read_text()
    assert "http" not in page.replace("https://cs.stanford.edu", "")
    assert 'src="data:image' in page
    for technique in catalogue.techniques().values():
        if technique.expensive:
            assert f"<dt>{technique.name}</dt><dd>" in page
        elif technique.name != "layers":
            assert f"<b>{technique.title}</b>" in page
    assert "Every layer for" in page
    with pytest.raises(opsin.InputError, match="explain --values"):
        opsin.Result.load("out/photo.png/grad_cam")
    assert call("explain", "photo.png", *OWN, "--values", "-o", "out")[0] == 0
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
    assert "NaN" in json.loads(Path("out/photo.png/saliency/record.json").read_text())["record"]["notes"][0]


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
        ("explain photo.png -m nosuch", "efficientnet_lite0"),
        ("explain photo.png -m timm:resnet8", "nearest: resnet"),
        ("explain photo.png -m torchvision:resnet8", "nearest: resnet"),
        ("explain photo.png -m resnet18", "write timm:resnet18"),
        ("explain photo.png -m weights.pth", "no network"),
        ("explain photo.png -m net.py:god", "nearest: good"),
        ("explain photo.png -m nett.py:good", "nearest: net.py"),
        ("explain photo.png -m net.py:bare", "return opsin.Model"),
        ("explain photo.png -m net.py:broken", "KeyError: 'config'"),
        ("explain photo.png -m net.py:failing", "no luck"),
        ("explain photo.png -m net.py:good --weights net.py", "cannot be read as weights"),
        ("explain photo.png -m net.py:good --technique gradcam", "nearest: grad_cam"),
        ("explain photo.png -m net.py:good --technique class_model", "class_model needs a target"),
        ("explain photo.png -m net.py:good --technique style_transfer", "style_transfer needs a style"),
        ("explain photo.png -m net.py:good -t gren", "unknown class 'gren'; nearest: green bird"),
        ("explain photo.png -m net.py:good -t 99", "classes 0 to 4"),
        ("explain photo.png -m net.py:good -t -1", "a class index is a whole number from 0 to 4"),
        ("saliency photo.png -m net.py:good -t -1", "a class index is a whole number from 0 to 4"),
        ("explain photo.png -m net.py:few_labels", "own has 5 classes, and the number of labels is 1"),
        ("explain https://example.org/cat.jpg", "https://example.org/cat.jpg is a web address"),
        ("saliency http://example.org", "http://example.org is a web address"),
        ("style_transfer photo.png -m net.py:good --style https://example.org/a.png", "is a web address"),
        ("explain photo.png -m net.py:good --classes 3", "leave out classes"),
        ("saliency photo.png -m net.py:good --mean 0.5,0.5,0.5 --size 3", "leave out mean and size"),
        ("explain photo.png -m net.py:good --mean 0.5,0.5", "must be 3 numbers, with commas between them"),
        ("explain photo.png -m net.py:good --std a,b,c", "must be 3 numbers"),
        ("explain photo.png -m net.py:good --size 1,2,3", "must be 1 or 2 numbers"),
        ("explain photo.png -m net.py:good --size 1.5", "must be 1 or 2 numbers"),
        ("explain photo.png -m net.py:good --classes 0", "'--classes'"),
        ("explain photo.png -m net.py:good --labels names.txt", "unknown file of class names"),
        ("texture photo.png -m net.py:good --input-size 32", "leave out size"),
        ("layers net.py:good --classes 3", "leave out classes"),
        ("explain photo.png -m net.py:good -t 0.0:9", "channels 0 to 3, not 9"),
        (
            "saliency photo.png -m net.py:good -t 1;2",
            "2 targets for 1 image: give one for all, or one per image; `explain` shows several",
        ),
        ("saliency photo.png flipped.png -m net.py:good -t 1;2;3", "3 targets for 2 images"),
        ("explain photo.png -m net.py", "net.py:FACTORY"),
        ("explain photo.png -m net.py:good --weights random", "creates its own weights"),
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
        ("class_model -m net.py:good", "Missing option '--target'"),
        ("feature_visualization -m net.py:good", "Missing option '--target'"),
        ("style_transfer photo.png -m net.py:good", "Missing option '--style'"),
        ("style_transfer photo.png -m net.py:good --style stile.png", "unknown file 'stile.png'"),
        ("style_transfer photo.png -m net.py:good --style flipped.png --mix 1,2", "1 shares"),
        ("deepdream photo.png -m net.py:good --guide photo.pgn", "nearest: photo.png"),
        ("deepdream photo.png -m net.py:good --octaves 0", "at least 1"),
        ("texture photo.png -m net.py:good --optimiser sgd", "'sgd' is not one of"),
        ("class_model -m net.py:good -t 1 --settings mine", "'mine' is not one of"),
        ("class_model -m net.py:good -t 0.0:1 --every 0", "--every"),
        ("class_model -m net.py:good -t 1 --animation mp4", "'mp4' is not one of"),
        ("inversion photo.png -m net.py:good --layers 0.1,9", "unknown layer '9'"),
        ("saliency photo.png -m net.py:good --every 2", "No such option"),
        ("resume missing", "not a saved result"),
        ("resume .", "not a saved result"),
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

    monkeypatch.setattr("opsin.techniques.covering.occlusion._spread", interrupted)
    before = sorted(here.iterdir())
    code, _, err = call("occlusion", "photo.png", *OWN, "-o", "out")
    assert code == 130
    assert "cancelled" in err
    assert [p for p in sorted(here.iterdir()) if p.name != "__pycache__"] == before


def test_layers_lists_networks_without_parameters_or_layers_or_real_numbers(here, call):
    (here / "strange.py").write_text(
        "import nets\nfrom hostile import networks\n\n\n"
        "def made(kind):\n    return lambda: nets.model(networks.STRANGE[kind](), size=16)\n\n\n"
        'bare, weightless, quantised = map(made, ("no layers", "no parameters", "quantised"))\n'
    )
    code, out, _ = call("layers", "strange.py:weightless")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[1:3]] == [["relu", "ReLU"], ["pool", "MaxPool2d"]]
    assert out.endswith("default layer for maps: relu\n")
    code, out, _ = call("layers", "strange.py:bare")
    assert code == 0
    assert out.endswith("none (Bare has no layer with a spatial extent before its output)\n")
    code, out, _ = call("layers", "strange.py:quantised")
    assert code == 0
    assert "plain.conv1" in out
    assert "none (Stubbed has no layer" in out


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
    assert all(name in out for name in catalogue.names())
    _, out, _ = call("models")
    assert "efficientnet_lite0" in out
    _, out, _ = call("models", "torchvision")
    assert "torchvision:resnet50" in out.splitlines()


def test_help_does_not_import_torch():
    lines = ("import sys", "from opsin.cli import main", "sys.argv = ['opsin', '-h']", "main.main()")
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
    call("explain", "photo.png", *OWN, "--technique", "saliency", "--values", "-o", "out")
    with pytest.raises(opsin.InputError, match=r"out/photo\.png/saliency"):
        opsin.Result.load("out")
    call("explain", "photo.png", *OWN, "--technique", "saliency", "-o", "out")
    with pytest.raises(opsin.InputError, match="explain --values"):
        opsin.Result.load("out")


# --- the standard input


@pytest.fixture
def stdin(monkeypatch):
    """Give the command these bytes on its standard input."""

    def give(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give


def test_a_photo_comes_from_the_standard_input(here, call, stdin):
    photo = Path("photo.png").read_bytes()
    call("saliency", "photo.png", *OWN, "-o", "file")
    for words_ in (("saliency", "-"), ("layers", "-")):
        stdin(photo)
        assert call(*words_, *OWN, "-o", words_[0])[::2] == (0, "")
    assert opsin.Result.load("saliency") == opsin.Result.load("file")
    stdin(photo)
    assert call("saliency", "-", "flipped.png", *OWN, "-o", "two")[0] == 0
    assert {path.name for path in Path("two").iterdir() if path.is_dir()} == {"stdin", "flipped.png"}
    stdin(photo)
    style = ("style_transfer", "flipped.png", "--style", "-", "--size", "32", "--steps", "2")
    assert call(*style, *OWN, "-o", "style")[0] == 0
    stdin(photo)
    assert call("explain", "-", *OWN, "--technique", "saliency", "-o", "page")[0] == 0
    assert "stdin" in Path("page/index.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("explain - -", "- is the standard input, which holds one photo: give it once"),
        ("style_transfer - --style -", "holds one photo"),
        ("saliency photo.png - photo.png -", "holds one photo"),
    ],
)
def test_the_standard_input_is_one_photo(here, call, stdin, words, said):
    stdin(Path("photo.png").read_bytes())
    code, out, err = call(*words.split(), *OWN)
    assert (code, out) == (2, "")
    assert said in err


def test_a_standard_input_that_is_no_photo_is_told(here, call, stdin):
    for given in (b"", b"no photo"):
        stdin(given)
        code, _, err = call("saliency", "-", *OWN)
        assert (code, err) == (2, "opsin: stdin is not an image that Pillow can read\n")


# --- own weights

TRAINED = ("-m", "timm:test_resnet", "--weights", "own.pt", "--classes", "3", "--class-names", "names.txt")
PREPARED = ("--mean", "0.5,0.4,0.3", "--std", "0.2,0.2,0.2", "--input-size", "32")


@pytest.fixture
def trained(here):
    """A folder with weights of a network with three classes, and their names."""
    network = opsin.load("timm:test_resnet", weights="random", classes=3).network
    torch.save({"state_dict": {f"model.{k}": v for k, v in network.state_dict().items()}}, "own.pt")
    Path("names.txt").write_text("cat\ndog\nbird\n")
    return here


def test_own_weights_with_their_head_names_and_preprocessing(trained, call):
    assert call("saliency", "photo.png", *TRAINED, *PREPARED, "-t", "dog", "-o", "out")[::2] == (0, "")
    result = opsin.Result.load("out")
    assert result.record.arguments["target"] == "1 (dog)"
    model = result.record.model
    assert (model["mean"], model["std"], model["size"]) == ([0.5, 0.4, 0.3], [0.2] * 3, [32, 32])
    assert result.values.shape[-2:] == (32, 32)
    code, out, _ = call("layers", *TRAINED[1:], *PREPARED)
    assert code == 0
    assert "fc" in out
    code, _, err = call("saliency", "photo.png", *TRAINED[:4], "-o", "other")
    assert code == 2
    assert "pass classes=3 (--classes 3)" in err


def test_the_shorter_names_of_options_are_there_where_a_command_has_no_others_of_that_name(trained, call):
    short = ("--labels", "names.txt", "--size", "48,32")
    assert call("saliency", "photo.png", *TRAINED[:6], *short, "-t", "bird", "-o", "out")[0] == 0
    assert opsin.Result.load("out").values.shape[-2:] == (48, 32)
    texture = ("texture", "photo.png", *TRAINED, *PREPARED, "--size", "32", "--source", "64", "--steps", "2")
    assert call(*texture, "-o", "texture")[0] == 0
    assert opsin.Result.load("texture").record.arguments["size"] == 32
    assert opsin.Result.load("texture").record.model["size"] == [32, 32]


def test_a_result_opens_own_weights_again_with_all_that_went_with_them(trained, call):
    climb = ("class_model", "-t", "conv1.0:1 + 0.01*dog", "--steps", "2", *TRAINED, *PREPARED, "-o", "part")
    assert call(*climb)[0] == 0
    Path("names.txt").unlink()  # the record has the names
    code, out, err = call("resume", "part", "--steps", "3")
    assert (code, out) == (0, "part\n")
    assert err == f"opsin: reading the weights {trained / 'own.pt'}, which part names\n"
    again = opsin.Result.load("part").record
    assert "1 (dog)" in again.arguments["target"]
    assert again.model["load"]["labels"] == ["cat", "dog", "bird"]
    assert again.model["mean"] == [0.5, 0.4, 0.3]


def test_a_collection_opens_own_weights_again_with_all_that_went_with_them(trained, call):
    Path("photos").mkdir()
    for name in ("photo", "flipped", "turned"):
        Path(f"{name}.png").rename(f"photos/{name}.png")
    assert call("scan", "photos", *TRAINED, *PREPARED, "-o", "collection")[0] == 0
    assert opsin.Collection("collection").about.labels == ("cat", "dog", "bird")
    code, _, err = call("neighbours", "collection", "photos/photo.png", "-k", "1", "-o", "near")
    assert (code, err) == (0, f"opsin: reading the weights {trained / 'own.pt'}, which collection names\n")
    code, _, err = call("units", "collection", "--mean", "0,0,0", "-o", "units")
    assert code == 2
    assert "collection" in err


def test_leave_one_out_accuracy_takes_no_weights(here, call):
    for words_ in (("--weights", "own.pt"), ("--classes", "3")):
        code, _, err = call("neighbours", "collection", *words_)
        assert code == 2
        assert "weights go with photos" in err


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("step size", "Step size."),
        ("optimiser: lbfgs, adam", "Optimiser: lbfgs, adam."),
        ("α/β, the ratio", "α/β, the ratio."),
        ("ßharp", "ßharp."),
        ("λ", "λ."),
        ("p-norm of the image", "p-norm of the image."),
        ("l2 norm", "l2 norm."),
        ("lr_decay of the rate", "lr_decay of the rate."),
        ("RGB order", "RGB order."),
        ("L-BFGS or not", "L-BFGS or not."),
    ],
)
def test_help_capitalises_plain_words_alone(text, shown):
    assert sentence(text) == shown


# --- pictures by climbing


def frames(path):
    with Image.open(path) as film:
        return film.n_frames


def test_several_targets_make_several_pictures(here, call):
    assert call("feature_visualization", "-t", "blue dog; 0.3:2", "--steps", "2", *OWN, "-o", "out")[0] == 0
    made = opsin.Result.load("out")
    assert [panel.group for panel in made.panels] == ["1 (blue dog)", "0.3:2"]
    assert sorted(p.name for p in Path("out").iterdir()) == [
        "blue_dog.png",
        "feature_visualization-0_3_2.png",
        "manifest.json",
        "record.json",
        "values.npz",
    ]


def test_several_layers_are_separated_by_commas(here, call):
    assert call("inversion", "photo.png", "--layers", "0.1, 0.3", "--steps", "2", *OWN, "-o", "out")[0] == 0
    groups = [panel.group for panel in opsin.Result.load("out").panels]
    assert groups == ["photo", "0.1", "0.3"]


def test_a_preview_makes_a_tenth_of_the_steps(here, call):
    for steps, made in (("40", 4), ("5", 1)):
        assert call("class_model", "-t", "1", "--preview", "--steps", steps, *OWN, "-o", steps)[0] == 0
        result = opsin.Result.load(steps)
        assert len(result.numbers["scores"]) == result.record.arguments["steps"] == made


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_kept_steps_make_an_animation(here, call, kind):
    more = ("--every", "2", "--animation", kind, "-o", "out")
    assert call(*words("class_model", steps=7), *more)[0] == 0
    assert frames(f"out/steps.{kind}") == 3
    assert call(*words("class_model", steps=7), "--every", "1", "--animation", kind, "-o", "out")[0] == 0
    assert frames(f"out/steps.{kind}") == 7


def test_an_animation_of_growing_octaves_is_of_the_largest_size(here, call):
    more = ("--octaves", "3", "--every", "1", "--animation", "gif", "-o", "out")
    assert call(*words("deepdream"), *more)[0] == 0
    assert frames("out/steps.gif") == 6
    with Image.open("out/steps.gif") as film:
        assert film.size == (90, 60)


def test_each_photo_has_its_own_animation(here, call):
    more = ("--layers", "0.1", "--every", "1", "--animation", "gif", "-o", "out")
    assert call("inversion", "photo.png", "flipped.png", "--steps", "3", *OWN, *more)[0] == 0
    assert frames("out/photo.png/steps.gif") == frames("out/flipped.png/steps.gif") == 3


def test_a_film_is_of_the_kind_that_is_asked_for(here, call):
    assert call(*words("deepdream"), "--frames", "2", "--animation", "gif", "-o", "out")[0] == 0
    assert not Path("out/animation.webp").exists()
    assert frames("out/animation.gif") == 2


def test_steps_that_were_kept_stay_where_a_climb_goes_on(here, call):
    assert call(*words("class_model", steps=3), "--every", "1", "-o", "part")[0] == 0
    assert call("resume", "part", *OWN, "--steps", "4")[0] == 0
    assert frames("part/steps.webp") == 3
    assert call("resume", "part", *OWN, "--steps", "7", "--every", "1")[0] == 0
    assert frames("part/steps.webp") == 3


def test_pictures_that_are_climbed_together_stand_side_by_side(here, call):
    assert (
        call(*words("feature_visualization", steps=2), "--pictures", "2", "--every", "1", "-o", "out")[0] == 0
    )
    with Image.open("out/steps.webp") as film:
        assert film.size == (64, 32)


def test_what_was_made_in_python_names_no_network_to_resume_with(here, call):
    net = opsin.load("net.py:good").network
    model = opsin.Model(net, mean=[0.5] * 3, std=[0.5] * 3, size=32, name="mine")
    opsin.class_model(model, 1, steps=2).save("part")
    code, _, err = call("resume", "part")
    assert code == 2
    assert "mine was made in Python: name it with --model" in err
    assert call("resume", "part", *OWN, "--steps", "3")[0] == 0


@pytest.mark.parametrize("name", ["class_model", "feature_visualization", "deepdream"])
def test_a_climb_is_resumed_in_its_own_folder_with_more_steps(here, call, name):
    assert call(*words(name, steps=5), "-o", "whole")[0] == 0
    assert call(*words(name, steps=2), "-o", "part")[0] == 0
    words_ = ["resume", "part", "-m", "net.py:good", "--steps", "5"]
    if name == "deepdream":  # its last octave alone goes on
        assert call(*words_, "-o", "more")[:2] == (0, "more\n")
        assert opsin.Result.load("more") != opsin.Result.load("part")
        return
    assert call(*words_)[:2] == (0, "part\n")
    assert opsin.Result.load("part") == opsin.Result.load("whole")


def test_a_result_is_resumed_with_the_network_that_it_was_made_with(here, call):
    call(*words("class_model"), "-o", "part")
    code, _, err = call("resume", "part", "-m", "net.py:smooth")
    assert code == 2
    assert "made with own" in err
    call("saliency", "photo.png", *OWN, "-o", "map")
    code, _, err = call("resume", "map", *OWN)
    assert code == 2
    assert "only pictures of an iterative technique" in err


def test_progress_is_told_in_lines_where_stderr_is_no_terminal(here, call, monkeypatch):
    monkeypatch.setattr(watch, "TELL_EVERY", -1)
    code, out, err = call(*words("class_model", steps=3), "-o", "out")
    assert (code, out) == (0, "out\n")
    lines = err.splitlines()
    assert [line.split(": ")[-1].split(",")[0] for line in lines] == ["1 of 3", "2 of 3", "3 of 3"]
    assert all(line.startswith("class model  score ") for line in lines)


SLOW = ("photo.png", "--patch", "2", "--stride", "1", "-m", "net.py:slow")
INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored,
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup this one
from opsin.cli import main
from opsin.cli import watch
watch.TELL_EVERY = 0.05
sys.argv = ["opsin", *sys.argv[1:]]
main.main()
"""


def interrupted(*words_, by=signal.SIGINT):
    """The command in a process of its own, interrupted once it has told of progress: (exit code, stderr)."""
    command = [sys.executable, "-c", INTERRUPTED, *words_]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        told = process.stderr.readline()
        process.send_signal(by)
        told += process.stderr.read()
        code = process.wait(timeout=60)
    return code, told


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_climb_with_the_picture_so_far_and_says_how_to_go_on(here, call, by):
    code, err = interrupted(*words("class_model", steps=100000), "-o", "out", by=by)
    assert code == 128 + by
    assert "Traceback" not in err
    made = opsin.Result.load("out")
    climbed = len(made.numbers["scores"])
    assert 1 <= climbed < 100000
    assert made.stopped == f"class model: stopped at step {climbed} of 100000"
    assert f"opsin: {made.stopped}; `opsin resume out` resumes there" in err
    assert call("resume", "out", *OWN, "--steps", str(climbed))[0] == 0
    assert opsin.Result.load("out").panels == made.panels
    assert not opsin.Result.load("out").stopped


def test_an_interrupt_of_what_is_not_climbed_writes_nothing(here):
    code, err = interrupted("occlusion", *SLOW)
    assert code == 130
    assert "cancelled; nothing was written" in err
    assert "Traceback" not in err
    assert not Path("occlusion").exists()


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGHUP])
def test_other_work_that_is_terminated_leaves_nothing(here, by):
    before = {path for path in here.rglob("*") if "__pycache__" not in path.parts}
    code, err = interrupted("occlusion", *SLOW, by=by)
    assert code == 128 + by
    assert "Traceback" not in err
    assert {path for path in here.rglob("*") if "__pycache__" not in path.parts} == before


def test_a_signal_that_is_ignored_stays_ignored():
    heard = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with handling(lambda number, _: heard.append(number)):
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert heard == [signal.SIGTERM]
