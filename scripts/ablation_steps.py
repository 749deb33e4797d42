"""Measure the cost of an ablation's rows: parameters, multiply-adds, time and memory of a training step, in turns."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from benchmark_attention import peak_bytes
from torch import nn

from videornn.config import Config
from videornn.models import build_model
from videornn.models.flops import forward_flops
from videornn.models.norms import freeze_parts, set_batch_norm
from videornn.system.device import pick_device, tuned, wait_for
from videornn.training.optim import build_optimizer
from videornn.training.step import build_scaler, train_step


@dataclass(frozen=True)
class Cost:
    """The cost of a row: parameters, multiply-adds of a forward pass of one clip, and median time and peak memory of a
    training step, without weights, momentum and clips; the last two are None if they were not measured."""

    parameters: int
    flops: float
    step_ms: float | None = None
    step_mb: float | None = None


def sizes(configs: Mapping[str, Config]) -> dict[str, Cost]:
    """Count parameters and multiply-adds of every row, from configs with the number of classes filled in."""
    costs = {}
    for row, config in configs.items():
        with torch.random.fork_rng(devices=[]):
            model = build_model(config.model)
        clip_size = (config.data.num_frames, config.data.crop_size, config.data.crop_size)
        costs[row] = Cost(sum(parameter.numel() for parameter in model.parameters()), forward_flops(model, clip_size))
    return costs


def measure_steps(
    configs: Mapping[str, Config], *, num_clips: int, rounds: int
) -> tuple[dict[str, tuple[float, float]], str]:
    """Measure median milliseconds and megabytes of a training step of every row on clips in memory; name the device.

    The rows take turns, so that a busy machine is busy for all; an extra round warms up. Nothing else may run meanwhile.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler, which counts memory on a CPU, logs what it does
    config = next(iter(configs.values()))
    device = pick_device(config.device)
    with tuned(device, deterministic=False):
        size = (num_clips, 3, config.data.num_frames, config.data.crop_size, config.data.crop_size)
        clips = torch.randn(size, device=device).contiguous(memory_format=torch.channels_last_3d)
        labels = torch.arange(num_clips, device=device) % config.model.num_classes
        steps = {row: partial(_step(config, device), clips, labels) for row, config in configs.items()}
        seconds: dict[str, list[float]] = {row: [] for row in steps}
        for number in range(rounds + 1):
            for row, step in steps.items():
                wait_for(device)
                start = time.perf_counter()
                step()
                wait_for(device)
                if number > 0:
                    seconds[row].append(time.perf_counter() - start)
        name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        costs = {
            row: (1e3 * statistics.median(seconds[row]), peak_bytes(step, device.type) / 2**20)
            for row, step in steps.items()
        }
    return costs, name


def _step(config: Config, device: torch.device) -> Callable[..., object]:
    """Return a training step of a config's network on normalised clips and labels."""
    section = config.train
    torch.manual_seed(config.seed)
    model: nn.Module = build_model(config.model).to(device, memory_format=torch.channels_last_3d)
    model = set_batch_norm(model, "batch" if section.batch_norm == "sync" else section.batch_norm, section.bn_clips, device)
    freeze_parts(model, section.freeze)
    optimizer = build_optimizer(model.train(), section)
    scaler = build_scaler(device, section.precision, skip_nonfinite=section.nonfinite == "skip")
    called = torch.compile(model) if section.compile else model
    return lambda clips, labels: train_step(called, [(clips, labels)], optimizer, scaler=scaler, precision=section.precision)
