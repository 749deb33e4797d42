"""Names of classes and videos in pictures: any script, and never taken for a formula."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from matplotlib import font_manager, rc_context

DRAWING = threading.RLock()  # matplotlib's settings are the process's: two threads would put back each other's
NO_FONT = "Last Resort"  # comes with matplotlib, and has boxes for all letters there are


def plain(text: str) -> str:
    """A text in one line, without what matplotlib would read as a formula."""
    line = encodable(" ".join(text.split())).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line  # matplotlib before 3.10 leaves names with _ out of legends


def encodable(text: str) -> str:
    """A text without the bytes of file names that are not UTF-8, at which matplotlib fails."""
    return text.encode("utf-8", "replace").decode()


@contextmanager
def fonts_for(texts: Iterable[str]) -> Iterator[None]:
    """Within it, letters that matplotlib's own font lacks are drawn with other fonts of this machine.

    DejaVu Sans has no Chinese, Japanese or Korean. Letters that no font has are boxes, without a warning for each of them.
    """
    letters = {ord(letter) for text in texts for letter in text if letter.isprintable()}
    with DRAWING, rc_context({"font.family": ["DejaVu Sans", *_families(letters)]}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from", UserWarning)
        yield


def _families(letters: set[int]) -> list[str]:
    """Fonts of this machine that have what DejaVu Sans lacks, as few as that takes; letters: code points."""
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
