"""Which videos are sound, and videos encoded anew so that clips of them are cheap."""

from typing import Literal

Variant = Literal["disposable", "fastdecode", "dense"]  # of encoding, see reencode.Encoding
