"""What tests of several files stand on.

Opsin is imported in the fixtures only: this file is read before the check of shapes is set up.
"""

import errno
import io
import math
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # the processes share the cores
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture
def call(monkeypatch, capsys, tmp_path_factory):
    """Run the command line in this process: (exit code, stdout, stderr), without progress.

    The names of layers and classes that it remembers go into a folder of the test's own.
    """
    from opsin.cli import main, remembered, watch

    names = tmp_path_factory.mktemp("cache") / "names"
    monkeypatch.setattr(remembered, "folder", lambda: names)
    monkeypatch.setattr(watch, "TELL_EVERY", math.inf)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["opsin", *map(str, words)])
        code = 0
        try:
            main.main()
        except SystemExit as stop:
            code = stop.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


@pytest.fixture
def exact(monkeypatch):
    """Thumbnails of findings without loss."""
    from opsin.results.findings import Shot

    def of(cls, group, caption, picture, *, lead=False):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return cls(group, caption, buffer.getvalue(), lead)

    monkeypatch.setattr(Shot, "of", classmethod(of))


@pytest.fixture
def shut(monkeypatch):
    """Let a folder not be listed, as without the right to, which a superuser always has."""
    closed, real = set(), os.scandir

    def scandir(path="."):
        if isinstance(path, str | os.PathLike) and Path(path) in closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return real(path)

    @contextmanager
    def opening(folder):
        yield
        closed.discard(folder)

    def shut(folder):
        closed.add(folder)
        return opening(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    return shut


@pytest.fixture(scope="session")
def browser():
    """A Chromium; tests that need one are skipped where none is installed."""
    found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    if (program := next(found, None)) is None:
        pytest.skip("no Chromium is installed")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """Open an address in the browser: its page must raise no error, and run no code in a name."""
    opened, errors = [], []

    def failed(error):
        errors.append(error)

    def at(address, **viewport):
        page = browser.new_page(viewport={"width": 1200, "height": 900} | viewport)
        page.on("pageerror", failed)
        page.goto(address)
        opened.append(page)
        return page

    yield at
    titles = [page.title() for page in opened]
    for page in opened:
        page.close()
    assert not errors
    assert "broken" not in titles
