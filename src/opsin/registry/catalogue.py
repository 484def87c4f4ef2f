"""The techniques, found in their folders: a technique exists because its file does.

The command line, the report, the reference pages and the contract tests are made from `techniques()`. What
a technique is called with is read off its function by `@technique`; `declared` does so without importing
torch, which takes seconds, so that help comes at once.
"""

import ast
import functools
import importlib
from pathlib import Path
from typing import Any

from opsin.base.errors import unknown
from opsin.registry.kinds import Technique

FOLDER = Path(__file__).parent.parent / "techniques"
WITHOUT_TORCH = (
    "typing",
    "collections.abc",
    "opsin.base.choices",
    "opsin.registry.kinds",
    "opsin.registry.technique",
)


def existing() -> list[str]:
    """Every technique's name, without reading its file."""
    return sorted(_files())


@functools.cache
def names() -> dict[str, str]:
    """Every technique's name and first sentence."""
    docstrings = {name: ast.get_docstring(_function(name)[1]) or "" for name in sorted(_files())}
    return {name: text.split("\n\n")[0].replace("\n", " ") for name, text in docstrings.items()}


@functools.cache
def sections() -> dict[str, list[str]]:
    """The techniques' names by section: a folder's first line, without its full stop."""
    found = {}
    for folder in sorted({path.parent for path in _files().values()}):
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or folder.name
        title = docstring.partition("\n")[0].removesuffix(".")
        found[title] = [name for name in names() if _path(name).parent == folder]
    return found


def get(name: str) -> Technique:
    """The technique of this name. Raises `InputError` with the nearest names where there is none."""
    module = importlib.import_module(f"opsin.techniques.{_path(name).parent.name}.{name}")
    return getattr(module, name).technique  # type: ignore[no-any-return]


def techniques() -> dict[str, Technique]:
    """Every technique by name."""
    return {name: get(name) for name in names()}


@functools.cache
def declared(name: str) -> Technique:
    """The technique of this name as its file declares it, with a `run` that does nothing.

    Its function is compiled without its body, its module without imports that may need torch: their names,
    which stand in the types of images and targets only, become `Any`.
    """
    module, function = _function(name)
    docstring = ast.get_docstring(function, clean=False) or ""
    function.body = [ast.Expr(ast.Constant(docstring))]
    function.returns = None
    for argument in function.args.args:
        if argument.arg in ("model", "images"):
            argument.annotation = None
    heads: list[ast.stmt] = []
    for statement in module.body:
        match statement:
            case ast.ImportFrom(module=source) if source in WITHOUT_TORCH:
                heads.append(statement)
            case ast.ImportFrom() | ast.Import():
                heads += [_assign(alias.asname or alias.name, "Any") for alias in statement.names]
            case ast.Assign(value=value) if _is_literal(value):
                heads.append(statement)
    code = ast.Module([*ast.parse("from typing import Any").body, *heads, function], [])
    namespace: dict[str, Any] = {}
    exec(compile(ast.fix_missing_locations(code), str(_path(name)), "exec"), namespace)
    return namespace[name].technique  # type: ignore[no-any-return]


@functools.cache
def _files() -> dict[str, Path]:
    """Every technique's file by its name."""
    return {path.stem: path for path in FOLDER.glob("*/[a-z]*.py")}


def _path(name: str) -> Path:
    files = _files()
    if name not in files:
        raise unknown("technique", name, sorted(files))
    return files[name]


def _function(name: str) -> tuple[ast.Module, ast.FunctionDef]:
    """A technique's module and its function, which has the file's name."""
    module = ast.parse(_path(name).read_text("utf-8"))
    functions = [n for n in module.body if isinstance(n, ast.FunctionDef) and n.name == name]
    return module, functions[0]


def _assign(name: str, value: str) -> ast.stmt:
    return ast.parse(f"{name} = {value}").body[0]


def _is_literal(value: ast.expr) -> bool:
    try:
        ast.literal_eval(value)
    except ValueError:
        return False
    return True
