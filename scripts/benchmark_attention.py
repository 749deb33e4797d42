"""Measure time and memory of attention, forward and backward, against PyTorchVideo's NonLocal on the same machine.

    python scripts/benchmark_attention.py [--batch 2] [--rounds 5] [--precision bf16] [--device cpu]

First come the kernels that take the two head widths; then the blocks at their positions in a Slow R50 on 8 x 224 x 224, with
keys pooled (1, 2, 2); then the whole network, with and without five of them. Cases take turns, so that a busy machine is
busy for all; a time is the median of the rounds. Memory is the peak of tensors during one step, on top of weights and input.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
import torchvision
from pytorchvideo.layers.nonlocal_net import create_nonlocal
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from videornn.models import ATTENTION_KINDS, ResNet3d
from videornn.models.softmax_attention import softmax_attention
from videornn.system.device import tune

POSITIONS = {"res3": (512, 8, 28, 28), "res4": (1024, 8, 14, 14)}
ATTENTION_SIZES = {"res3": (6272, 1568, 256), "res4": (1568, 392, 512)}  # queries, keys, width
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FIVE = {"res3": (1, 3), "res4": (1, 3, 5)}
KEY_POOL = (1, 2, 2)
PEER = "PyTorchVideo NonLocal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2, help="clips")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="bf16", help="of autocast")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    tune(torch.device(options.device), deterministic=False)
    result: dict[str, object] = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "batch": options.batch,
        "precision": options.precision,
    }
    for place, sizes in ATTENTION_SIZES.items():
        cases = _kernels(*sizes, batch=options.batch, precision=options.precision, device=options.device)
        title = "attention {}: N={}, M={}, D={}".format(place, *sizes)
        result[f"attention {place}"] = _compare(title, cases, "videornn", options.rounds, options.device)
    step_of = partial(_step, batch=options.batch, precision=options.precision, device=options.device)
    for place, size in POSITIONS.items():
        peer = create_nonlocal(dim_in=size[0], dim_inner=size[0] // 2, pool_size=KEY_POOL)
        # its views need the memory layout that it was written for
        cases = {PEER: step_of(peer, size, memory_format=torch.contiguous_format)}
        for kind, block in ATTENTION_KINDS.items():
            cases[kind] = step_of(block(size[0], key_pool=KEY_POOL), size)
        cases["dnl, learnt scale"] = step_of(ATTENTION_KINDS["dnl"](size[0], key_pool=KEY_POOL, scale="learnt"), size)
        result[place] = _compare(f"{place} {'x'.join(map(str, size))}", cases, PEER, options.rounds, options.device)
    cases = {}
    for kind in ("none", "nl", "dnl"):
        attention = None if kind == "none" else partial(ATTENTION_KINDS[kind], key_pool=KEY_POOL)
        network = ResNet3d("slow", 50, num_classes=400, attention=attention, places=FIVE)
        cases[kind] = step_of(network, (3, 8, 224, 224))
    result["network"] = _compare("Slow R50 8x224, five blocks", cases, "none", options.rounds, options.device)
    print(json.dumps(result))


def _kernels(
    num_queries: int, num_keys: int, width: int, *, batch: int, precision: str, device: str
) -> dict[str, Callable[[], None]]:
    """Return forward and backward of a softmax attention by each kernel of torch that takes these sizes, and by ours."""
    sizes = (num_queries, num_keys, num_keys)
    inputs = [torch.randn(batch, n, width, device=device, dtype=DTYPES[precision], requires_grad=True) for n in sizes]
    grad = torch.randn_like(inputs[0])  # contiguous: the gradient of a sum has strides of 0, which some kernels copy first

    def run(function: Callable[..., torch.Tensor]) -> None:
        function(*inputs, scale=width**-0.5).backward(grad)
        for tensor in inputs:
            tensor.grad = None

    steps = {"videornn": partial(run, softmax_attention)}
    for name, kernel in KERNELS.items():
        step = partial(run, partial(by_kernel, kernel))
        try:
            step()
        except RuntimeError as error:
            print(f"{name} does not take width {width} in {precision} on {device}: {str(error).splitlines()[0]}")
        else:
            steps[name] = step
    return steps


def by_kernel(kernel: SDPBackend, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Compute softmax(q k^T) v by one of torch's kernels; raises RuntimeError if it does not take the sizes."""
    with sdpa_kernel(kernel):
        return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=scale).squeeze(1)


def _step(
    model: nn.Module,
    size: tuple[int, ...],
    *,
    batch: int,
    precision: str,
    device: str,
    memory_format: torch.memory_format = torch.channels_last_3d,
) -> Callable[[], None]:
    """Return forward and backward of a batch, with an input like that from the layer before."""
    is_network = size[0] == 3
    dtype = DTYPES[precision]
    model = model.to(device, memory_format=memory_format).train()
    x = torch.randn(batch, *size, device=device, dtype=torch.float32 if is_network else dtype)
    x = x.to(memory_format=memory_format).requires_grad_(not is_network)

    def step() -> None:
        with torch.autocast(device, dtype, enabled=precision != "fp32"):
            y = model(x)
        y.backward(y.detach())  # a gradient in the memory layout of y, like that from the layer behind
        x.grad = None
        model.zero_grad(set_to_none=True)

    return step


def _compare(
    title: str, cases: dict[str, Callable[[], None]], base: str, rounds: int, device: str
) -> dict[str, dict[str, float]]:
    """Print a table of milliseconds and megabytes of each case, and of both relative to the base."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for round_number in range(rounds + 1):
        for name, step in cases.items():
            start = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            if round_number > 0:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    times = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    peaks = {name: peak_bytes(step, device) / 2**20 for name, step in cases.items()}
    print(f"\n{title:<34} {'ms':>9} {'ratio':>7} {'MB':>9} {'ratio':>7}   (forward + backward; ratio to {base})")
    rows = {}
    for name in cases:
        time_ratio, memory_ratio = times[name] / times[base], peaks[name] / peaks[base]
        print(f"  {name:<32} {times[name]:9.1f} {time_ratio:7.2f} {peaks[name]:9.1f} {memory_ratio:7.2f}", flush=True)
        rows[name] = {
            "ms": round(times[name], 2),
            "spread_ms": round(1e3 * (max(seconds[name]) - min(seconds[name])), 2),
            "time_ratio": round(time_ratio, 3),
            "peak_mb": round(peaks[name], 1),
            "memory_ratio": round(memory_ratio, 3),
        }
    return rows


def peak_bytes(step: Callable[[], None], device: str) -> int:
    """Return the peak memory of the tensors of a step, beyond that before it."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


if __name__ == "__main__":
    sys.exit(main())
