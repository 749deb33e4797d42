"""What commands say and how: lines, a progress bar with an ETA, the end with an exit code."""

from __future__ import annotations

import os
import sys

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from videornn.rank_store import first_to_say


class ProgressBar:
    """A bar with an ETA on a terminal; a plain line now and then elsewhere; nothing on ranks other than 0."""

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
        console = Console(stderr=True)
        # lines of output appear above the bar, but one that goes to a file must not end up on the terminal
        self._bar = (
            Progress(*columns, console=console, redirect_stdout=sys.stdout.isatty())
            if console.is_terminal and is_main()
            else None
        )
        self._task = self._bar.add_task(name, total=None) if self._bar else None
        self._tenths = 0
        self._begun = False

    def update(self, done: int, total: int) -> None:
        """So many are done of so many; the ETA does not count on the speed of those that the first call tells of."""
        if self._bar:
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
    """Whether this process is rank 0, the one that speaks."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """A line of output."""
    print(text, flush=True)


def complain(text: str, topic: str | None = None) -> None:
    """A line on the error stream; of several ranks that have the same to say, or have one topic, the first says it."""
    if first_to_say(topic or text):
        print(f"videornn: {text}", file=sys.stderr, flush=True)


def fail(text: str, code: int = 2) -> None:
    """End the command with a sentence and an exit code."""
    complain(text)
    raise typer.Exit(code)
