"""The names of timm's and torchvision's networks, read off the source of these packages.

Importing them takes seconds, which a shell that completes a name does not wait for.
"""

import re
from importlib.util import find_spec
from pathlib import Path

FAMILIES = ("timm", "torchvision")
REGISTERED = re.compile(
    r"""
    ^@register_model(?:\((?:name="(?P<name>\w+)")?\))?\n  # the decorator, which may give another name
    (?:@.*\n|[ ]+.*\n|\)\n)*                              # other decorators, which may be of several lines
    def\ (?P<function>\w+)
    """,
    re.MULTILINE | re.VERBOSE,
)


def names(family: str) -> list[str]:
    """The networks that the modules of this package register; none if it is not installed."""
    package = find_spec(family)
    if package is None or package.origin is None:
        return []
    modules = (Path(package.origin).parent / "models").glob("*.py")
    matches = [match for path in modules for match in REGISTERED.finditer(path.read_text("utf-8"))]
    return sorted({match["name"] or match["function"] for match in matches})
