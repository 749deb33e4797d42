"""Run work in the background of a training's steps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from videornn.system.console import complain


class Background:
    """A thread that does one thing after the other; its errors are raised at the next call.

    As a context, it waits for the work to end. If the body of the context raises, an error of the thread is only said.
    """

    def __init__(self) -> None:
        self._pending: Future[object] | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Start work as soon as the work in progress is done."""
        self.wait()
        thread = ThreadPoolExecutor(1, thread_name_prefix="background")
        self._pending = thread.submit(work)
        thread.shutdown(wait=False)  # the thread ends with its work

    def check(self) -> None:
        """Raise an error of the work so far; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until no work is in progress."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.wait()
        except Exception as other:
            if error is None:
                raise
            complain(str(other))
