"""Draw names of classes and videos in pictures: in any script, and never as a formula."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from matplotlib import font_manager, rc_context

DRAWING = threading.RLock()  # matplotlib's settings are global: two threads would restore each other's
NO_FONT = "Last Resort"  # comes with matplotlib and has boxes for all letters


def plain(text: str) -> str:
    """Return a text in one line, without anything that matplotlib would read as a formula."""
    line = encodable(" ".join(text.split())).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line  # matplotlib before 3.10 leaves such names out of legends


def encodable(text: str) -> str:
    """Replace the bytes of file names that are not UTF-8, on which matplotlib fails."""
    return text.encode("utf-8", "replace").decode()


@contextmanager
def fonts_for(texts: Iterable[str]) -> Iterator[None]:
    """Draw letters that matplotlib's own font lacks with other fonts of this machine, inside the context.

    DejaVu Sans has no Chinese, Japanese or Korean. Letters that no font has become boxes, without a warning for each.
    """
    letters = {ord(letter) for text in texts for letter in text if letter.isprintable()}
    with DRAWING, rc_context({"font.family": ["DejaVu Sans", *_families(letters)]}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from", UserWarning)
        yield


def _families(letters: set[int]) -> list[str]:
    """Choose as few fonts of this machine as have the letters that DejaVu Sans lacks; letters: code points."""
    missing = letters - set(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())
    families = []
    for font in sorted(font_manager.fontManager.ttflist, key=lambda font: (font.weight != 400, font.style, font.name)):
        if not missing:
            break
        if font.name.startswith(NO_FONT):
            continue
        found = missing.intersection(font_manager.get_font(font.fname).get_charmap())
        if found:
            families.append(font.name)
            missing -= found
    return families
