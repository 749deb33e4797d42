"""The command line: parse, call one function of the library, print."""

from __future__ import annotations

from videornn.cli.commands import main

__all__ = ["main"]
