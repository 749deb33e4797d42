"""From videos to batches; knows nothing of models."""

from __future__ import annotations


def __getattr__(name: str):
    if name == "build_loader":  # on demand: the processes that draw the synthetic videos need no torch
        from videornn.data.loader import build_loader

        return build_loader
    raise AttributeError(f"module 'videornn.data' has no attribute {name!r}")
