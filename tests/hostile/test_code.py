"""Code that somebody's folder names is run only where the user names it, too."""

import json
from pathlib import Path

import pytest

import opsin

EVIL = """
from pathlib import Path
Path("executed").touch()

def net():
    import torch, opsin
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    labels = ["cats", "dogs", "birds", "fish", "frogs"]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(4, 5)).eval()
    return opsin.Model(network, mean=[0.5] * 3, std=[0.5] * 3, size=32, name="evil", labels=labels)
"""
# Every command that opens the network again that a collection or a result was made with.
SURFACES = {
    "neighbours": "neighbours sent/collection photos/0.png",
    "units": "units sent/collection",
    "mistakes": "mistakes sent/collection",
    "explain": "explain sent/collection",
    "explain --collection": "explain photos/0.png --collection sent/collection",
    "grad_cam": "grad_cam sent/collection",
    "resume": "resume sent/result",
}


@pytest.fixture
def sent(tmp_path, monkeypatch, call):
    """A folder as somebody sends it: a collection and a result, whose records name a file beside them."""
    from PIL import Image
    from skimage import data

    monkeypatch.chdir(tmp_path)
    for folder in ("photos/cats", "sent"):
        Path(folder).mkdir(parents=True)
    for index, angle in enumerate((0, 90, 180)):
        Image.fromarray(data.cat()).resize((60, 60)).rotate(angle).save(f"photos/cats/{index}.png")
    Image.fromarray(data.cat()).resize((60, 60)).save("photos/0.png")
    Path("sent/evil.py").write_text(EVIL)
    assert call("scan", "photos", "-m", "sent/evil.py:net", "-o", "sent/collection")[0] == 0
    climb = ("class_model", "-t", "1", "--steps", "2", "-m", "sent/evil.py:net", "-o", "sent/result")
    assert call(*climb)[0] == 0
    Path("executed").unlink()
    return tmp_path


def name_in_records(loaded):
    """Let the records name this network."""
    for path, keys in (("sent/collection", ("about", "model")), ("sent/result", ("record", "model"))):
        record = Path(path) / "record.json"
        about = json.loads(record.read_text())
        about[keys[0]][keys[1]]["load"] = loaded
        record.write_text(json.dumps(about))


@pytest.mark.parametrize("surface", SURFACES)
def test_a_file_of_code_is_run_only_where_the_user_names_it(sent, call, surface):
    words = SURFACES[surface].split()
    name_in_records(["sent/evil.py:net"])
    code, out, err = call(*words, "-o", "out")
    assert (code, out) == (2, "")
    assert "if you trust it, name it with --model sent/evil.py:net" in err
    assert not Path("executed").exists()
    assert not Path("out").exists()
    code, _, err = call(*words, "-m", "sent/evil.py:net", "-o", "out")
    assert (code, err) == (0, "")
    assert Path("executed").exists()


@pytest.mark.parametrize(
    "name",
    [
        "hf:somebody/net",
        "hf:sent/result",
        "timm:hf-hub:somebody/net",
        "timm:local-dir:sent",
        "sent/evil.py:net",
    ],
)
def test_nothing_is_fetched_or_read_that_only_a_record_names(sent, call, name):
    name_in_records([name, "weights.pt"])
    code, _, err = call("resume", "sent/result")
    assert code == 2
    assert f"--model {name} --weights weights.pt" in err
    assert not Path("executed").exists()


@pytest.mark.parametrize("loaded", ["sent/evil.py:net", [1], [], ["a", "b", "c"], {"a": 1}, [["a"]]])
def test_a_record_that_names_no_network_is_refused(sent, call, loaded):
    name_in_records(loaded)
    code, _, err = call("resume", "sent/result")
    assert code == 2
    assert "is damaged" in err or "made in Python" in err


def test_weights_that_a_record_names_are_said(sent, call):
    name_in_records(["torchvision:resnet18", "weights.pt"])
    code, _, err = call("resume", "sent/result")
    assert code == 2
    assert "opsin: reading the weights weights.pt, which sent/result names" in err
    assert "unknown weights file 'weights.pt'" in err


def test_networks_that_are_known_by_name_are_opened_again(sent, call):
    network = opsin.load("torchvision:resnet18", weights="random")
    opsin.class_model(network, "conv1:0", steps=1).save("known")
    assert call("resume", "known", "--steps", "2") == (0, "known\n", "")


def test_the_help_says_that_a_file_is_run(call):
    for command in ("explain", "scan", "neighbours", "grad_cam", "resume"):
        assert "is run as a program" in " ".join(call(command, "--help")[1].split())
