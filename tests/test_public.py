import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click

import opsin
from opsin.cli.main import cli
from opsin.registry import catalogue


def test_public_names_are_what_they_say():
    for name in opsin.__all__:
        assert getattr(opsin, name) is not None
        assert name in dir(opsin)
    assert set(catalogue.names()) < set(opsin.__all__)


def test_the_names_for_type_checkers_are_the_public_names():
    source = Path(opsin.__file__).read_text()
    assert all(f"import {name} as {name}\n" in source for name in opsin._PUBLIC)
    assert source.count(" as ") == len(opsin._PUBLIC)


def run(*words):
    """What a Python of its own prints."""
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True).stdout


def test_the_version_is_the_installed_one():
    assert opsin.__version__ == importlib.metadata.version("opsin")
    assert "__version__" in dir(opsin)
    assert "__version__" not in opsin.__all__


def test_the_citation_names_the_version_of_the_package():
    root = Path(__file__).parent.parent
    version = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f"\nversion: {version}\n" in (root / "CITATION.cff").read_text("utf-8")


def test_the_package_is_imported_without_torch():
    script = "import sys, opsin; opsin.__version__; print('torch' in sys.modules)"
    assert run("-c", script).split() == ["False"]


def test_python_m_opsin_is_the_command():
    assert run("-m", "opsin", "--version").strip().endswith(opsin.__version__)


def test_the_package_says_that_it_is_typed():
    assert (Path(opsin.__file__).parent / "py.typed").is_file()


def test_reference_pages_are_fresh():
    path = Path(__file__).parent.parent / "docs" / "build.py"
    spec = importlib.util.spec_from_file_location("build", path)
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    for page, text in build.pages().items():
        assert page.read_text() == text, f"stale: {page.name}, run make docs"


def test_the_tutorial_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parent.parent / "docs" / "tutorial.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) > 5
    names = {}
    for block in blocks:
        exec(block, names)
    assert Path("report/index.html").is_file()


def test_the_readme_names_what_exists():
    text = (Path(__file__).parent.parent / "README.md").read_text()
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", text):
        assert f"\n{target}:" in makefile
    commands = cli.list_commands(click.Context(cli))
    for command in re.findall(r"^opsin (\w+)", text, re.MULTILINE):
        assert command in commands
