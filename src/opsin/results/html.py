"""Pages that stand alone: templates, and pictures inside them."""

import base64
import io
from typing import Any

from jinja2 import Environment, PackageLoader
from PIL import Image


def data_uri(picture: Image.Image) -> str:
    """The picture as a PNG inside a `data:` address, for a page that needs no other file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def page(template: str, **given: Any) -> str:
    """A page made of one of the templates."""
    made = Environment(
        loader=PackageLoader("opsin.results"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return made.get_template(template).render(**given)


def webp_uri(picture: Image.Image, side: int) -> str:
    """A small WebP inside a `data:` address."""
    picture = picture.copy()
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def escaped(text: str) -> str:
    """A text as the value of an HTML attribute."""
    return text.replace("&", "&amp;").replace('"', "&quot;")
