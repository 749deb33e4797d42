"""Pictures of a run folder, and pictures as small as a page that is mailed needs them."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path

from PIL import Image

from videornn.errors import UserError
from videornn.system.text_files import read_bytes

MAX_BYTES = 50_000_000  # of a PNG of the run folder


def read_png(path: Path) -> Image.Image:
    """A picture of the run folder, RGB; raises UserError if it is none, or damaged, and OSError if it may not be read."""
    content = BytesIO(read_bytes(path, max_bytes=MAX_BYTES))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of pictures of a hundred million pixels, and such as a test does not write
            with Image.open(content, formats=("PNG",)) as image:
                return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Warning) as error:
        raise UserError(f"{path} is no picture, or damaged ({type(error).__name__})") from error


def to_webp(image: Image.Image, *, max_width: int | None = None, quality: int = 80) -> bytes:
    """A picture as WebP, scaled down if it is wider."""
    image = image.convert("RGB")
    if max_width is not None and image.width > max_width:
        image = image.resize((max_width, round(image.height * max_width / image.width)), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()
