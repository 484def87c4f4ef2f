"""Write the pages that are made from the code: one for each technique, the front page and the API.

python docs/build.py --check               # write nothing, fail where a page is stale
python docs/build.py --pictures gallery    # and take the pages' pictures from there (`opsin gallery`)
"""

import sys
from pathlib import Path

from PIL import Image

import opsin
from opsin.registry import catalogue
from opsin.registry.kinds import Parameter, Technique
from opsin.results.result import Result

DOCS = Path(__file__).parent
FOLDER = DOCS / "techniques"
PICTURES = DOCS / "pictures"
HEIGHT, MOST = 176, 6  # pixels of a page's picture, and how many stand side by side
WIDEST = 4  # times as wide as high: vectors, drawn as lines, are left out


EXAMPLES = {"target": '"tabby cat"', "style": "painting.jpg"}  # of settings that have no default


def default(parameter: Parameter) -> str:
    """The default as the table shows it."""
    return "(needed)" if parameter.required else f"`{parameter.default}`"


def page(technique: Technique) -> str:
    """The Markdown page of one technique."""
    summary, _, rest = technique.docstring.partition("\n\n")
    rows = "\n".join(f"| `{p.name}` | {p.arg.help} | {default(p)} |" for p in technique.parameters.values())
    photos = {"each": "photo.jpg", "whole": "photo.jpg", "together": "folder/"}[technique.photos]
    needed = [p.name for p in technique.parameters.values() if p.required]
    first = " ".join([*[photos] * technique.takes_images, *(f"--{name} {EXAMPLES[name]}" for name in needed)])
    inputs = ", ".join([*technique.inputs("model", "images"), *(f"{name}=..." for name in needed)])
    call = f"opsin.{technique.name}({inputs})"
    asked = " `explain` runs it only by name." if technique.expensive else ""
    cost = (
        f"About {technique.cost} forward passes per image with the default settings, a backward pass\n"
        "counted as two."
        if technique.takes_model
        else "It runs no network."
    )
    return f"""# {technique.name}

{summary}

{shown(technique)}{rest}

**How to read it.** {technique.reading}

**Paper.** {technique.paper}

**Cost.** {cost}{asked}

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


def shown(technique: Technique) -> str:
    """The page's picture, where there is one."""
    there = (PICTURES / f"{technique.name}.webp").is_file()
    return f"![{technique.name}](../pictures/{technique.name}.webp)\n\n" if there else ""


def card(technique: Technique) -> str:
    """The front page's entry for one technique: picture, name, first sentence."""
    name, link = technique.name, f"techniques/{technique.name}.md"
    there = (PICTURES / f"{name}.webp").is_file()
    picture = f"[![{name}](pictures/{name}.webp)]({link})\n\n    " if there else ""
    return f"-   {picture}[**{name}**]({link})\n\n    {technique.summary}\n"


def front_page() -> str:
    """The gallery: techniques in the groups that their folders make."""
    techniques, groups = catalogue.techniques(), []
    for title, names in catalogue.sections().items():
        cards = "\n".join(card(techniques[name]) for name in names)
        groups.append(f'\n## {title}\n\n<div class="grid cards" markdown>\n\n{cards}\n</div>\n')
    return f"""# Opsin

Opsin shows what a vision network sees: the classic ways of looking inside a convolutional network,
each true to its paper, each on any PyTorch model, from Python and the command line.

[The tutorial](tutorial.md) begins with a photo, [Techniques](techniques/README.md) lists them all,
[Python](api.md) describes the public names, and [Architecture](architecture.md) is for those who change it.
{"".join(groups)}"""


def api_page() -> str:
    """The public names but for the techniques, which have their own pages; MkDocs fills in the docstrings."""
    names = [name for name in opsin.__all__ if name not in catalogue.names()]
    found = [getattr(opsin, name) for name in names]
    lines = "\n".join(f"::: {one.__module__}.{one.__qualname__}" for one in found)
    return f"""# Python

Every name here is imported as `opsin.NAME`. So is every [technique](techniques/README.md).

{lines}
"""


def take_pictures(gallery: Path) -> None:
    """Side by side, small, what the gallery holds of each technique."""
    PICTURES.mkdir(exist_ok=True)
    for name in catalogue.techniques():
        pictures = [picture for _, picture in Result.load(gallery / name).pictures()]
        drawn = [picture for picture in pictures if picture.width < WIDEST * picture.height]
        tiles = [p.resize((max(1, round(p.width * HEIGHT / p.height)), HEIGHT)) for p in drawn[:MOST]]
        sheet = Image.new("RGB", (sum(t.width + 4 for t in tiles) - 4, HEIGHT), "white")
        left = 0
        for tile in tiles:
            sheet.paste(tile, (left, 0))
            left += tile.width + 4
        sheet.save(PICTURES / f"{name}.webp", quality=80)


def pages() -> dict[Path, str]:
    """Every page's path and text."""
    techniques = catalogue.techniques()
    index = "\n\n".join(
        f"## {title}\n\n" + "\n".join(f"- [{n}]({n}.md): {techniques[n].summary}" for n in names)
        for title, names in catalogue.sections().items()
    )
    found = {FOLDER / f"{name}.md": page(technique) for name, technique in techniques.items()}
    found[FOLDER / "README.md"] = f"# Techniques\n\n{index}\n"
    return {DOCS / "index.md": front_page(), DOCS / "api.md": api_page(), **found}


def main() -> None:
    """Write the pages, or check them."""
    if "--pictures" in sys.argv:
        take_pictures(Path(sys.argv[sys.argv.index("--pictures") + 1]))
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
    print(f"{len(made)} pages in {DOCS.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
