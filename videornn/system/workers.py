"""Run a function over many items in worker processes; if one crashes or hangs, its item is named and the rest goes on.

A pool of `concurrent.futures` is lost as a whole when one process crashes, and cannot tell which item was to blame. Here
the parent hands out one item at a time, so it always knows what a worker is doing, and replaces lost workers.
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

# forks of a server, which imports everything once: a new worker starts at once and shares its memory
START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"
GROWN_BYTES = 2**30  # of memory that a worker may keep after an item, beyond its needs, before it is replaced
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Lost:
    """The result of an item whose worker crashed or hung."""

    kind: Literal["crashed", "timeout"]
    reason: str


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def imported_once(module: str, start_method: str) -> Iterator[None]:
    """Have the server of forks, if it starts inside the context, import a module for all workers."""
    if start_method != "forkserver":
        yield
        return
    from multiprocessing import forkserver  # not for Windows

    before = forkserver._forkserver._preload_modules  # type: ignore[attr-defined]  # there is no public way to restore it
    multiprocessing.set_forkserver_preload([*(name for name in before if name != "__main__"), module])
    try:
        yield
    finally:
        multiprocessing.set_forkserver_preload(before)


def start_server(module: str) -> None:
    """Have the server of workers, if there is one, start and import a module while this process does other things."""
    global START_METHOD
    if START_METHOD == "forkserver":
        from multiprocessing import forkserver

        try:
            with _left_to_the_parent(), imported_once(module, START_METHOD):
                forkserver.ensure_running()
        except OSError:  # no room for its socket, or TMPDIR is too long for a socket's name
            START_METHOD = "spawn"


def _left_to_the_parent() -> AbstractContextManager:
    """Return a context in which started processes, and their forks, leave Ctrl-C to the parent from the start."""
    return handled_by(signal.SIG_IGN, (signal.SIGINT,))


def run_parallel(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    num_workers: int,
    timeout_seconds: float | None = None,
) -> Iterator[tuple[int, Result | Lost]]:
    """Yield (index of the item, result) as results come, in any order.

    Workers are no forks of this process, because forks of a process with threads (a progress bar, torch) can hang; so a
    script that calls this needs the usual `if __name__ == "__main__":`. They leave Ctrl-C to the parent, which ends them.

    Args:
        function: picklable; its exceptions are raised here.
        num_workers: processes; 0 runs everything in this one, without protection against a crash or a hang.
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
                if index is not None:  # otherwise it has only reported that it is ready
                    yield index, answer
    finally:
        for worker in workers:
            worker.stop()


class Worker:
    """A process, the parent's end of its pipe, and the item it works on (None: it is still starting).

    The function is sent to it once, and may keep state from item to item. After a Lost, the process must be stopped; when it
    has grown, it should be.

    Args:
        function: picklable.
        timeout_seconds: longest time for one item, not counting the start of the process; None is no limit.
    """

    def __init__(self, function: Callable, timeout_seconds: float | None) -> None:
        start_server(getattr(function, "func", function).__module__)  # also for a partial
        context = multiprocessing.get_context(START_METHOD)
        self.pipe, theirs = context.Pipe()
        self.index: int | None = None
        self.timeout_seconds = timeout_seconds  # a change takes effect at once
        self._given = 0.0  # when it got its item, on the monotonic clock
        self._num_bytes = self._usual_bytes = 0  # its memory after the last answer, and before the first item
        self._process: BaseProcess = context.Process(  # type: ignore[attr-defined]  # typeshed: not of the base class
            target=_serve, args=(theirs, function), daemon=True
        )
        # a new server takes seconds to answer, during which Ctrl-C must work
        with nullcontext() if START_METHOD == "forkserver" else _left_to_the_parent():
            self._process.start()
        theirs.close()  # otherwise the pipe would not end with the process

    def ask(self, item: object) -> Any:
        """Return what the function returns for an item, or Lost, waiting for it; raises what the function raises."""
        if self.index is None:
            self.wait()  # until it reports that it is ready
        self.give(0, item)
        return self.wait()

    def wait(self) -> Any:
        """Wait for the answer to the item that it was given."""
        left = self.seconds_left()
        wait([self.pipe], None if left == math.inf else left)
        return self.answer()

    def give(self, index: int, item: object) -> None:
        self.index = index
        self._given = time.monotonic()
        with suppress(OSError):  # the loss of the process is noticed when its answer is read
            self.pipe.send(item)

    def has_grown(self) -> bool:
        """Return whether it permanently keeps much more memory than at its start, so that a new process would need less."""
        return self._num_bytes > self._usual_bytes + GROWN_BYTES

    def take_as_usual(self) -> None:
        """Take its current memory as what it needs."""
        self._usual_bytes = self._num_bytes

    def seconds_left(self) -> float:
        if self.index is None or self.timeout_seconds is None:
            return math.inf
        return max(self._given + self.timeout_seconds - time.monotonic(), 0)

    def answer(self) -> Any:
        """Return what the function returned, or Lost; raises what the function raised."""
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
        self._process.terminate()  # lets it remove its temporary files
        self._process.join(timeout=2)
        self.kill()  # if it hangs in a decoder

    def kill(self) -> None:
        self._process.kill()
        self._process.join(timeout=5)  # if it hangs on a dead disk, even a kill does not end it
        self.pipe.close()


class WorkerLost(Exception):
    """Raised if a worker crashed or hung; the message says which."""


class GeneratorWorker:
    """A process that runs generators for its parent, one after the other; any may crash or hang.

    It starts with the first generator, and again after one that crashed it. While the parent uses an item, it makes the next
    one.

    Attributes:
        timeout_seconds: longest time for one item; it may be changed at any moment.
    """

    def __init__(self, timeout_seconds: float = math.inf) -> None:
        self.timeout_seconds = timeout_seconds
        self._worker: Worker | None = None

    def iterate(self, generate: Callable[..., Iterator[Item]], *arguments: object) -> Iterator[Item]:
        """Yield the items of generate(*arguments), all of it picklable; raises what it raises.

        Raises:
            WorkerLost: the process crashed, or an item took too long.
        """
        is_new = self._worker is None
        worker = self._worker = self._worker or self._start(generate.__module__)
        idle = False
        try:
            worker.timeout_seconds = None
            worker.ask((generate, arguments))  # includes the imports, which do not count as time for an item
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
        except Exception:  # the generator is over; the process waits for another
            idle = not worker.has_grown()
            raise
        finally:
            if not idle:  # lost, too large, or still at work on an item that is no longer wanted
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
        if self._worker is not None:  # by itself it would take a second to end
            self._worker.kill()


class _Generators:
    """The worker's side: starts a given generator, then makes an item, in a tuple, for every None; None is the end."""

    def __call__(self, begun: tuple[Callable[..., Iterator], tuple] | None) -> tuple[object] | None:
        if begun is not None:
            generate, arguments = begun
            self._items = generate(*arguments)
            return None
        for item in self._items:
            return (item,)
        return None


def _serve(pipe: Connection, function: Callable) -> None:
    """Serve as a worker until the parent ends it or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with suppress(EOFError, OSError):
        pipe.send((False, None, _resident_bytes()))  # ready
        while True:
            item = pipe.recv()
            try:
                answer = (False, function(item))
            except Exception as error:  # any exception is raised in the parent
                answer = (True, error)
            pipe.send((*answer, _resident_bytes()))


def _resident_bytes() -> int:
    """Return the memory of this process; 0 if the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def exit_reason(exit_code: int) -> str:
    """Say how a process ended."""
    if exit_code == -signal.SIGKILL:
        return "SIGKILL, as when memory runs out"
    return signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
