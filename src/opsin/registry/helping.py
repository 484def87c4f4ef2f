"""What `help()` shows of a technique in Python: a plain signature, its docstring, its settings."""

import inspect
import textwrap
from collections.abc import Mapping
from typing import Any

from opsin.registry.kinds import Parameter

WIDTH = 100
PLAIN = inspect.Parameter.empty


def signature_of(function: inspect.Signature, settings: Mapping[str, Parameter]) -> inspect.Signature:
    """The signature without what only the registry reads: types of values alone, `None` for any default."""
    plain = []
    for parameter in function.parameters.values():
        setting = settings.get(parameter.name)
        kind = setting.type if setting is not None and setting.arg.role == "value" else PLAIN
        default = parameter.default if setting is None else setting.default
        plain.append(parameter.replace(annotation=kind, default=default))
    return inspect.Signature(plain)


def help_text(docstring: str, settings: Mapping[str, Parameter], reading: str, paper: str) -> str:
    """The docstring, followed by the settings with their defaults, how to read the result, and the paper."""
    parts = [inspect.cleandoc(docstring)]
    if settings:
        parts.append("Settings:\n" + "\n".join(_line(setting) for setting in settings.values()))
    parts += [_wrapped(f"How to read it: {reading}"), _wrapped(f"Paper: {paper}")]
    return "\n\n".join(parts) + "\n"


def _line(setting: Parameter) -> str:
    text = f"{setting.name}: {setting.arg.help}{_default(setting)}"
    if setting.arg.role == "layer":
        text += "; a list of layers gives a list of results, one for each"
    return textwrap.indent(_wrapped(text, "    "), "    ")


def _default(setting: Parameter) -> str:
    default: Any = setting.default
    if setting.required:
        return " (needed)"
    by_role = {"target": "each image's predicted class", "layer": "the last one with a spatial extent"}
    if default is None:
        return f"; by default {by_role[setting.arg.role]}" if setting.arg.role in by_role else ""
    return "" if default == () else f" (default {default!r})"


def _wrapped(text: str, further: str = "") -> str:
    return textwrap.fill(text, WIDTH - len(further), subsequent_indent=further, break_long_words=False)
