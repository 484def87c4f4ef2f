"""Self-contained pages: templates with embedded pictures."""

import base64
import io
from typing import Any

from jinja2 import Environment, PackageLoader
from PIL import Image

QUALITY = 80  # of WebP pictures on pages


def data_uri(picture: Image.Image) -> str:
    """The picture as a PNG in a `data:` URI, for a page that needs no other file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def page(template: str, **given: Any) -> str:
    """A page rendered from one of the templates."""
    environment = Environment(
        loader=PackageLoader("opsin.results"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**given)


def webp_uri(picture: Image.Image, side: int) -> str:
    """The picture, reduced to `side`, as a WebP in a `data:` URI."""
    picture = picture.copy()
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY)
    return file_uri(buffer.getvalue())


def file_uri(webp: bytes) -> str:
    """The content of a WebP file as a `data:` URI."""
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"


def escaped(text: str) -> str:
    """A text, escaped for an HTML attribute."""
    return text.replace("&", "&amp;").replace('"', "&quot;")
