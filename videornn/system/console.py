"""Output of commands: lines, a progress bar with an ETA, the end with an exit code."""

from __future__ import annotations

import os
import sys
import unicodedata
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from videornn.distributed.store import first_to_say
from videornn.system.urls import text_without_secrets

JOINERS = "\u200c\u200d"  # invisible, but needed for letters of Persian, Hindi and others, and for emoji


class SafeConsole(Console):
    """A console that shows all text literally, in tables too: no markup, and nothing that moves the cursor."""

    def render_str(self, text: str, *arguments: Any, **options: Any) -> Text:
        """Return what rich shows for a string."""
        plain = "\n".join(map(printable, text.split("\n")))
        return super().render_str(plain, *arguments, **{**options, "markup": False, "emoji": False, "highlight": False})


class ProgressBar:
    """A progress bar with an ETA on a terminal, a plain line now and then elsewhere, nothing on ranks other than 0."""

    def __init__(self, name: str) -> None:
        self._name = name
        columns = (
            TextColumn(name),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
        )
        console = SafeConsole(stderr=True)
        # lines of output appear above the bar, but those that go to a file must not end up on the terminal
        self._bar = (
            Progress(*columns, console=console, redirect_stdout=sys.stdout.isatty())
            if console.is_terminal and is_main()
            else None
        )
        self._task = self._bar.add_task(name, total=None) if self._bar else None
        self._tenths = 0
        self._begun = False

    def update(self, done: int, total: int) -> None:
        """Show that done of total are done; those of the first call do not count for the speed behind the ETA."""
        if self._bar and self._task is not None:
            if not self._begun:
                self._bar.reset(self._task, completed=done, total=total)
            self._bar.update(self._task, completed=done, total=total)
        elif is_main() and 10 * done // max(total, 1) > self._tenths:
            self._tenths = 10 * done // max(total, 1)
            print(f"{self._name} {done}/{total}", file=sys.stderr, flush=True)
        self._begun = True

    def __enter__(self) -> ProgressBar:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()


def is_main() -> bool:
    """Return whether this process is rank 0, the one that prints."""
    return os.environ.get("RANK", "0") == "0"


def printable(text: str) -> str:
    """Make text safe for one line of a terminal: letters of any script stay, control characters become \\x1b, \\n, \\u202e.

    Names of files and classes can hold anything: codes that clear the screen, begin a line, or reverse the writing.
    """
    return "".join(c if c.isprintable() or c in JOINERS or unicodedata.category(c) == "Zs" else ascii(c)[1:-1] for c in text)


def say(*lines: str) -> None:
    """Print lines of output."""
    print(*map(printable, lines), sep="\n", flush=True)


def complain(*lines: str, topic: str | None = None) -> None:
    """Print lines on the error stream; of ranks with the same lines, or the same topic, only the first prints them."""
    if first_to_say(topic or "\n".join(lines)):
        print("videornn:", "\n".join(printable(text_without_secrets(line)) for line in lines), file=sys.stderr, flush=True)


def fail(text: str, code: int = 2) -> None:
    """End the command with a sentence and an exit code."""
    complain(text)
    raise typer.Exit(code)
