"""One function over many items in worker processes, any of which may crash or hang: its item is named, the rest goes on.

A pool of `concurrent.futures` is lost as a whole when one process crashes, and cannot tell which item was to blame. Here
the parent hands out one item at a time, so it always knows what a worker is doing and puts a new one in its place.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, TypeVar

from videornn.distributed.signals import handled_by

# forks of a server, which imports what they need once: a new worker is there at once, and shares its memory
START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"
GROWN_BYTES = 2**30  # that a worker may keep after an item, beyond what it needs; then another takes its place
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Lost:
    """What stands in for the result of an item whose worker crashed or hung."""

    kind: Literal["crashed", "timeout"]
    reason: str


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def imported_once(module: str, start_method: str) -> Iterator[None]:
    """Have the server of forks import a module for all workers, if it starts meanwhile; other start methods have none."""
    if start_method != "forkserver":
        yield
        return
    from multiprocessing import forkserver  # not for Windows

    before = forkserver._forkserver._preload_modules  # type: ignore[attr-defined]  # there is no other way to put it back
    multiprocessing.set_forkserver_preload([*(name for name in before if name != "__main__"), module])
    try:
        yield
    finally:
        multiprocessing.set_forkserver_preload(before)


def start_server(module: str) -> None:
    """Have the server of workers start and import a module, while this process does other things; where there is one."""
    global START_METHOD
    if START_METHOD == "forkserver":
        from multiprocessing import forkserver

        try:
            with _left_to_the_parent(), imported_once(module, START_METHOD):
                forkserver.ensure_running()
        except OSError:  # there is no room for its socket, or the name of TMPDIR is too long for one
            START_METHOD = "spawn"


def _left_to_the_parent() -> AbstractContextManager:
    """What starts in this context leaves Ctrl-C to its parent from its first moment on, and so do its forks."""
    return handled_by(signal.SIG_IGN, (signal.SIGINT,))


def run_parallel(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    num_workers: int,
    timeout_seconds: float | None = None,
) -> Iterator[tuple[int, Result | Lost]]:
    """Yield (index of the item, result) as results come, in any order.

    Workers are no forks of this process, since one with threads (a progress bar, torch) can hang, so a script that calls
    this needs the usual `if __name__ == "__main__":`. They leave Ctrl-C to the parent, which ends them.

    Args:
        function: something picklable; an exception of it is raised here.
        num_workers: processes; 0 runs everything in this one, where nothing guards against a crash or a hang.
        timeout_seconds: longest time for one item, not counting the start of the process.

    Raises:
        RuntimeError: a worker cannot even start.
    """
    if num_workers == 0:
        yield from ((index, function(item)) for index, item in enumerate(items))
        return
    todo = deque(enumerate(items))
    workers = [Worker(function, timeout_seconds) for _ in range(min(num_workers, len(items)))]
    try:
        while workers:
            soonest = min(worker.seconds_left() for worker in workers)
            wait([worker.pipe for worker in workers], None if soonest == math.inf else soonest)
            for worker in list(workers):
                if not worker.pipe.poll() and worker.seconds_left() > 0:
                    continue
                index, answer = worker.index, worker.answer()
                if todo and not isinstance(answer, Lost) and not worker.has_grown():
                    worker.give(*todo.popleft())
                else:
                    worker.stop()
                    workers.remove(worker)
                    if todo:
                        workers.append(Worker(function, timeout_seconds))
                if index is not None:  # else it has only said that it is ready
                    yield index, answer
    finally:
        for worker in workers:
            worker.stop()


class Worker:
    """A process, the parent's end of its pipe, and which item it is at (None: it is still starting).

    The function is sent to it once, and keeps from item to item what it will. After a Lost, the process must be stopped;
    once it has grown, it should be.

    Args:
        function: something picklable.
        timeout_seconds: longest time for one item, not counting the start of the process; None is no limit.
    """

    def __init__(self, function: Callable, timeout_seconds: float | None) -> None:
        start_server(getattr(function, "func", function).__module__)  # of a partial, too
        context = multiprocessing.get_context(START_METHOD)
        self.pipe, theirs = context.Pipe()
        self.index: int | None = None
        self.timeout_seconds = timeout_seconds  # a change of it holds at once
        self._given = 0.0  # when, on the monotonic clock, it got its item
        self._num_bytes = self._usual_bytes = 0  # of its memory, after the last answer and before the first item
        self._process: BaseProcess = context.Process(  # type: ignore[attr-defined]  # typeshed: not of the base class
            target=_serve, args=(theirs, function), daemon=True
        )
        # a server takes seconds to answer at first, in which Ctrl-C must be heard
        with nullcontext() if START_METHOD == "forkserver" else _left_to_the_parent():
            self._process.start()
        theirs.close()  # or the pipe would not end with the process

    def ask(self, item: object) -> Any:
        """Wait for what the function returns for an item, or for Lost; raises what the function raises."""
        if self.index is None:
            self.wait()  # until it says that it is ready
        self.give(0, item)
        return self.wait()

    def wait(self) -> Any:
        """Wait for the answer to what it has been given."""
        left = self.seconds_left()
        wait([self.pipe], None if left == math.inf else left)
        return self.answer()

    def give(self, index: int, item: object) -> None:
        self.index = index
        self._given = time.monotonic()
        with suppress(OSError):  # a process that is gone is noticed when its answer is read
            self.pipe.send(item)

    def has_grown(self) -> bool:
        """Whether it keeps much more memory than when it began, for good: whatever it was, the next one is without it."""
        return self._num_bytes > self._usual_bytes + GROWN_BYTES

    def take_as_usual(self) -> None:
        """Count what it keeps by now as what it needs."""
        self._usual_bytes = self._num_bytes

    def seconds_left(self) -> float:
        if self.index is None or self.timeout_seconds is None:
            return math.inf
        return max(self._given + self.timeout_seconds - time.monotonic(), 0)

    def answer(self) -> Any:
        """What the function returned, or Lost; raises what the function raised."""
        if not self.pipe.poll():
            assert self.timeout_seconds is not None  # else it is waited for
            return Lost("timeout", f"took longer than {round(self.timeout_seconds, 1):g} s")
        try:
            raised, result, self._num_bytes = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            assert self._process.exitcode is not None
            reason = exit_reason(self._process.exitcode)
            if self.index is None:
                raise RuntimeError(f"a worker process cannot start ({reason})") from None
            return Lost("crashed", f"the process that read it ended ({reason})")
        if self.index is None:  # it is ready
            self.take_as_usual()
        if raised:
            raise result
        return result

    def stop(self) -> None:
        self._process.terminate()  # which lets it take its temporary files away
        self._process.join(timeout=2)
        self.kill()  # where it hangs in a decoder

    def kill(self) -> None:
        self._process.kill()
        self._process.join(timeout=5)  # where it hangs in a dead disk, even this does not end it
        self.pipe.close()


class WorkerLost(Exception):
    """A worker crashed or hung; the message says which."""


class GeneratorWorker:
    """A process that runs generators for its parent, one after the other; any may crash or hang.

    It starts with the first generator, and anew after one that has cost it. While the parent looks at an item, it makes the
    next one.

    Attributes:
        timeout_seconds: longest time for one item; it may be changed at any moment.
    """

    def __init__(self, timeout_seconds: float = math.inf) -> None:
        self.timeout_seconds = timeout_seconds
        self._worker: Worker | None = None

    def iterate(self, generate: Callable[..., Iterator[Item]], *arguments: object) -> Iterator[Item]:
        """The items of generate(*arguments), all of it picklable; raises what it raises.

        Raises:
            WorkerLost: the process crashed, or an item took too long.
        """
        is_new = self._worker is None
        worker = self._worker = self._worker or self._start(generate.__module__)
        idle = False
        try:
            worker.timeout_seconds = None
            worker.ask((generate, arguments))  # which imports what they need: no part of the time for an item
            if is_new:
                worker.take_as_usual()
            worker.give(0, None)
            worker.timeout_seconds = self.timeout_seconds
            while (answer := worker.wait()) is not None:
                if isinstance(answer, Lost):
                    raise WorkerLost(answer.reason)
                worker.give(0, None)
                yield answer[0]
                worker.timeout_seconds = self.timeout_seconds
            idle = not worker.has_grown()
        except WorkerLost:
            raise
        except Exception:  # of the generator, which is over; the process waits for another
            idle = not worker.has_grown()
            raise
        finally:
            if not idle:  # lost, too large, or still at work on an item that nobody wants any more
                self.stop()

    def _start(self, module: str) -> Worker:
        start_server(module)
        return Worker(_Generators(), None)

    def stop(self) -> None:
        """End the process, if there is one."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()

    def __enter__(self) -> GeneratorWorker:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._worker is not None:  # it waits for work that will not come, and takes a second to end by itself
            self._worker.kill()


class _Generators:
    """The worker's side: begins what it is given, then makes an item, in a tuple, for every None; None is the end."""

    def __call__(self, begun: tuple[Callable[..., Iterator], tuple] | None) -> tuple[object] | None:
        if begun is not None:
            generate, arguments = begun
            self._items = generate(*arguments)
            return None
        for item in self._items:
            return (item,)
        return None


def _serve(pipe: Connection, function: Callable) -> None:
    """What a worker does until its parent ends it or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with suppress(EOFError, OSError):
        pipe.send((False, None, _resident_bytes()))  # ready
        while True:
            item = pipe.recv()
            try:
                answer = (False, function(item))
            except Exception as error:  # whatever it is, the parent raises it
                answer = (True, error)
            pipe.send((*answer, _resident_bytes()))


def _resident_bytes() -> int:
    """Memory of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def exit_reason(exit_code: int) -> str:
    """How a process ended, in words."""
    if exit_code == -signal.SIGKILL:
        return "SIGKILL, as when memory runs out"
    return signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
