"""The order of the site's pages, which MkDocs would sort by name."""

from typing import Any

FIRST = [
    "index.md",
    "tutorial.md",
    "techniques",
    "networks.md",
    "robustness.md",
    "export.md",
    "api.md",
    "architecture.md",
]


def on_nav(nav: Any, **_: Any) -> Any:
    """Called by MkDocs: pages that are not named come last."""

    def place(item: Any) -> int:
        name = item.file.src_uri if item.is_page else item.title.lower()
        return FIRST.index(name) if name in FIRST else len(FIRST)

    nav.items.sort(key=place)
    return nav
