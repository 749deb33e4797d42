"""Check which videos are sound, and re-encode videos so that clips of them are cheap to decode."""

from typing import Literal

Variant = Literal["disposable", "fastdecode", "dense"]  # of encoding, see reencode.Encoding
