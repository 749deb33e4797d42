"""The arguments of every section, and the way in which all measure time."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmark_attention import FIVE, KEY_POOL
from benchmark_train import NUM_CLASSES

from videornn.models import ATTENTION_KINDS, ResNet3d
from videornn.system.device import tune, wait_for

# "what" names a row; "ok" is present if there is a limit, which is then among the numbers
Row = dict[str, Any]


@dataclass(frozen=True)
class Scope:
    """The device of a section and its time; on a CPU all sizes are tiny.

    deadline: by time.monotonic(); sections end at the next row after it.
    """

    device_name: str
    deadline: float
    out: Path

    @property
    def device(self) -> torch.device:
        return torch.device(self.device_name)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def clip_size(self) -> tuple[int, int, int]:
        """T, H, W."""
        return (8, 224, 224) if self.on_gpu else (4, 32, 32)

    @property
    def precision(self) -> str:
        """Precision of whole runs; a CPU may be slow in bf16."""
        return "bf16" if self.on_gpu else "fp32"

    def start(self) -> None:
        """Set kernels as training does, and make videornn importable by commands; call it in the section's own process."""
        places = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))
        if not self.on_gpu:
            torch.set_num_threads(1)  # none of the parent's threads survive a fork
        tune(self.device, deterministic=False)

    def is_over(self) -> bool:
        return time.monotonic() > self.deadline

    def network(self, name: str, kind: str = "none", scale: str = "paper", **options: object) -> ResNet3d:
        """Build an R50 with five blocks at the usual places, in training mode; on a CPU a narrow one of ten layers."""
        size = {} if self.on_gpu else {"width": 8}
        places = FIVE if self.on_gpu else {"res3": (0,), "res4": (0,)}
        more = {"scale": scale} if scale != "paper" else {}
        attention = None if kind == "none" else lambda channels: ATTENTION_KINDS[kind](channels, key_pool=KEY_POOL, **more)
        depth = 50 if self.on_gpu else 10
        model = ResNet3d(name, depth, num_classes=NUM_CLASSES, attention=attention, places=places, **size, **options)
        return model.to(self.device, memory_format=torch.channels_last_3d).train()

    def clips(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Make normalised clips, channels last, and labels."""
        generator = torch.Generator(self.device).manual_seed(0)
        clips = torch.randn(batch, 3, *self.clip_size, device=self.device, generator=generator)
        labels = torch.arange(batch, device=self.device) % NUM_CLASSES
        return clips.contiguous(memory_format=torch.channels_last_3d), labels

    def milliseconds(self, function: Callable[[], object], rounds: int = 5) -> float:
        """Measure the median time of the device for one call, after a warm-up call."""
        times = []
        for _ in range(rounds + 1):
            if self.on_gpu:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                function()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end))
            else:
                before = time.perf_counter()
                function()
                times.append(1e3 * (time.perf_counter() - before))
        return statistics.median(times[1:])

    def host_milliseconds(self, function: Callable[[], object], rounds: int = 5) -> float:
        """Measure the median time until a call returns, with an otherwise idle device."""
        times = []
        for _ in range(rounds):
            wait_for(self.device)
            before = time.perf_counter()
            function()
            times.append(1e3 * (time.perf_counter() - before))
        wait_for(self.device)
        return statistics.median(times)

    def peak_gb(self, function: Callable[[], object]) -> float | None:
        """Measure the peak memory of tensors during a call, in GB; None on a CPU."""
        if not self.on_gpu:
            return None
        wait_for(self.device)
        torch.cuda.reset_peak_memory_stats()
        function()
        wait_for(self.device)
        return torch.cuda.max_memory_allocated() / 1e9


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Compute |value - expected| / |expected| of whole tensors; infinite if value is not finite."""
    expected = expected.detach().double()
    error = float((value.detach().double() - expected).norm() / expected.norm().clamp_min(1e-30))
    return error if error == error else float("inf")
