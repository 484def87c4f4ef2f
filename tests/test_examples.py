import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
WRITTEN = {
    "explain_a_photo": "report/index.html",
    "own_network": "grad_cam/values.npz",
    "own_objective": "picture.png",
}


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(WRITTEN)


@pytest.mark.parametrize("name", WRITTEN)
def test_an_example_runs_and_writes_what_it_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [f"{name}.py"])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert (tmp_path / WRITTEN[name]).stat().st_size


def test_the_readme_links_to_every_example():
    text = (EXAMPLES.parent / "README.md").read_text("utf-8")
    for name in WRITTEN:
        assert f"(examples/{name}.py)" in text
