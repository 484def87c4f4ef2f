"""What holds for every command: lists as JSON, names, options given twice, output that cannot be written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import opsin
from opsin.base.choices import DEFAULT_NETWORK
from opsin.registry import catalogue
from opsin.zoo import by_name
from opsin.zoo.entries import ENTRIES, FORMS

NET = """
print("a line of the network's own file")

import nets

def good():
    print("and another one")
    return nets.model(nets.plain().float(), name="own")

def bare():
    from hostile import networks

    return nets.model(networks.STRANGE["no layers"](), size=16)
"""
OWN = ("-m", "net.py:good")
MODULES = """
import sys
from opsin.cli.main import main
sys.argv = ["opsin", *sys.argv[1:]]
try:
    main()
finally:
    print(*sorted(sys.modules), file=sys.stderr)
"""
HEAVY = {"torch", "numpy", "PIL", "timm", "pydantic", "filelock", "jinja2", "importlib.metadata"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).save("photo.png")
    Image.fromarray(pixels[::-1]).save("style.png")
    return tmp_path


def imported(*words):
    """The modules that a command imports."""
    command = [sys.executable, "-c", MODULES, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("line", ["--help", "grad_cam --help", "models --help", "completion bash"])
def test_help_comes_without_anything_heavy(line):
    assert not imported(*line.split()) & (HEAVY | {"rich"})


@pytest.mark.parametrize("line", ["techniques", "techniques --json", "models", "models --json"])
def test_lists_come_without_torch(line):
    assert not imported(*line.split()) & HEAVY


# --- lists as JSON


def test_techniques_are_listed_as_json(call):
    code, out, err = call("techniques", "--json")
    assert (code, err) == (0, "")
    listed = json.loads(out)
    assert [row["name"] for row in listed] == list(catalogue.names())
    grad_cam = next(row for row in listed if row["name"] == "grad_cam")
    technique = catalogue.get("grad_cam")
    assert grad_cam == {
        "name": "grad_cam",
        "passes": technique.cost,
        "summary": technique.summary,
        "paper": technique.paper,
    }


def test_networks_are_listed_as_json(call):
    code, out, _ = call("models", "--json")
    assert code == 0
    listed = json.loads(out)
    assert {row["name"]: row["about"] for row in listed["networks"]} == ENTRIES
    assert {row["form"]: row["about"] for row in listed["forms"]} == FORMS
    _, out, _ = call("models", "torchvision", "--json")
    assert {"name": "torchvision:resnet50"} in json.loads(out)["networks"]


def test_the_zoo_lists_what_loads(call):
    assert DEFAULT_NETWORK in ENTRIES
    assert all(by_name.reopens(name) for name in ENTRIES)
    _, out, _ = call("models")
    assert [line.split()[0] for line in out.splitlines()] == [*ENTRIES, *FORMS]


def test_layers_are_listed_as_json_and_nothing_else_is_printed(here, call):
    code, out, err = call("layers", "net.py:good", "--json")
    assert (code, err) == (0, "a line of the network's own file\nand another one\n")
    listed = json.loads(out)
    model = opsin.load("net.py:good")
    assert (listed["network"], listed["default_layer"]) == ("own", model.default_layer)
    assert {row["name"] for row in listed["layers"]} == set(model.calls)
    for row in listed["layers"]:
        assert row["kind"] == model.calls[row["name"]].kind
        assert row["output"] == list(model.calls[row["name"]].shape[1:])
    first = listed["layers"][0]
    module = model.network.get_submodule(first["name"])
    assert first["parameters"] == sum(p.numel() for p in module.parameters())
    assert len(first["sees"]) == 2


def test_a_network_without_layers_is_listed_as_json(here, call):
    _, out, _ = call("layers", "net.py:bare", "--json")
    assert json.loads(out) == {"network": "Bare", "default_layer": None, "layers": []}


def test_pictures_of_layers_are_no_json(here, call):
    code, out, err = call("layers", "photo.png", *OWN, "--json")
    assert (code, out) == (2, "")
    assert "--json lists the layers of a MODEL" in err
    assert not Path("layers").exists()


# --- names


def test_a_technique_may_be_written_with_dashes(here, call):
    code, out, _ = call("grad-cam", "photo.png", *OWN)
    assert code == 0
    assert out.endswith("grad_cam\n")
    assert opsin.Result.load("grad_cam").record.technique == "grad_cam"
    _, out, _ = call("--help")
    assert "grad_cam" in out
    assert "grad-cam" not in out
    code, _, err = call("grad-kam", "photo.png")
    assert code == 2
    assert "unknown command 'grad-kam'; nearest: grad_cam" in err


def test_an_option_may_be_written_with_underscores(here, call):
    words = ("--steps", "1", "--size", "16", "--keep_colours", "--style", "style.png")
    assert call("style_transfer", "photo.png", *words, *OWN, "-o", "out")[0] == 0
    assert opsin.Result.load("out").record.arguments["keep_colours"] is True


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("saliency photo.png -t tiger.kat", "unknown class 'tiger kat'; nearest: tiger cat"),
        ("grad_cam photo.png -l conv", "unknown layer 'conv'; nearest:"),
        ("grad_cam photo.png -t conv:1", "unknown layer 'conv'; nearest:"),
        ("explain photo.png --technique salience", "unknown technique 'salience'; nearest: saliency"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(here, call, line, said):
    code, _, err = call(*(word.replace("r.k", "r k") for word in line.split()), *OWN)
    assert code == 2
    assert said in err


# --- options given twice


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("saliency photo.png -t 1 --target 2", "--target/-t is given 2 times ('1', '2'): several photos"),
        ("saliency photo.png -o a -o b", "--out/-o is given 2 times ('a', 'b'): give it once"),
        ("saliency photo.png -m a -m b -m c", "--model/-m is given 3 times"),
        ("grad_cam photo.png -l a -l b", "--layer/-l is given 2 times ('a', 'b'): give it once"),
        ("inversion photo.png --layers a -l b", "is given 2 times ('a', 'b'): several layers"),
        ("grad_cam photo.png --relu --no-relu", "--relu/--no-relu is given 2 times: give it once"),
        ("occlusion photo.png --patch 2 --patch 3", "--patch is given 2 times"),
        ("deepdream photo.png --every 2 --every 3", "--every is given 2 times"),
        ("layers net.py:good --json --json", "--json is given 2 times"),
        ("gallery -o a -o b", "--out/-o is given 2 times"),
        ("resume out --steps 2 --steps 3", "--steps is given 2 times"),
        ("units out --weights a --weights b", "--weights is given 2 times"),
    ],
)
def test_an_option_that_is_given_twice_is_an_error(here, call, line, said):
    before = sorted(here.iterdir())
    code, out, err = call(*line.split())
    assert (code, out) == (2, "")
    assert said in err
    assert sorted(here.iterdir()) == before


def test_an_option_that_may_be_repeated_may_be_repeated(here, call):
    words = ("--steps", "1", "--size", "16", "--style", "style.png", "--style", "style.png")
    assert call("style_transfer", "photo.png", *words, *OWN, "-o", "out")[0] == 0


# --- output that cannot be written


def printed_to(output, *words, buffered=True):
    """A command with another standard output: (exit code, what it says on standard error)."""
    settings = {"PYTHONUNBUFFERED": "" if buffered else "1"}
    command = [sys.executable, "-m", "opsin", *words]
    done = subprocess.run(
        command, stdout=output, stderr=subprocess.PIPE, text=True, check=False, env=os.environ | settings
    )
    return done.returncode, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("line", ["techniques", "models --json", "--help", "--version", "completion zsh"])
def test_a_full_disk_is_one_line(line, buffered):
    with Path("/dev/full").open("w") as full:
        code, err = printed_to(full, *line.split(), buffered=buffered)
    assert (code, err) == (2, "opsin: the output cannot be written: No space left on device\n")


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("line", ["techniques", "models", "--help"])
def test_a_reader_that_is_gone_ends_a_command_quietly(line, buffered):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert printed_to(writer, *line.split(), buffered=buffered) == (1, "")
    finally:
        os.close(writer)


def test_output_that_is_closed_is_no_traceback():
    command = f'"{sys.executable}" -m opsin techniques >&-'
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr == ""


def test_other_failures_of_the_system_are_not_taken_for_it(call, monkeypatch):
    def broken(_name):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(catalogue, "declared", broken)
    with pytest.raises(OSError, match="No space left"):
        call("techniques")
