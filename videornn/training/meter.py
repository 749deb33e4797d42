"""Accumulate the numbers of steps on the device, and read them all at once for a log line."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from videornn.data.shared_batch import Batch
from videornn.distributed import ranks
from videornn.training.step import StepResult


@dataclass(frozen=True)
class StepRecord:
    """A step of this rank, on the host: indices of its videos in the table, and the numbers of its StepResult."""

    step: int
    indices: list[int]
    loss: float
    correct: int
    grad_norm: float


class Meter:
    """A collector of step results; only read waits for the device.

    A checkpoint between two log lines carries the numbers so far (state, load), so that a resumed run writes the same
    lines; clips/s and the wait for data count this process only.
    """

    def __init__(self) -> None:
        self._records: list[StepRecord] = []  # read from the device
        self._pending: list[tuple[int, list[int], StepResult]] = []
        self.restart_clock()

    def wait_for(self, batches: Iterator[Batch]) -> Batch:
        """Return the next batch; the time it takes counts as waiting for data."""
        before = time.perf_counter()
        batch = next(batches)
        self._wait += time.perf_counter() - before
        return batch

    def add(self, step: int, indices: list[int], result: StepResult, clip_size: float) -> None:
        """Add a step; its clips are counted by their indices. clip_size: T S^2 of its clips in units of full ones."""
        self._pending.append((step, indices, result))
        self._clips += len(indices)
        self._full_clips += len(indices) * clip_size

    def restart_clock(self) -> None:
        """Exclude the time until now, spent on something else such as a validation, from clips/s."""
        self._start, self._wait, self._clips, self._full_clips = time.perf_counter(), 0.0, 0, 0.0

    def read(self) -> list[StepRecord]:
        """Return the steps since the last reading; waits for the device."""
        if not self._pending:
            return []
        results = [result for _, _, result in self._pending]
        numbers = torch.stack([torch.stack([r.loss.double(), r.correct.double(), r.grad_norm.double()]) for r in results])
        new = [
            StepRecord(step, indices, loss, int(correct), grad_norm)
            for (step, indices, _), (loss, correct, grad_norm) in zip(self._pending, numbers.tolist(), strict=True)
        ]
        self._pending = []
        self._records += new
        return new

    def means(self) -> dict[str, float]:
        """Return means over the steps since the last call, over all ranks; collective. Call read before."""
        finite = [record for record in self._records if math.isfinite(record.loss)]
        norms = [record.grad_norm for record in self._records if math.isfinite(record.grad_norm)]
        sums = [
            sum(record.loss * len(record.indices) for record in finite),
            float(sum(len(record.indices) for record in finite)),
            float(sum(record.correct for record in self._records)),
            float(sum(len(record.indices) for record in self._records)),
            float(self._clips),
            self._full_clips,
        ]
        loss, finite_clips, correct, clips, timed_clips, full_clips = ranks.sum_over_ranks(
            torch.tensor(sums, dtype=torch.float64)
        ).tolist()
        seconds = max(time.perf_counter() - self._start, 1e-9)
        numbers = {
            "loss": loss / max(finite_clips, 1),
            "top1": 100 * correct / max(clips, 1),
            "grad_norm": sum(norms) / max(len(norms), 1),
            "clips_per_second": timed_clips / seconds,
            "full_clips_per_second": full_clips / seconds,
            "data_wait": self._wait / seconds,
        }
        self._records = []
        self.restart_clock()
        return numbers

    def state(self) -> list[list[Any]]:
        """Return the numbers that means has still to count, as plain values. Call read before."""
        return [[r.step, r.indices, r.loss, r.correct, r.grad_norm] for r in self._records]

    def load(self, state: list[list[Any]]) -> None:
        """Restore what state returned."""
        self._records = [StepRecord(*values) for values in state]
