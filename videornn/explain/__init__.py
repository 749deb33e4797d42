"""Show what a network looks at: maps of its attention blocks and Grad-CAM, as pictures, movies and numbers."""

from __future__ import annotations

from videornn.explain.clip_places import Query, parse_query
from videornn.explain.job import explain, load_clip, number_lines

__all__ = ["Query", "explain", "load_clip", "number_lines", "parse_query"]
