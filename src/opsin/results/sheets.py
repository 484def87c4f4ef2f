"""Several pictures on one sheet, each under its title."""

import unicodedata
from collections.abc import Sequence
from math import ceil

from PIL import Image, ImageDraw, ImageFont

# pixels
WIDTH = 1400  # of a sheet, unless a single picture is wider
NARROWEST = 160  # column
GAP = 14
TEXT, LINE = 13, 18  # the height of letters, and from line to line
READ = 1000  # letters of a text that are looked at
LETTER = 7  # the width of a letter, on average
COLOURS = 256  # of a sheet, whose file is then a third as large; shades are off by a few of 255
GROUND, INK, SOFT = "white", "#1c1b1a", "#66625c"


def sheet(cells: Sequence[tuple[str, str, Image.Image]]) -> Image.Image:
    """Pictures in rows, each under a title and a caption."""
    column = max(NARROWEST, *(picture.width for _, _, picture in cells))
    columns = max(1, min(len(cells), WIDTH // (column + GAP)))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [2 * LINE + max(picture.height for _, _, picture in row) for row in rows]
    size = (GAP + columns * (column + GAP), GAP + sum(heights) + GAP * len(rows))
    drawn = Image.new("RGB", size, GROUND)
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(TEXT)
    letters = ceil(column / LETTER)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for index, (title, caption, picture) in enumerate(row):
            left = GAP + index * (column + GAP)
            pen.text((left, top), drawable(fitting(title, letters)), INK, font)
            pen.text((left, top + LINE), drawable(fitting(caption, letters)), SOFT, font)
            drawn.paste(picture, (left, top + 2 * LINE))
        top += height + GAP
    return drawn.quantize(COLOURS, Image.Quantize.MAXCOVERAGE)


def drawable(text: str) -> str:
    """The text in letters that Pillow's own font has."""
    plain = unicodedata.normalize("NFKD", text[:READ].replace("×", "x"))
    return (
        "".join(letter for letter in plain if not unicodedata.combining(letter))
        .encode("ascii", "replace")
        .decode()
    )


def fitting(text: str, letters: int) -> str:
    """The text on one line of at most so many letters."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text[: letters + 1])
    return plain if len(plain) <= letters else f"{plain[: letters - 1]}…"


def reduced(picture: Image.Image, side: int) -> Image.Image:
    """A copy of the picture whose longer side is at most `side`."""
    copy = picture.copy()
    copy.thumbnail((side, side))
    return copy
