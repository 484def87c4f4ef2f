"""The template in CONTRIBUTING.md is a technique, and passes its own test."""

import importlib
import re
import sys
from pathlib import Path

import pytest

import opsin

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text("utf-8")
TEST, TECHNIQUE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
NAME = "gradient_times_input"


@pytest.fixture
def template(tmp_path, monkeypatch):
    """The template's test, as a module, with the technique in its place."""
    (tmp_path / f"{NAME}.py").write_text(TECHNIQUE, "utf-8")
    (tmp_path / f"template_{NAME}.py").write_text(TEST, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(opsin, NAME, getattr(importlib.import_module(NAME), NAME), raising=False)
    yield importlib.import_module(f"template_{NAME}")
    for module in (NAME, f"template_{NAME}"):
        sys.modules.pop(module, None)


def test_the_template_passes_its_test(template):
    (test,) = [value for name, value in vars(template).items() if name.startswith("test_")]
    for target in (0, 3):
        for baseline in (0.0, 0.5):
            test(target, baseline)


def test_the_folders_are_those_of_the_techniques():
    folders = (Path(opsin.__file__).parent / "techniques").glob("*/__init__.py")
    assert set(re.findall(r"^\| `(\w+)/`", TEXT, re.MULTILINE)) == {path.parent.name for path in folders}
