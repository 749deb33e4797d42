"""A page on this machine to drop videos on."""

from __future__ import annotations

from videornn.demo.server import Demo, serve

__all__ = ["Demo", "serve"]
