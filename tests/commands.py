"""`videornn ...` in processes of their own that need not import torch anew: they are forked from a server that has."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

PROCESSES = multiprocessing.get_context("forkserver")
# one server serves all tests of a process: what any of them needs is imported when the first one starts it
PROCESSES.set_forkserver_preload(["videornn.cli.commands", "videornn.training.train", "videornn.evaluation.evaluate"])


class Command:
    """What `python -m videornn` does with some arguments, on one thread and in a process group of its own.

    Args:
        log: the file for what it says, its errors too.
        settings: environment variables beyond those of this process.
        before: is called there before the command.
    """

    def __init__(
        self, log: Path, *arguments: object, settings: dict[str, str] | None = None, before: Callable | None = None
    ) -> None:
        self._log = log
        environment = {**os.environ, **(settings or {})}
        self._process = PROCESSES.Process(target=_run, args=(log, list(map(str, arguments)), environment, before))
        self._process.start()
        self.pid = self._process.pid

    def said(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def wait_until_it_says(self, text: str) -> None:
        """Wait for a text; the command must not end before."""
        while text not in self.said():
            assert self.is_running(), self.said()
            time.sleep(0.005)

    def is_running(self) -> bool:
        return self._process.is_alive()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit code, or minus the signal that ended it."""
        self._process.join(600)
        assert self._process.exitcode is not None, self.said()
        return self._process.exitcode

    def kill(self, *, alone: bool = False) -> None:
        """kill -9, of all that it has started too unless alone."""
        os.kill(self.pid, signal.SIGKILL) if alone else os.killpg(self.pid, signal.SIGKILL)

    def wait_for_all(self, seconds: float = 600) -> None:
        """Return once what it has started has ended too."""
        self.wait()
        end = time.monotonic() + seconds
        while _runs(self.pid):
            assert time.monotonic() < end, "what it has started does not end"
            time.sleep(0.02)


class CommandOnRanks:
    """The same command on some ranks of this host, whose store this process keeps, as torchrun does; one is a plain process.

    Args:
        folder: a new one for what they say.
        options: of every Command.
    """

    def __init__(self, num_ranks: int, folder: Path, *arguments: object, **options: object) -> None:
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        folder.mkdir()
        shared = {"WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks, "MASTER_PORT": self._store.port}
        shared |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": True}
        start = partial(Command, **options)
        self.commands = [
            start(folder / f"{rank}.log", *arguments, settings={k: str(v) for k, v in (shared | {"RANK": rank}).items()})
            for rank in range(num_ranks)
        ]

    def said(self) -> str:
        return "".join(command.said() for command in self.commands)

    def are_running(self) -> bool:
        return any(command.is_running() for command in self.commands)

    def wait(self) -> list[int]:
        return [command.wait() for command in self.commands]

    def kill(self, *, alone: bool = False) -> None:
        """kill -9 of every rank, and of all that it has started unless alone; returns once all of that has ended."""
        running = [command for command in self.commands if command.is_running()]
        for command in running:
            command.send_signal(signal.SIGSTOP)  # none may hear of the end of another
        for command in running:
            command.kill(alone=alone)
        for command in running:
            command.wait_for_all()


def _run(log: Path, arguments: list[str], environment: dict[str, str], before: Callable | None) -> None:
    os.setpgid(0, 0)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a server of demos ignores it, and so do its forks
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    # a fork of a server has its loader workers come from a server too, whatever Python does by itself
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    sys.argv = ["videornn", *arguments]
    if before is not None:
        before()
    from videornn.cli import main

    main()


def _runs(group: int) -> bool:
    """Whether a process of a group has not ended."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it may end meanwhile
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if its_group == str(group) and state not in "ZX":
                return True
    return False
