"""torch.distributed as torchrun starts it; a plain process is rank 0 of 1."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from videornn.distributed.signals import sigterm_delayed
from videornn.distributed.store import meet, several_ranks
from videornn.distributed.watch import MISSED_REPORTS, REPORT_SECONDS, RankWatch, is_lost_rank
from videornn.errors import RankFailure, UserError

SPARE_SECONDS = 60.0  # that NCCL waits longer than the timeout; less if the timeout is short
MOST_STEPS = 16  # without an exchange of reasons to stop
BUSY_SECONDS = 0.5  # between two messages of a busy rank 0
GLOO_SECONDS = 0.2  # for the threads of gloo to free what they hold


@contextmanager
def process_group(device: torch.device, timeout_seconds: float = 600.0) -> Iterator[RankWatch]:
    """Join the ranks that torchrun started, and name a rank that is lost; does nothing in a plain process.

    Tensors on a GPU go through NCCL, those on the host (votes, objects, barriers) through gloo, whose errors reach Python.
    NCCL's own timeout ends the process from within and names no rank, so it comes last: gloo waits timeout_seconds on a CPU,
    soon after the watch ends a rank that waits for its GPU, and only then does NCCL (and, beside it, gloo) give up.

    Args:
        timeout_seconds: how long a rank waits for another.

    Yields:
        The watch, which must be told what this rank is doing.

    Raises:
        RankFailure: another rank died or hangs, or the ranks cannot join.
        UserError: another rank ended with it.
    """
    if not several_ranks():
        with RankWatch(timeout_seconds) as watch:
            yield watch
        return
    spare = min(SPARE_SECONDS, timeout_seconds)
    if device.type == "cuda":
        backend, patience = "cpu:gloo,cuda:nccl", timeout_seconds + spare
    else:
        backend, patience = "gloo", timeout_seconds
        _use_all_cores()
    try:
        timeout = timedelta(seconds=patience)
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            dist.init_process_group(backend, timeout=timeout, store=meet(patience), rank=number, world_size=count)
        else:
            dist.init_process_group(backend, timeout=timeout)
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        raise RankFailure(
            f"rank {os.environ['RANK']} cannot join the others ({str(error).splitlines()[0]}); between nodes, set "
            "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the network interface that connects them"
        ) from error
    report_seconds = min(REPORT_SECONDS, timeout_seconds / 10)
    with (
        sigterm_delayed(2 * MISSED_REPORTS * report_seconds),
        RankWatch(timeout_seconds + spare / 2, report_seconds) as watch,
    ):
        yield watch
        dist.barrier()  # a rank that is done early keeps its connections until no rank needs them
    # gloo's threads may still need the interpreter to free tensors; torch 2.6 would wait for them while holding it
    time.sleep(GLOO_SECONDS)
    dist.destroy_process_group()


class StopVote:
    """A vote that makes all ranks stop after the same step, even if the reason reaches them at different steps, or only one.

    Once a second every rank tells which signal it has received, and a step later reads what all told: the exchange runs in
    the background during a step, so that no rank waits for it or for a GPU. With it the ranks agree on the number of steps
    until the next exchange: as many as the slowest rank does in a second, but few, because steps may become slower.

    Attributes:
        largest: the largest of the numbers that the ranks gave in the exchange read last.

    Args:
        seconds: from one exchange to the next; 0: one per step.
    """

    def __init__(self, seconds: float = 1.0) -> None:
        self.largest = 0
        self._seconds = seconds
        self._steps, self._since = 0, time.monotonic()  # since the last exchange began
        self._wait = 0  # steps until the next one begins
        self._pending: tuple[dist.Work, Tensor] | None = None

    def decide(self, received: int, number: int = 0) -> int:
        """Return the signal number that all ranks stop for now, the same on each, or 0; call it once a step.

        Args:
            received: number of the signal that this rank has received, or 0.
            number: any number of which all ranks should know the largest.
        """
        if not dist.is_initialized():
            self.largest = number
            return received
        agreed = self.drain()
        self._steps += 1
        if self._wait:
            self._wait -= 1
        elif not agreed:
            now = time.monotonic()
            steps = min(MOST_STEPS, int(self._seconds * self._steps / max(now - self._since, 1e-6)))
            self._steps, self._since = 0, now
            votes = torch.tensor([received, number, -steps])
            self._pending = dist.all_reduce(votes, dist.ReduceOp.MAX, async_op=True), votes
        return agreed

    def drain(self) -> int:
        """Return the result of the last vote; call it after the last step, so that no message is left over."""
        if self._pending is None:
            return 0
        (work, votes), self._pending = self._pending, None
        work.wait()
        signal, self.largest, steps = votes.tolist()
        self._wait = -steps
        return signal


def rank() -> int:
    """Return this process's number in [0, num_ranks)."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    """Return how many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def data_parallel(model: nn.Module, device: torch.device, *, static_graph: bool) -> nn.Module:
    """Wrap a network for all ranks, each of which keeps its own buffers; a plain process uses it as it is. Collective.

    If rank 0's buffers were copied before every step, only its clips would count in running averages.
    """
    if num_ranks() == 1:
        return model
    own = [buffer.clone() for buffer in model.buffers()]
    # torch 2.13 and later warn of the old name; with the new one they still copy rank 0's buffers once, here
    sync_buffers = "forward_sync_buffers"
    if sync_buffers not in inspect.signature(DistributedDataParallel).parameters:
        sync_buffers = "broadcast_buffers"
    own_buffers: dict[str, Any] = {sync_buffers: False}
    parallel = DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        static_graph=static_graph,
        **own_buffers,
    )
    for buffer, value in zip(model.buffers(), own, strict=True):
        buffer.copy_(value)
    return parallel


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum a tensor over all ranks, on every rank."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gather_objects(value: Any) -> list[Any]:
    """Gather the value of every rank, in order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values


def agreed(values: dict[str, Any], *, doing: str, needs: str) -> dict[str, Any]:
    """Return plain values, by name, that must agree on all ranks; raises UserError with the names of those that differ."""
    first, *others = gather_objects(values)
    for number, other in enumerate(others, start=1):
        if different := [name for name in first if other[name] != first[name]]:
            raise UserError(
                f"rank {number} does not {doing} the same as rank 0 (different: {', '.join(different)}); every node needs "
                f"the same {needs}"
            )
    return values


def from_rank_0(function: Callable[[], Any]) -> Any:
    """Call a function on rank 0 only and return its result on every rank; its UserError is raised on every rank."""
    return from_busy_rank_0(lambda busy: function())


def from_busy_rank_0(function: Callable[[Callable[[], None]], Any]) -> Any:
    """Do the same for a function that may take longer than ranks wait for each other.

    Args:
        function: is given a callable to call whenever it makes progress, even a million times, so that the others keep
            waiting; if it is stuck, they wait for the timeout only.
    """
    if not dist.is_initialized():
        return function(lambda: None)
    outcome: list[Any] = [True, None, None]  # whether rank 0 is still busy; what the function returned; lines of its error
    said = time.monotonic()

    def busy() -> None:
        nonlocal said
        if time.monotonic() - said > BUSY_SECONDS:
            dist.broadcast_object_list(outcome, 0)
            said = time.monotonic()

    if rank() == 0:
        try:
            outcome[1] = function(busy)
        except UserError as error:
            outcome[2] = error.args
        outcome[0] = False
        dist.broadcast_object_list(outcome, 0)
    while outcome[0]:
        dist.broadcast_object_list(outcome, 0)
    if outcome[2] is not None:
        raise UserError(*outcome[2])
    return outcome[1]


def _use_all_cores() -> None:
    """Share the cores of this host among its ranks, unless OMP_NUM_THREADS was set by somebody else.

    torchrun sets OMP_NUM_THREADS=1 for several ranks on a host, even if it has cores for more.
    """
    if os.environ.get("OMP_NUM_THREADS") == "1" and not _started_with("OMP_NUM_THREADS"):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _started_with(name: str) -> bool:
    """Return whether torchrun itself, the parent of this process, was given an environment variable (on Linux)."""
    place = Path(f"/proc/{os.getppid()}/environ")
    return place.is_file() and name.encode() in [line.partition(b"=")[0] for line in place.read_bytes().split(b"\0")]
