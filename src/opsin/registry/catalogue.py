"""Techniques are plain annotated functions: what they are called with, said and cited is read off them.

`@technique` gives every function the same contract: inputs are checked and resolved, it runs with
gradients on whatever the caller's mode is, and its result carries the record of how it was made.
The command line, the report, the reference pages and the contract tests are made from `techniques()`.
"""

import ast
import functools
import importlib
from pathlib import Path

from opsin.registry.kinds import Technique

FOLDER = Path(__file__).parent.parent / "techniques"


@functools.cache
def names() -> dict[str, str]:
    """Every technique's name and first sentence, read without importing it (that would import torch)."""
    found = {}
    for path in sorted(FOLDER.glob("*/[a-z]*.py"), key=lambda path: path.stem):
        functions = [n for n in ast.parse(path.read_text("utf-8")).body if isinstance(n, ast.FunctionDef)]
        function = next(n for n in functions if n.name == path.stem)
        found[path.stem] = (ast.get_docstring(function) or "").split("\n\n")[0].replace("\n", " ")
    return found


def get(name: str) -> Technique:
    """The technique of this name; `InputError` with the nearest names where there is none."""
    from opsin.base.errors import unknown

    found = {path.stem: path.parent.name for path in FOLDER.glob("*/[a-z]*.py")}
    if name not in found:
        raise unknown("technique", name, sorted(found))
    module = importlib.import_module(f"opsin.techniques.{found[name]}.{name}")
    return getattr(module, name).technique  # type: ignore[no-any-return]


def techniques() -> dict[str, Technique]:
    """Every technique by name."""
    return {name: get(name) for name in names()}
