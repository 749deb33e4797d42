"""videornn: train, test, run and explain video action recognition networks with disentangled non-local blocks."""

from __future__ import annotations

__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "load_predictor":  # on demand, because torch takes seconds to import and the command line starts without it
        from videornn.inference.predictor import load_predictor

        return load_predictor
    raise AttributeError(f"module 'videornn' has no attribute {name!r}")
