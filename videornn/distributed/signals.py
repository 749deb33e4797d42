"""Ctrl-C and the signals by which schedulers ask for a stop: noted, so that the step in progress ends and is saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

# SIGUSR1 is what SLURM is usually told to send ahead of a preemption; Windows has none
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
REPEAT_SECONDS = 1.0  # a signal that comes again within this time is the same one


class Interrupted(Exception):
    """A job has stopped for a signal, and what it has done is kept."""

    def __init__(self, signal_number: int, kept: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name} {kept}")
        self.exit_code = 128 + signal_number


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collects the numbers of stop signals; a second one of a kind does what it would have done without this.

    A scheduler signals torchrun and every rank, and torchrun passes on what it gets: copies of a signal that come within
    REPEAT_SECONDS count once.
    """
    received: list[int] = []
    first_at: dict[int, float] = {}

    def note(number: int, frame: object) -> None:
        now = time.monotonic()
        if number not in first_at:
            first_at[number] = now
            received.append(number)
        elif now - first_at[number] > REPEAT_SECONDS:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    with handled_by(note, STOP_SIGNALS) as before:
        yield received


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[list[int]]:
    """Both raise KeyboardInterrupt; collects their numbers. A second one within REPEAT_SECONDS has no effect."""
    received: list[int] = []
    last = -REPEAT_SECONDS

    def interrupt(number: int, frame: object) -> None:
        nonlocal last
        if time.monotonic() - last < REPEAT_SECONDS:
            return
        last = time.monotonic()
        received.append(number)
        raise KeyboardInterrupt

    with handled_by(interrupt, (signal.SIGINT, signal.SIGTERM)):
        yield received


@contextmanager
def sigterm_delayed(seconds: float) -> Iterator[None]:
    """SIGTERM ends this process only so many seconds later.

    When a rank dies, torchrun sends SIGTERM to the others at once, and they need a few seconds to tell which one it was.
    """

    def delay(number: int, frame: object) -> None:
        timer = threading.Timer(seconds, os._exit, [128 + number])
        timer.daemon = True
        timer.start()

    with handled_by(delay, (signal.SIGTERM,)):
        yield


@contextmanager
def handled_by(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers, numbers: Sequence[int]
) -> Iterator[dict[int, Any]]:
    """Within it signals have this handler; yields those that they had, which they get back.

    Python lets the main thread alone set handlers. In another one, as in a server or a notebook's, signals are none of a
    job's business, nor are those whose handler is not Python's, which could not be put back.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: old for number in numbers if (old := signal.getsignal(number)) is not None}
    for number in before:
        signal.signal(number, handler)
    try:
        yield before
    finally:
        for number, old in before.items():
            signal.signal(number, old)
