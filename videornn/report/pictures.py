"""Pictures as small as a page that is mailed needs them."""

from __future__ import annotations

from io import BytesIO

from PIL import Image


def to_webp(image: Image.Image, *, max_width: int | None = None, quality: int = 80) -> bytes:
    """A picture as WebP, scaled down if it is wider."""
    image = image.convert("RGB")
    if max_width is not None and image.width > max_width:
        image = image.resize((max_width, round(image.height * max_width / image.width)), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()
