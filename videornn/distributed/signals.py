"""Record Ctrl-C and the stop signals of schedulers, so that the step in progress can end and be saved."""

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
    """Raised when a job has stopped for a signal; its work is kept."""

    def __init__(self, signal_number: int, kept: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name} {kept}")
        self.exit_code = 128 + signal_number


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collect the numbers of stop signals; a second one of a kind takes its usual effect.

    A scheduler signals torchrun and every rank, and torchrun passes signals on: copies of a signal within REPEAT_SECONDS
    count once.
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
    """Raise KeyboardInterrupt for both signals and collect their numbers; repeats within REPEAT_SECONDS have no effect."""
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
    """Delay the end of this process on SIGTERM by some seconds.

    When a rank dies, torchrun sends SIGTERM to the others at once, but they need a few seconds to find out which it was.
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
    """Give signals this handler inside the context; yields their previous handlers, which are restored at the end.

    Python lets only the main thread set handlers. In other threads, as of a server or a notebook, a job leaves signals
    alone, as it does those whose handler was not set in Python and could not be restored.
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
