"""What a shell offers behind TAB, and how it gets onto the shell's command line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import nets
from opsin.cli import remembered, shells
from opsin.registry import catalogue
from opsin.zoo import building, families
from opsin.zoo.entries import ENTRIES

NET = """
from pathlib import Path

import torch, opsin
from torch import nn

Path("ran").touch()

def good():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU())
    whole = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    labels = ["red cat, tabby", "blue dog", "red dog, tabby", "it's $(touch owned)", "line\\nbreak"]
    return opsin.Model(whole, mean=[0.5] * 3, std=[0.5] * 3, size=32, labels=labels)

def other():
    return good()

def _private():
    return good()
"""
OWN = "-m net.py:good"
BREAKS = " \t\n\"'@><=;|&(:"  # bash's own COMP_WORDBREAKS
ALL_LAYERS = ["0.0", "0.1", "0.2", "0.3", "0", "1", "2", "3"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    return tmp_path


@pytest.fixture
def offered(call, monkeypatch):
    """What bash inserts for a command line with the cursor at its end."""

    def ask(line, breaks=BREAKS):
        with monkeypatch.context() as patch:
            patch.setenv("_OPSIN_COMPLETE", "bash_complete")
            patch.setenv("COMP_LINE", line)
            patch.setenv("COMP_WORDBREAKS", breaks)
            code, out, err = call()
        assert (code, err) == (0, "")
        return [row.partition(",")[2] for row in out.splitlines() if row]

    return ask


@pytest.fixture
def seen(here, call):
    """The own network has been loaded by a command."""
    assert call("layers", "net.py:good")[0] == 0
    Path("ran").unlink()
    return here


def test_commands_and_techniques_are_offered(offered):
    assert {"explain", "techniques", "completion", *catalogue.names()} <= set(offered("opsin "))
    assert offered("opsin grad") == ["grad_cam", "grad_cam_plus_plus"]
    assert offered("opsin grad-cam-") == ["grad_cam_plus_plus"]
    assert offered("COLUMNS=80 opsin occ") == ["occlusion"]
    assert offered("opsin explain --technique grad_cam --technique occ") == ["occlusion"]
    assert "--keep-colours" in offered("opsin style_transfer --keep")
    assert offered("opsin models t") == ["timm", "torchvision"]
    assert offered("opsin completion f") == ["fish"]


def test_an_unknown_command_is_no_error_while_a_line_is_typed(offered):
    assert "--version" in offered("opsin nosuch --")


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_names_read_off_the_source_are_those_of_the_package(family):
    assert families.names(family) == sorted(building.available(family))


def test_networks_are_offered(here, offered):
    every = offered("opsin explain --model ")
    assert {*ENTRIES, "timm:", "torchvision:", "hf:", "net.py:"} == set(every)
    assert "resnet18" in offered("opsin explain -m timm:resnet")  # bash keeps what stands before the colon
    assert offered("opsin explain -m torchvision:alex") == ["alexnet"]
    assert offered("opsin explain --model=torchvision:alex") == ["alexnet"]
    assert offered("opsin explain -m 'torchvision:alex") == ["torchvision:alexnet"]
    assert offered("opsin explain -m torchvision:alex", breaks=" ") == ["torchvision:alexnet"]
    assert offered("opsin layers torchvision:alex") == ["alexnet"]


def test_functions_of_a_file_are_offered_and_the_file_is_not_run(here, offered):
    Path("below").mkdir()
    shutil.copy("net.py", "below/net.py")
    Path("below/broken.py").write_text("def net(:")
    assert offered("opsin grad_cam -m net.py:") == ["good", "other"]
    assert offered("opsin grad_cam -m be") == ["below/"]
    assert offered("opsin grad_cam -m below/n") == ["below/net.py:"]
    assert offered("opsin grad_cam -m below/net.py:o") == ["other"]
    assert offered("opsin grad_cam -m below/broken.py:") == []
    assert offered("opsin grad_cam -m missing.py:") == []
    offered(f"opsin grad_cam {OWN} -l ")
    assert not Path("ran").exists()


def test_layers_and_classes_are_offered_once_a_command_has_loaded_the_network(here, call, offered):
    assert offered(f"opsin grad_cam {OWN} -l ") == offered(f"opsin grad_cam {OWN} -t ") == []
    Image.new("RGB", (40, 40)).save("photo.png")
    assert call("saliency", "photo.png", "-m", "net.py:good")[0] == 0
    assert set(offered(f"opsin grad_cam {OWN} -l ")) == set(ALL_LAYERS)
    assert offered(f"opsin grad_cam {OWN} -l 0.") == ["0.0", "0.1", "0.2", "0.3"]
    assert offered("opsin explain --model net.py:good --layer 0.3") == ["0.3"]
    assert offered(f"opsin grad_cam {OWN} -t red") == ["red\\ cat", "red\\ dog"]
    assert offered(f"opsin grad_cam {OWN} -t BL") == ["blue\\ dog"]
    assert offered(f"opsin grad_cam {OWN} -t 0.2") == ["0.2:"]
    assert offered(f"opsin grad_cam {OWN} -t 0.2:") == []
    assert offered(f"opsin explain p.png {OWN} -t blue") == ["blue\\ dog"]


def test_a_synonym_of_two_classes_is_not_offered(seen, offered):
    assert offered(f"opsin saliency {OWN} -t tab") == []  # it would be ambiguous


def test_several_layers_and_targets_are_offered_one_after_the_other(seen, offered):
    assert offered(f"opsin inversion {OWN} --layers 0.0,0.3") == ["0.0,0.3"]
    assert offered(f"opsin saliency {OWN} -t '0.0:1; blue") == ["0.0:1; blue dog"]
    assert offered(f'opsin saliency {OWN} -t "blue dog; red c') == ["blue dog; red cat"]


def test_without_a_network_on_the_line_it_is_the_commands_own(call, offered):
    model = nets.model(nets.plain())
    model.loaded = {"name": catalogue.declared("occlusion").network}
    assert model.calls
    remembered.remember(model)
    assert offered("opsin occlusion -t beag") == ["beagle"]


def test_an_edited_file_is_a_network_that_nothing_is_known_of(seen, offered):
    Path("net.py").write_text(NET + "\n")
    assert offered(f"opsin grad_cam {OWN} -l ") == []


def test_the_same_file_is_known_by_every_path(seen, offered, monkeypatch):
    Path("below").mkdir()
    monkeypatch.chdir("below")
    assert offered(f"opsin grad_cam -m {seen}/net.py:good -l 0.3") == ["0.3"]


def test_a_folder_that_is_called_like_a_family_changes_nothing(here, call, offered):
    model = nets.model(nets.plain())
    model.loaded = {"name": "timm:plain"}
    assert model.calls
    remembered.remember(model)
    Path("timm").mkdir()
    assert offered("opsin occlusion -m timm:plain -t beag") == ["beagle"]


@pytest.mark.parametrize("damage", ["", "{", "[]", "[" * 100_000, '{"network": 1, "state": 2}', "null"])
def test_a_damaged_cache_offers_nothing(seen, offered, damage):
    (file,) = remembered.folder().iterdir()
    file.write_text(damage)
    assert offered(f"opsin grad_cam {OWN} -l ") == []


def test_a_cache_that_cannot_be_written_does_not_stop_a_command(here, call):
    remembered.folder().write_text("a file")
    assert call("layers", "net.py:good")[0] == 0
    assert remembered.folder().read_text() == "a file"


def test_names_that_a_terminal_cannot_show_are_not_offered(seen, offered):
    assert len(offered(f"opsin saliency {OWN} -t it")) == 1
    assert offered(f"opsin saliency {OWN} -t line") == []


def test_completion_does_without_torch(seen, tmp_path):
    script = "\n".join(
        (
            "import sys",
            "from opsin.cli.main import main",
            "try:",
            "    main()",
            "finally:",
            "    print('torch' in sys.modules)",
        )
    )
    for line in ("opsin ", "opsin grad_cam -m timm:resnet1", f"opsin grad_cam {OWN} -l "):
        asked = {"_OPSIN_COMPLETE": "bash_complete", "COMP_LINE": line}
        done = subprocess.run(
            [sys.executable, "-c", script], env=os.environ | asked, capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("line", "split"),
    [
        ("opsin ", (["opsin"], "", "")),
        ("opsin gr", (["opsin"], "gr", "")),
        ("opsin -t tiger\\ c", (["opsin", "-t"], "tiger c", "")),
        ("opsin -t tiger\\", (["opsin", "-t"], "tiger", "")),
        ("opsin -t 'tiger c", (["opsin", "-t"], "tiger c", "'")),
        ('opsin -t "tiger c', (["opsin", "-t"], "tiger c", '"')),
        ('opsin -t "tiger cat" ', (["opsin", "-t", "tiger cat"], "", "")),
    ],
)
def test_a_line_is_split_into_words(line, split):
    assert shells.split_line(line) == split


# --- in the shells themselves


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A command `opsin` on the path, and its script for a shell."""
    command = tmp_path / "bin" / "opsin"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m opsin "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize("shell", shells.SHELLS)
def test_each_shell_takes_its_script(call, tmp_path, shell):
    code, out, _ = call("completion", shell)
    assert code == 0
    assert "_OPSIN_COMPLETE" in out
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(out)
    done = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


BASH = """
source ./script
COMP_LINE=$1; COMP_POINT=${#1}
_opsin_completion opsin 2>/dev/null  # compopt works on a terminal only
eval "words=(${COMP_LINE% *} ${COMPREPLY[0]})"
printf '%s\\n' "${#COMPREPLY[@]}" "${words[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_gets_words_that_it_does_not_run(seen, installed, call, monkeypatch, tmp_path):
    Path("script").write_text(call("completion", "bash")[1])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    shutil.copytree(remembered.folder(), tmp_path / "home" / "opsin" / "names")
    command = ["bash", "--norc", "-c", BASH, "bash", f"opsin saliency {OWN} -t it"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, *words = done.stdout.splitlines()
    assert (count, words[-1]) == ("1", "it's $(touch owned)")
    assert not Path("owned").exists()


def test_quotation_marks_that_are_open_are_kept(seen, offered):
    assert offered(f'opsin saliency {OWN} -t "it') == [r"it's \$(touch owned)"]
    assert offered(f"opsin saliency {OWN} -t 'it") == [r"it'\''s $(touch owned)"]
    assert offered(f"opsin saliency {OWN} -t it") == [r"it\'s\ \$\(touch\ owned\)"]


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_offers_whole_words(seen, installed, call, monkeypatch, tmp_path):
    Path("script").write_text(call("completion", "fish")[1])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    shutil.copytree(remembered.folder(), tmp_path / "home" / "opsin" / "names")

    def ask(line):
        words = ["fish", "--no-config", "-c", 'source ./script; complete -C "$argv[1]"', line]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        return [row.partition("\t")[0] for row in done.stdout.splitlines()]

    assert ask(f"opsin saliency {OWN} -t red") == ["red cat", "red dog"]
    assert ask("opsin explain -m torchvision:alex") == ["torchvision:alexnet"]
    assert ask("opsin explain --model=torchvision:alex") == ["--model=torchvision:alexnet"]
    assert ask("opsin explain ne") == ["net.py"]
    assert ask("opsin explain -o ho") == ["home/"]
