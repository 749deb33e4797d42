"""Measure time and memory of a training step against PyTorchVideo's networks as shipped, on one machine in one run.

    python scripts/benchmark_train.py [--rounds 7] [--networks slow i3d c2d] [--attention none nl dnl] [--compile]
    python scripts/benchmark_train.py --end-to-end ["FOLDER/*.mp4"] --networks slow --rounds 3 [--workers 1 2]

A step is forward, cross-entropy, backward and an SGD update of an R50 for 400 classes on clips of 8 frames in memory.
PyTorchVideo's networks run as they come from its hub: float32, contiguous. Cases take turns, so that a busy machine is busy
for all. Times are medians; `best` is the fastest round, and `cpu` the processor time per thread of the cheapest round, the
most telling number on a busy machine, provided that threads do not wait actively (OMP_WAIT_POLICY=passive). FLOPs are those
of the forward pass times three, a multiply-add being two; MFU is the share of the rate that the best of a few plain matrix
products reaches here in the case's precision. Memory is the peak of the tensors of a step, on top of weights, momentum and
input.

With --end-to-end, the same step takes its clips from videos on disk, through the loader of `videornn train`, and from
memory, for each number of workers. The last line is JSON.
"""

from __future__ import annotations

import argparse
import glob
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from benchmark_attention import DTYPES, FIVE, KEY_POOL, peak_bytes
from pytorchvideo.models import hub
from torch import Tensor, nn

from videornn.config import DataConfig, TrainConfig
from videornn.data.annotations.load import load_videos
from videornn.data.loader import build_loader, plain_plan
from videornn.data.shared_batch import to_device
from videornn.models import ATTENTION_KINDS, ResNet3d
from videornn.models.flops import forward_flops
from videornn.models.forward import Normalize
from videornn.system.device import matrix_rate, tune, wait_for
from videornn.training.optim import build_optimizer
from videornn.training.step import build_scaler, train_step

FRAMES, NUM_CLASSES = 8, 400
STEPS_A_TURN = 8  # with --end-to-end, so that the loader has to keep up
PEERS = {"slow": hub.slow_r50, "i3d": hub.i3d_r50, "c2d": hub.c2d_r50}
SGD = TrainConfig(lr=0.01, momentum=0.9, weight_decay=1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=list(DTYPES), default="bf16", help="of videornn; PyTorchVideo has fp32")
    parser.add_argument("--batch", type=int, default=2, help="clips")
    parser.add_argument("--size", type=int, default=224, help="of the crop, in pixels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--networks", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--attention", nargs="+", choices=["none", "nl", "dnl"], default=["none"], help="five blocks")
    parser.add_argument("--compile", action="store_true", help="time videornn's networks compiled, too")
    parser.add_argument("--end-to-end", nargs="?", const="", metavar="VIDEOS", help="a glob; without one, made videos")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2], help="of the loader (--end-to-end)")
    options = parser.parse_args()
    if options.end_to_end is None and options.size < 224:
        parser.error(f"--size {options.size}: PyTorchVideo's networks as shipped take clips of 224 pixels and more")
    device = torch.device(options.device)
    tune(device, deterministic=False)
    result: dict[str, object] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "torch": str(torch.__version__),
        **{name: getattr(options, name) for name in ("precision", "batch", "size", "rounds")},
    }
    if options.end_to_end is None:
        precisions = ("fp32", options.precision)
        rates = {name: matrix_rate(device, DTYPES[name]) for name in precisions}
        tables = {network: _compare(network, options, device, rates) for network in options.networks}
        for name in precisions:  # the machine may have been busy the first time
            rates[name] = max(rates[name], matrix_rate(device, DTYPES[name]))
        result["matrix_gflops"] = {name: round(rate / 1e9) for name, rate in rates.items()}
        for network, rows in tables.items():
            _print(network, rows, rates)
        result |= tables
    else:
        result["end_to_end"] = _end_to_end(options, device)
    print(json.dumps(result))


def our_step(model: nn.Module, bare: nn.Module, *, precision: str) -> Callable[[Tensor, Tensor], object]:
    """Return a step of `videornn train` on normalised clips and labels; model is bare, or bare compiled."""
    optimizer = build_optimizer(bare, SGD)
    scaler = build_scaler(next(bare.parameters()).device, precision, skip_nonfinite=False)
    return lambda clips, labels: train_step(model, [(clips, labels)], optimizer, scaler=scaler, precision=precision)


def peer_step(model: nn.Module) -> Callable[[Tensor, Tensor], object]:
    """Return the plain step of float32 networks."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)

    def step(clips: Tensor, labels: Tensor) -> None:
        nn.functional.cross_entropy(model(clips), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _network(name: str, kind: str, device: torch.device) -> ResNet3d:
    attention = None if kind == "none" else partial(ATTENTION_KINDS[kind], key_pool=KEY_POOL)
    model = ResNet3d(name, 50, num_classes=NUM_CLASSES, attention=attention, places=FIVE)
    return model.to(device, memory_format=torch.channels_last_3d).train()


def _compare(name: str, options: argparse.Namespace, device: torch.device, rates: dict[str, float]) -> dict[str, dict]:
    """Measure milliseconds, megabytes and GFLOP/s of a step of PyTorchVideo's network and ours, with and without blocks."""
    clips = torch.randn(options.batch, 3, FRAMES, options.size, options.size, device=device)
    labels = torch.arange(options.batch, device=device) % NUM_CLASSES
    clips_last = clips.contiguous(memory_format=torch.channels_last_3d)
    cases = {"PyTorchVideo": partial(peer_step(PEERS[name](pretrained=False).to(device).train()), clips, labels)}
    flops = {"PyTorchVideo": forward_flops(_network(name, "none", device), clips.shape[2:])}
    for kind in options.attention:
        title = "videornn" if kind == "none" else f"videornn + {kind}"
        for compiled in (False, True) if options.compile else (False,):
            model = _network(name, kind, device)
            step = our_step(torch.compile(model) if compiled else model, model, precision=options.precision)
            case = f"{title}, compiled" if compiled else title
            cases[case], flops[case] = partial(step, clips_last, labels), forward_flops(model, clips.shape[2:])
    seconds, processor = _take_turns(cases, options.rounds, device)
    rows = {}
    for title, step in cases.items():
        row = {
            "ms": 1e3 * statistics.median(seconds[title]),
            "best_ms": 1e3 * min(seconds[title]),
            "worst_ms": 1e3 * max(seconds[title]),
            "cpu_ms": 1e3 * min(processor[title]),
            "clips_per_second": options.batch / statistics.median(seconds[title]),
            "gflops": 6 * options.batch * flops[title] / min(seconds[title]) / 1e9,
            "peak_mb": peak_bytes(step, device.type) / 2**20,
            "precision": "fp32" if title == "PyTorchVideo" else options.precision,
        }
        rows[title] = {key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}
    return rows


def _take_turns(
    cases: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Measure seconds of every round of every case, and its processor time per thread; an extra round warms up."""
    seconds: dict[str, list[float]] = {title: [] for title in cases}
    processor: dict[str, list[float]] = {title: [] for title in cases}
    for round_number in range(rounds + 1):
        for title, step in cases.items():
            start, start_processor = time.perf_counter(), time.process_time()
            step()
            wait_for(device)
            if round_number > 0:
                seconds[title].append(time.perf_counter() - start)
                processor[title].append((time.process_time() - start_processor) / torch.get_num_threads())
    return seconds, processor


def _print(network: str, rows: dict[str, dict], rates: dict[str, float]) -> None:
    """Print a table of one network, and add to its rows the ratios to PyTorchVideo and the MFU."""
    base = rows["PyTorchVideo"]
    columns = ("ms", "best", "cpu", "clips/s", "faster", "(best)", "(cpu)", "MB", "GFLOP/s", "MFU %")
    print(f"\n{network + ' r50':<24}" + "".join(f" {column:>8}" for column in columns))
    for title, row in rows.items():
        for key, of in (("faster", "ms"), ("faster_best", "best_ms"), ("faster_cpu", "cpu_ms")):
            row[key] = round(base[of] / row[of], 2)
        row["mfu"] = round(1e9 * row["gflops"] / rates[row["precision"]], 3)
        whole = [row[key] for key in ("ms", "best_ms", "cpu_ms", "peak_mb", "gflops")] + [100 * row["mfu"]]
        parts = [row[key] for key in ("clips_per_second", "faster", "faster_best", "faster_cpu")]
        text = [f" {value:8.0f}" for value in whole[:3]] + [f" {value:8.2f}" for value in parts]
        print(f"  {title:<22}" + "".join(text + [f" {value:8.0f}" for value in whole[3:]]), flush=True)


def _end_to_end(options: argparse.Namespace, device: torch.device) -> dict[str, dict]:
    """Measure the share of time that loading costs, by network and number of workers."""
    with tempfile.TemporaryDirectory() as name:
        paths = sorted(glob.glob(options.end_to_end)) if options.end_to_end else _made_videos(Path(name), options.batch)
        if not paths:
            sys.exit(f"--end-to-end {options.end_to_end} matches nothing")
        paths *= -(-options.batch // len(paths))  # a batch contains no video twice
        source = Path(name) / "list.txt"
        source.write_text("".join(f'"{os.path.abspath(path)}" 0\n' for path in paths))
        print(f"\n{len(paths)} videos: ms of a step on clips from disk and from memory, and what loading costs")
        return {
            f"{network}, {workers} workers": _loading_share(network, workers, str(source), options, device)
            for network in options.networks
            for workers in options.workers
        }


def _made_videos(folder: Path, batch: int) -> list[str]:
    from benchmark_data import make_videos  # imported here because it changes modules of torchvision

    return make_videos(folder, max(batch, 6))


def _loading_share(
    network: str, workers: int, source: str, options: argparse.Namespace, device: torch.device
) -> dict[str, float]:
    """Measure milliseconds of a step on clips from disk and from memory, and the extra time of the first as a share."""
    size, table = options.size, load_videos(source)
    section = DataConfig(num_frames=FRAMES, crop_size=size, short_side=(size * 8 // 7, size * 10 // 7), num_workers=workers)
    plan = plain_plan(section, len(table), 10**6, options.batch)
    loader = build_loader(section, table, plan=plan, seed=0, pin_memory=device.type == "cuda")
    batches = to_device(loader, device)
    model = _network(network, options.attention[0], device)
    step = our_step(model, model, precision=options.precision)
    normalize = Normalize([0.45] * 3, [0.225] * 3, device)
    kept = next(batches).clips
    labels = torch.zeros(options.batch, dtype=torch.int64, device=device)
    sources = {"disk": (batch.clips for batch in batches), "memory": itertools.repeat(kept)}
    seconds: dict[str, list[float]] = {place: [] for place in sources}
    for round_number in range(options.rounds + 1):
        for _ in range(workers * (loader.prefetch_factor or 0)):
            next(batches)  # these were loaded during the other case's turn, and so would be free
        for place, clips in sources.items():
            start = time.perf_counter()
            for _ in range(STEPS_A_TURN):
                step(normalize(next(clips)), labels)
            wait_for(device)
            if round_number > 0:
                seconds[place].append((time.perf_counter() - start) / STEPS_A_TURN)
    disk, memory = (1e3 * statistics.median(seconds[place]) for place in ("disk", "memory"))
    print(f"  {network} r50, {workers} workers: {disk:8.0f} {memory:8.0f} {100 * (disk / memory - 1):6.1f} %", flush=True)
    return {"disk_ms": round(disk, 1), "memory_ms": round(memory, 1), "cost": round(disk / memory - 1, 3)}


if __name__ == "__main__":
    sys.exit(main())
