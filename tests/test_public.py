import importlib.util
from pathlib import Path

import opsin
from opsin import registry


def test_public_names_are_what_they_say():
    for name in opsin.__all__:
        assert getattr(opsin, name) is not None
        assert name in dir(opsin)
    assert set(registry.names()) < set(opsin.__all__)


def test_the_names_for_type_checkers_are_the_public_names():
    source = Path(opsin.__file__).read_text()
    assert all(f"import {name} as {name}\n" in source for name in opsin._PUBLIC)
    assert source.count(" as ") == len(opsin._PUBLIC)


def test_reference_pages_are_fresh():
    path = Path(__file__).parent.parent / "docs" / "build.py"
    spec = importlib.util.spec_from_file_location("build", path)
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    for page, text in build.pages().items():
        assert page.read_text() == text, f"stale: {page.name}, run make docs"
