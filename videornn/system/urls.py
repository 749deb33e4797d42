"""URLs, and what they hold that is nobody else's business."""

from __future__ import annotations

import os
import re

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
USER = re.compile(r"(?<=:/)(/?)[^/?#\s]*@")  # a path made of a URL has one slash there
SECRET = re.compile(r"((?:passphrase|password|passwd|pass|pwd|token|secret|key)=)[^&;/#\s]+", re.IGNORECASE)
IN_TEXT = re.compile(r"\b[a-z][a-z0-9+.-]+:/[^\s'\",]*[^\s'\",:;.)]", re.IGNORECASE)  # without what ends a phrase


def is_url(source: str) -> bool:
    """Whether a source is a URL; the path of a file that is there is none, whatever it looks like."""
    return bool(URL.match(source)) and not os.path.exists(source)


def without_secrets(source: str) -> str:
    """A source as it may be shown and written: of a URL, neither user:password@ nor the value of password= or the like."""
    return SECRET.sub(r"\1***", USER.sub(r"\1***@", source)) if URL.match(source) else source


def text_without_secrets(text: str) -> str:
    """A sentence, or a word of a command line, whose URLs are without secrets."""
    return IN_TEXT.sub(lambda match: SECRET.sub(r"\1***", USER.sub(r"\1***@", match[0])), text)
