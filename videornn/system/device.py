"""Pick the device of a process, choose between fast and repeatable kernels, and measure its speed and memory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from videornn.errors import UserError

LONG_ENOUGH = 0.03  # seconds of a product that shows the machine's rate; larger ones would only take longer
_deterministic: Any = torch.utils.deterministic  # a module with a property, which type checkers cannot see


def pick_device(choice: str) -> torch.device:
    """Return the device of this rank for auto, cpu or cuda; raises UserError if there is no GPU for it."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no GPU; use device=auto or device=cpu")
    if choice == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if "LOCAL_RANK" in os.environ:
        number, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= num_gpus:
            raise UserError(
                f"rank {os.environ.get('RANK', number)} is number {number} of its machine, from 0, where torch sees "
                f"{num_gpus} GPU(s): start no more ranks there (torchrun --nproc_per_node={num_gpus}), or let them see more "
                f"(CUDA_VISIBLE_DEVICES; under SLURM --gpus-per-node, not --gpus-per-task)"
            )
        torch.cuda.set_device(number)
    return torch.device("cuda", torch.cuda.current_device())


def tune(device: torch.device, *, deterministic: bool, strict: bool = True) -> None:
    """Choose the fastest kernels for this process, found by trying, or those that give the same bits every time.

    Call it before the first CUDA kernel runs. Float32 stays float32 in matrix products; convolutions on GPUs use TF32 for
    it, as is torch's default.

    Args:
        strict: an operator without a deterministic kernel is an error, else a warning.
    """
    torch.use_deterministic_algorithms(deterministic, warn_only=not strict)
    _deterministic.fill_uninitialized_memory = False  # a debugging aid that costs every allocation a write
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = deterministic
        torch.backends.cudnn.benchmark = not deterministic
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when cuBLAS starts


@contextmanager
def tuned(device: torch.device, *, deterministic: bool, strict: bool = True) -> Iterator[None]:
    """Set this process up for a job inside the context, with kernels as tune chooses them; arguments as in tune.

    Afterwards torch's kernels, threads and random states are restored, because the process may live on: a notebook, a
    server, a Ray worker.
    """
    cudnn, place = torch.backends.cudnn, "CUBLAS_WORKSPACE_CONFIG"
    kernels = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filling, threads = _deterministic.fill_uninitialized_memory, torch.get_num_threads()
    cudnn_before, workspace = (cudnn.deterministic, cudnn.benchmark), os.environ.get(place)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            tune(device, deterministic=deterministic, strict=strict)
            yield
    finally:
        torch.use_deterministic_algorithms(kernels[0], warn_only=kernels[1])
        _deterministic.fill_uninitialized_memory = filling
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        cudnn.deterministic, cudnn.benchmark = cudnn_before
        if workspace is None:
            os.environ.pop(place, None)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure FLOP/s (multiplications and additions) by the fastest of a few square matrix products, in under a second."""
    best, generator = 0.0, torch.Generator(device).manual_seed(0)
    for size in (512, 1024, 2048, 4096, 8192):
        left, right = torch.randn(2, size, size, device=device, generator=generator).to(dtype)
        seconds = min(_seconds(left, right) for _ in range(4))  # the first run includes set-up
        best = max(best, 2 * size**3 / seconds)
        if seconds > LONG_ENOUGH:
            break
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # the nearly 1 GB of these matrices is not part of a run
    return best


def _seconds(left: Tensor, right: Tensor) -> float:
    wait_for(left.device)
    start = time.perf_counter()
    left @ right
    wait_for(left.device)
    return time.perf_counter() - start


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Return peak bytes: of tensors on a GPU, else of this process's RAM (0 on Windows, which does not tell)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource  # missing on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, kilobytes on Linux
