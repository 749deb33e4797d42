"""Work that goes on beside the steps of a training."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from videornn.system.console import complain


class Background:
    """Does one thing after the other in a thread; what it raises is raised where the next thing is asked of it.

    As a context it is left when nothing goes on any more. An error that comes out of the context itself comes first; then
    one of the thread is only said.
    """

    def __init__(self) -> None:
        self._pending: Future[object] | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Begin, as soon as what goes on is done."""
        self.wait()
        thread = ThreadPoolExecutor(1, thread_name_prefix="background")
        self._pending = thread.submit(work)
        thread.shutdown(wait=False)  # it ends with its work

    def check(self) -> None:
        """Raise what was raised meanwhile; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until nothing goes on."""
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
