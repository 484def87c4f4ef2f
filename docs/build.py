"""Write one reference page a technique, from the registry; with --check, fail where a page is stale."""

import inspect
import sys
from pathlib import Path

from opsin import registry
from opsin.registry import Parameter, Technique

FOLDER = Path(__file__).parent / "techniques"


EXAMPLES = {"target": '"tabby cat"', "style": "painting.jpg"}  # of settings that have no default


def default(parameter: Parameter) -> str:
    """The default as the table shows it."""
    return "(needed)" if parameter.required else f"`{parameter.default}`"


def page(technique: Technique) -> str:
    """The Markdown page of one technique."""
    doc = inspect.getdoc(technique.run) or ""
    summary, _, rest = doc.partition("\n\n")
    rows = "\n".join(f"| `{p.name}` | {p.arg.help} | {default(p)} |" for p in technique.parameters.values())
    photos = {"each": "photo.jpg", "whole": "photo.jpg", "together": "folder/"}[technique.photos]
    needed = [p.name for p in technique.parameters.values() if p.required]
    first = " ".join([*[photos] * technique.takes_images, *(f"--{name} {EXAMPLES[name]}" for name in needed)])
    inputs = ", ".join(["model", *["images"] * technique.takes_images, *(f"{name}=..." for name in needed)])
    call = f"opsin.{technique.name}({inputs})"
    asked = " It runs in `explain` only when it is asked for." if technique.dear else ""
    return f"""# {technique.name}

{summary}

{rest}

**How to read it.** {technique.reading}

**Paper.** {technique.paper}

**Cost.** About {technique.cost} forward passes an image with the default settings, a backward pass
counted as two.{asked}

```
opsin {technique.name} {first}
```

```python
{call}
```

| setting | what it is | default |
|---|---|---|
{rows}
"""


def pages() -> dict[Path, str]:
    """Every page's path and text."""
    techniques = registry.techniques()
    index = "\n".join(f"- [{t.name}]({t.name}.md): {t.summary}" for t in techniques.values())
    found = {FOLDER / f"{name}.md": page(technique) for name, technique in techniques.items()}
    return {FOLDER / "README.md": f"# Techniques\n\n{index}\n", **found}


def main() -> None:
    """Write the pages, or check them."""
    made = pages()
    stale = [p for p, text in made.items() if not p.is_file() or p.read_text("utf-8") != text]
    stale += [p for p in FOLDER.glob("*.md") if p not in made]
    if "--check" in sys.argv:
        if stale:
            sys.exit(f"stale, run make docs: {', '.join(p.name for p in stale)}")
        return
    FOLDER.mkdir(exist_ok=True)
    for path in stale:
        if path in made:
            path.write_text(made[path], "utf-8")
        else:
            path.unlink()
    print(f"{len(made)} pages in {FOLDER.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
