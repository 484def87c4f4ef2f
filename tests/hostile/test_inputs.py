"""Whatever is typed or passed: a result, or an error of Opsin's own; nothing is run that was not named."""

import sys

import pytest
import torch

import nets
import opsin
from hostile import weights

# --- weights


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return weights.make(tmp_path_factory.mktemp("hostile") / "weights")


@pytest.fixture
def own(tmp_path):
    """The file of a user's network and its name."""
    file = tmp_path / "own.py"
    file.write_text("import nets\ndef f():\n    return nets.model(nets.plain())\n")
    return f"{file}:f"


@pytest.mark.parametrize("name", weights.SAID)
def test_bad_weights_are_refused_in_one_line_and_nothing_in_them_is_run(checkpoints, own, name):
    path = checkpoints[name]
    with pytest.raises(opsin.OpsinError, match=weights.SAID[name][0]) as caught:
        opsin.load(own, weights=path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert not (path.parent / "executed").exists()


def test_weights_that_hold_nan_are_read_and_told(own, tmp_path):
    state = weights.state()
    state["fc.bias"][2] = torch.nan
    torch.save(state, tmp_path / "nan.pt")
    model = opsin.load(own, weights=tmp_path / "nan.pt")
    notes = opsin.saliency(model, nets.images(1)).record.notes
    assert any("NaN" in note for note in notes)


@pytest.mark.parametrize("path", ["x" * 5000, "weights\0.pt", "nowhere/weights.pt", ""])
def test_weights_of_a_name_that_no_file_has_are_unknown(own, path):
    with pytest.raises(opsin.InputError, match=r"unknown weights file|is a folder"):
        opsin.load(own, weights=path)


# --- names of networks, and files that make them


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "unknown model ''"),
        ("nope", "unknown model 'nope'"),
        ("timm:", "unknown model 'timm:'"),
        ("timm:nope", "unknown timm model 'nope'"),
        ("timm:resnet18.", "unknown timm model"),
        ("timm:hf-hub:nobody/nothing", "unknown timm model"),
        ("timm:local-dir:/tmp", "unknown timm model"),
        ("timm:../../etc", "unknown timm model"),
        ("torchvision:nope", "unknown torchvision model"),
        ("resnet18", "write timm:resnet18"),
        ("/etc/passwd:f", "unknown model '/etc/passwd:f'.*FILE.py:FACTORY"),
        ("/etc", "/etc is a folder: write hf:/etc"),
        (".", ". is a folder"),
        ("weights.pt", "holds weights but no network"),
        ("nowhere.py", "name the function"),
        ("nowhere.py:f", "unknown file 'nowhere.py'"),
        (".py:f", "unknown file '.py'"),
        ("a\0b", "unknown model"),
        ("a\0b.py:f", "unknown file"),
        ("timm:a\0b", "unknown timm model"),
        ("x" * 5000, "unknown model"),
        ("x" * 5000 + ".py:f", "unknown file"),
        ("timm:" + "x" * 5000, "unknown timm model"),
        ("../" * 2000 + "x.py:f", "unknown file"),
    ],
)
def test_a_name_of_no_network_is_told_in_a_line(name, said):
    for given in (None, "random"):
        with pytest.raises(opsin.InputError, match=said) as caught:
            opsin.load(name, weights=given)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000


FILES = {
    "exits": ("import sys\nsys.exit(0)", "SystemExit: 0"),
    "exits in the function": ("import sys\ndef f():\n    sys.exit(0)", "SystemExit: 0"),
    "exits with words": ("raise SystemExit('no GPU\\nhere')", "SystemExit: no GPU here"),
    "raises": ("def f():\n    raise ValueError('two\\nlines')", "ValueError: two lines"),
    "is wrong": ("def f(:", "SyntaxError"),
    "imports what is not there": ("import nowhere_at_all", "ModuleNotFoundError"),
    "recurses": ("def f():\n    return f()", "RecursionError"),
    "is binary": ("\0", "SyntaxError|ValueError"),
    "takes an argument": ("def f(size):\n    return size", "TypeError"),
    "changes the path": (
        "import sys\nsys.path[:] = sys.path[1:]\ndef f():\n    return 3",
        "an object of type int",
    ),
    "gives a number": ("def f():\n    return 3", "an object of type int"),
    "gives a class": ("import opsin\nf = opsin.Model", "TypeError"),
    "gives a bare network": (
        "from torch import nn\ndef f():\n    return nn.ReLU()",
        "an object of type ReLU",
    ),
    "has no function": ("g = 3", "unknown factory 'f'"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_makes_no_network_is_told_and_leaves_the_path_as_it_was(call, tmp_path, kind):
    code, said = FILES[kind]
    (tmp_path / "own.py").write_text(code)
    before = list(sys.path)
    with pytest.raises(opsin.OpsinError, match=said) as caught:
        opsin.load(f"{tmp_path / 'own.py'}:f")
    assert "\n" not in str(caught.value)
    assert set(before) >= set(sys.path)
    sys.path[:] = before


def test_a_file_that_exits_with_zero_ends_a_command_with_an_error(call, tmp_path):
    (tmp_path / "own.py").write_text("import sys\nsys.exit(0)")
    words = ("-m", f"{tmp_path / 'own.py'}:f", "--target", "1", "-o", tmp_path / "o")
    code, out, err = call("class_model", *words)
    assert (code, out) == (2, "")
    assert err == f"opsin: {tmp_path / 'own.py'}:f failed: SystemExit: 0\n"
    assert not (tmp_path / "o").exists()


def test_an_interrupt_while_a_file_is_run_goes_on(tmp_path):
    (tmp_path / "own.py").write_text("def f():\n    raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        opsin.load(f"{tmp_path / 'own.py'}:f")
