"""Several processes on one host, over gloo; the test keeps their store, as torchrun does."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from commands import PROCESSES

from videornn.distributed.ranks import process_group
from videornn.errors import RankFailure, UserError


class Ranks:
    """Processes that run body(watch, *arguments) inside process_group; what each returned or raised, and said."""

    def __init__(self, num_ranks: int, folder: Path, body: Callable, *arguments: object, timeout: float = 2.0) -> None:
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.folder, self.processes = folder, []
        for number in range(num_ranks):
            settings = {
                "RANK": str(number),
                "WORLD_SIZE": str(num_ranks),
                "LOCAL_WORLD_SIZE": str(num_ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self.store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            }
            process = PROCESSES.Process(target=_be_rank, args=(settings, folder, timeout, body, arguments))
            process.start()
            self.processes.append(process)

    def result(self, number: int) -> str:
        """What a rank returned or raised, or "exit code N"; waits for it."""
        self.processes[number].join(300)
        place = self.folder / f"{number}.result"
        return place.read_text() if place.is_file() else f"exit code {self.processes[number].exitcode}"

    def results(self) -> list[str]:
        return [self.result(number) for number in range(len(self.processes))]

    def said(self) -> str:
        return "".join((self.folder / f"{number}.stderr").read_text() for number in range(len(self.processes)))

    def pid(self, number: int) -> int:
        return self.processes[number].pid

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _be_rank(settings: dict[str, str], folder: Path, timeout: float, body: Callable, arguments: tuple) -> None:
    os.environ.update(settings)
    torch.set_num_threads(1)
    _wait_for_all()  # how long a process takes to start is no matter of the timeout
    os.dup2(os.open(folder / f"{settings['RANK']}.stderr", os.O_WRONLY | os.O_CREAT), 2)
    try:
        with process_group(torch.device("cpu"), timeout) as watch:
            result = str(body(watch, *arguments))
    except (UserError, RankFailure) as error:
        result = f"{type(error).__name__}: {' | '.join(map(str, error.args))}"  # its lines
    (folder / f"{settings['RANK']}.result").write_text(result)


def _wait_for_all() -> None:
    store = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False)
    store.add("started", 1)
    while store.add("started", 0) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.01)
