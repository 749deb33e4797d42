"""Check training steps: time by network, by kernel and by host, waits, and numbers after ten seconds of training."""

from __future__ import annotations

import copy
import itertools
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import torch
from benchmark_train import NUM_CLASSES, PEERS, our_step, peer_step
from torch import nn
from torch.profiler import ProfilerActivity

from gpu_sections.scope import Row, Scope
from videornn.explain.attention_maps import attention_blocks, observe
from videornn.explain.attention_numbers import block_numbers
from videornn.models import ResNet3d
from videornn.models.flops import training_flops
from videornn.system.device import matrix_rate, wait_for

# groups of torch's operators: each counts the time of the kernels that it starts itself
GROUPS = {
    "convolution": r"conv",
    "norm": r"norm",
    "attention": r"attention|softmax",
    "pool": r"pool",
    "products": r"mm$|linear|matmul|bmm",
    "optimizer": r"fused_|foreach",
    "copies and casts": r"copy|clone|contiguous|fill|zero|cat$|stack",
    "ReLU, sums and the like": r"relu|threshold|add|mul|div|sub|mean|sum",
}
SUSPECTS = ("vol2col", "im2col", "nchwToNhwc", "nhwcToNchw", "convertTensor", "fmha_cutlassB", "dgrad2d_grouped_direct")
NETWORKS = (("slow", "none", "paper"), ("slow", "dnl", "paper"), ("slow", "dnl", "learnt"), ("i3d", "dnl", "paper"))


def step(scope: Scope) -> Iterator[Row]:
    """Time a step of each network in bf16 beside PyTorchVideo's as shipped, at the usual batch and at four times that."""
    rate = matrix_rate(scope.device, torch.bfloat16)
    for batch in (8, 32) if scope.on_gpu else (2,):
        clips, labels = scope.clips(batch)
        for network, kind, scale in NETWORKS if batch < 32 else NETWORKS[:2]:
            model = scope.network(network, kind, scale)
            title = f"{network}{f' + {kind}' if kind != 'none' else ''}{f' ({scale})' if scale != 'paper' else ''}"
            row = _timed(scope, f"{title}, bf16, batch {batch}", our_step(model, model, precision="bf16"), clips, labels)
            flops = training_flops(copy.deepcopy(model).cpu(), scope.clip_size) * batch
            yield row | {"MFU": flops / (row["ms"] / 1e3) / rate}
            del model
        if scope.on_gpu and batch == 8:  # as from its hub: float32, contiguous, for clips of 224 pixels and more
            model = PEERS["slow"](pretrained=False).to(scope.device).train()
            yield _timed(scope, f"PyTorchVideo slow, fp32, batch {batch}", peer_step(model), clips.contiguous(), labels)
            del model


def compiled_step(scope: Scope) -> Iterator[Row]:
    """Time the same step compiled: seconds until it runs, then milliseconds."""
    for network, kind in (("slow", "dnl"), ("slow", "none")):
        model = scope.network(network, kind)
        clips, labels = scope.clips(8 if scope.on_gpu else 2)
        train = our_step(torch.compile(model), model, precision="bf16")
        start = time.perf_counter()
        train(clips, labels)
        wait_for(scope.device)
        seconds = time.perf_counter() - start
        yield _timed(scope, f"{network} + {kind}, compiled, bf16, batch {len(clips)}", train, clips, labels) | {
            "seconds to compile": seconds
        }


def _timed(scope: Scope, what: str, train: Callable, clips: torch.Tensor, labels: torch.Tensor) -> Row:
    """Measure milliseconds of a step in a series and of the host alone, and peak memory."""
    call = partial(train, clips, labels)
    for _ in range(3):
        call()
    wait_for(scope.device)
    num_steps = 10 if scope.on_gpu else 2
    start = time.perf_counter()
    for _ in range(num_steps):
        call()
    wait_for(scope.device)
    milliseconds = 1e3 * (time.perf_counter() - start) / num_steps
    return {
        "what": what,
        "ms": milliseconds,
        "host ms": scope.host_milliseconds(call),
        "GPU ms": scope.milliseconds(call),
        "clips/s": 1e3 * len(clips) / milliseconds,
        "peak GB": scope.peak_gb(call),
    }


def _profiled(scope: Scope, model: nn.Module, num_steps: int = 5) -> tuple[Counter, Counter]:
    """Measure milliseconds of a step by group of operators, and by kernel."""
    clips, labels = scope.clips(8 if scope.on_gpu else 2)
    train = our_step(model, model, precision="bf16")
    for _ in range(5 if scope.on_gpu else 1):
        train(clips, labels)
    wait_for(scope.device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if scope.on_gpu else [])]
    with torch.profiler.profile(activities=activities) as recorded:
        for _ in range(num_steps):
            train(clips, labels)
        wait_for(scope.device)
    groups, kernels = Counter(), Counter()
    for event in recorded.key_averages():
        microseconds = event.self_device_time_total if scope.on_gpu else event.self_cpu_time_total
        if event.key.startswith("aten::"):
            groups[_group(event.key.removeprefix("aten::"))] += microseconds / 1e3 / num_steps
        elif scope.on_gpu and event.device_type == torch.autograd.DeviceType.CUDA:
            kernels[event.key] += microseconds / 1e3 / num_steps
    return groups, kernels


def profile(scope: Scope) -> Iterator[Row]:
    """Show where the time of a step goes, by group of operators; then the most expensive and any unexpected kernels."""
    for network, kind in (("slow", "none"), ("slow", "dnl"), ("i3d", "dnl")):
        groups, kernels = _profiled(scope, scope.network(network, kind), 5 if scope.on_gpu else 1)
        whole = sum(groups.values())
        what = f"{network} + {kind}"
        for name, milliseconds in groups.most_common():
            yield {"what": f"{what}: {name}", "ms of a step": milliseconds, "share": milliseconds / whole}
        for name, milliseconds in kernels.most_common(15):
            yield {"what": f"{what}, kernel {name[:110]}", "ms": milliseconds}
        strange = {name: value for name, value in kernels.items() if any(word in name for word in SUSPECTS)}
        yield {
            "what": f"{what}: kernels that convert or unfold",
            "ms of a step": sum(strange.values()),
            "names": ", ".join(strange)[:300],
        }


def _group(operator: str) -> str:
    return next((name for name, pattern in GROUPS.items() if re.search(pattern, operator)), "other")


def waits(scope: Scope) -> Iterator[Row]:
    """Find where the host waits for the GPU within a step."""
    if not scope.on_gpu:
        yield {"what": "waits within a step", "is": "not to be seen on a CPU"}
        return
    for network, kind, precision in (("slow", "dnl", "bf16"), ("i3d", "none", "fp16")):
        model = scope.network(network, kind)
        clips, labels = scope.clips(8)
        train = our_step(model, model, precision=precision)
        for _ in range(3):
            train(clips, labels)
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                train(clips, labels)
        torch.cuda.set_sync_debug_mode("default")
        places = Counter(f"{warning.filename.rpartition('/')[2]}:{warning.lineno}" for warning in caught)
        names = ", ".join(f"{place} {count}x" for place, count in places.items())
        yield {"what": f"waits in 3 steps of {network} + {kind}, {precision}", "is": names or "none", "ok": not places}


def losses(scope: Scope) -> Iterator[Row]:
    """Train on a few fixed clips in three precisions: loss, logits and maps of the blocks at the start and at the end."""
    num_steps = 60 if scope.on_gpu else 3
    batch = 8 if scope.on_gpu else 2
    clips, _ = scope.clips(8 * batch if scope.on_gpu else batch)
    labels = torch.arange(len(clips), device=scope.device) % NUM_CLASSES
    cases = [("paper", "fp32"), ("paper", "bf16"), ("paper", "fp16"), ("learnt", "bf16")]
    for scale, precision in cases:
        torch.manual_seed(0)
        model = scope.network("slow", "dnl", scale, dropout=0.0)
        train = our_step(model, model, precision=precision)
        parts = itertools.cycle(list(zip(clips.split(batch), labels.split(batch), strict=True)))
        curve = []
        for number in range(num_steps + 1):
            if number in (0, num_steps // 3, num_steps):
                yield {"what": f"{scale}, {precision}, step {number}", **_blocks(model, clips[:1])}
            curve.append(train(*next(parts)).loss)
        curve = torch.stack(curve).tolist()
        start, end = (sum(part) / len(part) for part in (curve[:8], curve[-8:]))
        ok = end < start and all(value == value for value in curve)
        yield {
            "what": f"{scale}, {precision}",
            "loss of the first steps": start,
            "of the last": end,
            "ok": ok or not scope.on_gpu,
        }


@torch.no_grad()
def _blocks(model: ResNet3d, clip: torch.Tensor) -> dict[str, str]:
    """Describe every block: deviation of pairwise logits over keys, and effective keys, pairwise and unary, in percent."""
    numbers = []
    blocks = attention_blocks(model.eval())
    observed = observe(model, clip)
    model.train()
    for name, (x, output) in observed.blocks.items():
        found = block_numbers(blocks[name], x, output)
        shares = (100 * found["effective_keys"], 100 * found["unary_effective_keys"])
        numbers.append(f"{found['logit_deviation']:.2f} / {shares[0]:.1f} / {shares[1]:.1f}")
    return {"deviation / pairwise / unary, by block": ", ".join(numbers)}
