"""Measure how much of a machine's speed a training run reaches, and how much memory it takes."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from videornn.distributed import ranks
from videornn.models.flops import training_flops
from videornn.models.forward import AUTOCAST
from videornn.system.device import matrix_rate, peak_memory

if TYPE_CHECKING:
    from videornn.training.run import Run


class SpeedWatch:
    """A watch on the share of the machine's rate of matrix products that a run reaches, and on its memory.

    A machine that is busy while it is measured seems too slow, so it is measured again, ever more rarely: a CPU now and
    then, any device when a run seems to be faster than it; the best measurement counts.
    """

    def __init__(self, run: Run) -> None:
        data = run.config.data
        self._device = run.device
        self._clip_flops = training_flops(run.model, (data.num_frames, data.crop_size, data.crop_size))
        # on a CPU the products of fp16, and without its instructions those of bf16, are slower than float32
        self._dtypes = {torch.float32, AUTOCAST.get(run.config.train.precision, torch.float32)}
        rates = self._measured()
        self._rate, self._peak, self._num_lines, self._num_fast = max(rates.values()), 0, 0, 0
        self.slower = rates[torch.float32] / min(rates.values())  # than float32, the precision of the run

    def numbers(self, clips_per_second: float) -> dict[str, float]:
        """Return mfu 0..1 (model FLOPs utilisation) at a rate of full clips, and the peak memory of this rank in GB."""
        fast = clips_per_second > self._clips_per_second
        self._num_lines, self._num_fast = self._num_lines + 1, self._num_fast + fast
        if (fast and _doubled(self._num_fast)) or (self._device.type == "cpu" and _doubled(self._num_lines)):
            self._peak = max(self._peak, peak_memory(self._device))  # without the memory of the measurement below
            with suppress(torch.OutOfMemoryError):  # a GPU filled by the run keeps its last measurement
                self._rate = max(self._rate, *self._measured().values())
        peak = max(self._peak, peak_memory(self._device))
        return {"mfu": clips_per_second / self._clips_per_second, "memory_gb": peak / 1e9}

    @property
    def _clips_per_second(self) -> float:
        """Full clips per second of all ranks if they computed nothing but matrix products."""
        return self._rate * ranks.num_ranks() / self._clip_flops

    def _measured(self) -> dict[torch.dtype, float]:
        return {dtype: matrix_rate(self._device, dtype) for dtype in self._dtypes}


def _doubled(number: int) -> bool:
    """Return whether a growing number has become 1, 2, 4, 8 ..."""
    return number & (number - 1) == 0
