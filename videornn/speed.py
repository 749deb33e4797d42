"""How fast a machine multiplies, what a network asks of it, and the switches between fast and repeatable kernels."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

with warnings.catch_warnings():  # fvcore scripts functions as it is imported, which torch says is out of date
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn import FlopCountAnalysis

LONG_ENOUGH = 0.03  # seconds of a product that says what the machine reaches; larger ones would only take longer


def tune(device: torch.device, *, deterministic: bool, strict: bool = True) -> None:
    """Choose for this process the fastest kernels, found by trying, or those that give the same bits every time.

    To be called before the first CUDA kernel runs. Float32 stays float32 in matrix products; convolutions on GPUs take TF32
    for it, as torch does by itself.

    Args:
        strict: an operator that has no deterministic kernel is an error; else a warning.
    """
    torch.use_deterministic_algorithms(deterministic, warn_only=not strict)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a search for bugs that costs every allocation a write
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = deterministic
        torch.backends.cudnn.benchmark = not deterministic
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when cuBLAS starts


@contextmanager
def tuned(device: torch.device, *, deterministic: bool, strict: bool = True) -> Iterator[None]:
    """Within it this process is a job's: kernels as tune chooses them; for the arguments see there.

    Afterwards torch's kernels, threads and random numbers are what they were, for a process may live on: a notebook, a
    server, a worker of Ray.
    """
    cudnn, place = torch.backends.cudnn, "CUBLAS_WORKSPACE_CONFIG"
    kernels = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filling, threads = torch.utils.deterministic.fill_uninitialized_memory, torch.get_num_threads()
    cudnn_before, workspace = (cudnn.deterministic, cudnn.benchmark), os.environ.get(place)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            tune(device, deterministic=deterministic, strict=strict)
            yield
    finally:
        torch.use_deterministic_algorithms(kernels[0], warn_only=kernels[1])
        torch.utils.deterministic.fill_uninitialized_memory = filling
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        cudnn.deterministic, cudnn.benchmark = cudnn_before
        if workspace is None:
            os.environ.pop(place, None)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s (multiplications and additions) of the fastest of a few square matrix products; takes less than a second."""
    best, generator = 0.0, torch.Generator(device).manual_seed(0)
    for size in (512, 1024, 2048, 4096, 8192):
        left, right = torch.randn(2, size, size, device=device, generator=generator).to(dtype)
        seconds = min(_seconds(left, right) for _ in range(4))  # the first one sets things up
        best = max(best, 2 * size**3 / seconds)
        if seconds > LONG_ENOUGH:
            break
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # nearly 1 GB of matrices is not what a run needs
    return best


def _seconds(left: Tensor, right: Tensor) -> float:
    wait_for(left.device)
    start = time.perf_counter()
    left @ right
    wait_for(left.device)
    return time.perf_counter() - start


def wait_for(device: torch.device) -> None:
    """Until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forward_flops(model: nn.Module, clip_size: Sequence[int]) -> float:
    """Multiply-adds of the forward pass of one clip.

    Args:
        model: the bare network, neither compiled nor parallel; it is left as it was.
        clip_size: T, H, W.
    """
    return flops_by_module(model, _empty_clip(model, clip_size))[""]


def training_flops(model: nn.Module, clip_size: Sequence[int]) -> float:
    """FLOPs of a training step for each clip: two for a multiply-add, of which every part of the network has up to three.

    They are the forward pass, the gradient of the weights, and that of the input. The last two are not computed in frozen
    parts, the last not where all before is frozen too. Arguments as of forward_flops.
    """
    flops = flops_by_module(model, _empty_clip(model, clip_size))
    total, trainable_before = 0.0, False
    for name, part in model.named_children():
        trainable = any(parameter.requires_grad for parameter in part.parameters())
        trainable_before = trainable_before or trainable
        total += 2 * flops[name] * (1 + trainable + trainable_before)
    return total


def _empty_clip(model: nn.Module, clip_size: Sequence[int]) -> Tensor:
    return torch.zeros(1, 3, *clip_size, device=next(model.parameters()).device)


@torch.no_grad()
def flops_by_module(model: nn.Module, clip: Tensor) -> dict[str, float]:
    """Multiply-adds of every module by its name ("" is the whole), as papers of this field count them; fvcore counts."""
    training = {module: module.training for module in model.modules()}  # frozen norms differ from the rest
    try:
        analysis = FlopCountAnalysis(model.eval(), clip).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_flops)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False):  # no search for kernels that run once
            return dict(analysis.by_module())
    finally:
        for module, mode in training.items():
            module.training = mode


def _attention_flops(inputs: list, outputs: list) -> int:
    """Multiply-adds of softmax(q k^T) v; fvcore does not know the fused operator."""
    queries, keys, values = (value.type().sizes() for value in inputs[:3])  # [B, heads, N or M, D]
    return queries[0] * queries[1] * queries[2] * keys[2] * (queries[3] + values[3])


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU the most that tensors held at a time; else the most RAM of this process (0 on Windows: not told)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource  # not there on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, kilobytes on Linux
