"""Pages of HTML from the templates beside this file, in which every text stays text."""

from __future__ import annotations

import base64
import math
import os
import re
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # HTML has no way to write these
BETWEEN_TAGS = re.compile(r">\s*\n\s*<")  # which templates need to be read, and pages do not


def render(template: str, **content: object) -> str:
    """Fill in a template; what cannot be written, such as bytes of a path, is shown another way."""
    text = BETWEEN_TAGS.sub("><", templates().get_template(template).render(content))
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text).encode("utf-8", "backslashreplace").decode()


def templates() -> Environment:
    """Make what knows the templates and their filters."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (as_count, below, breakable, data_uri, number, percent, plural, px)
    environment.filters.update({function.__name__: function for function in filters})
    return environment


def to_webp(image: Image.Image, *, max_width: int | None = None, quality: int = 80) -> bytes:
    """Encode a picture as WebP, scaled down if it is wider."""
    image = image.convert("RGB")
    if max_width is not None and image.width > max_width:
        image = image.resize((max_width, round(image.height * max_width / image.width)), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()


def data_uri(webp: bytes) -> str:
    """Write a picture as an address that holds all of it."""
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"


def below(path: str, folder: str) -> str:
    """Write a path as it is from a folder on; no folder is an empty text."""
    return os.path.relpath(path, folder) if folder else path


def breakable(path: str) -> Markup:
    """Let a path break where people would break it."""
    return Markup("<wbr>").join(re.split(r"(?<=[/_\\\-])", path))


def percent(value: float | None, digits: int = 1) -> str:
    """Write a number of percent, which no line break parts from its sign; a dash for what is not known."""
    return "\N{EN DASH}" if value is None else f"{value:.{digits}f}\N{NO-BREAK SPACE}%"


def as_count(value: int | None) -> str:
    """Write 1,000 for a thousand, and a dash for what is not known."""
    return "\N{EN DASH}" if value is None else f"{value:,}"


def plural(count: int, noun: str) -> str:
    """Write `1 video`, `1,000 videos`, `2 classes`."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def number(value: float) -> str:
    """Write a number as people do, with three digits or so."""
    if not math.isfinite(value):
        return {"nan": "NaN", "inf": "\N{INFINITY}", "-inf": "\N{MINUS SIGN}\N{INFINITY}"}[str(float(value))]
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def px(value: float) -> str:
    """Write a place in a picture, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")
