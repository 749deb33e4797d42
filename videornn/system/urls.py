"""Recognise URLs, and hide the secrets in them."""

from __future__ import annotations

import os
import re

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
USER = re.compile(r"(?<=:/)(/?)[^/?#\s]*@")  # a URL turned into a path has a single slash there
SECRET = re.compile(r"((?:passphrase|password|passwd|pass|pwd|token|secret|key)=)[^&;/#\s]+", re.IGNORECASE)
IN_TEXT = re.compile(r"\b[a-z][a-z0-9+.-]+:/[^\s'\",]*[^\s'\",:;.)]", re.IGNORECASE)  # without punctuation at the end


def is_url(source: str) -> bool:
    """Return whether a source is a URL; the path of an existing file is none, whatever it looks like."""
    return bool(URL.match(source)) and not os.path.exists(source)


def without_secrets(source: str) -> str:
    """Return a source fit to be shown: a URL loses user:password@ and the values of password= and the like."""
    return SECRET.sub(r"\1***", USER.sub(r"\1***@", source)) if URL.match(source) else source


def text_without_secrets(text: str) -> str:
    """Return a sentence, or a word of a command line, with its URLs stripped of secrets."""
    return IN_TEXT.sub(lambda match: SECRET.sub(r"\1***", USER.sub(r"\1***@", match[0])), text)
