"""Memory at the size of Kinetics: what a test, a validation and a report take for 19,761 videos of 400 classes."""

from __future__ import annotations

import importlib.util
import resource
import runpy
import sys
from pathlib import Path

import pytest
import torch
from commands import PROCESSES
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from videornn import metrics

SCRIPT = Path(__file__).parents[1] / "scripts/benchmark_scale.py"


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest tensor had that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor))])
        return made


def test_the_numbers_of_a_test_make_no_tensor_larger_than_its_logits_in_deterministic_mode_too() -> None:
    num_videos, num_views, num_classes = 3000, 2, 60
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_videos, num_views, num_classes, generator=generator)
    labels = torch.randint(num_classes, (num_videos,), generator=generator)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with LargestTensor() as largest:
            metrics.summarize(logits, labels, "scores")
    finally:
        torch.use_deterministic_algorithms(before)
    assert largest.numel <= logits.numel()


def _run_stage(peak: Path, arguments: list[str]) -> None:
    """Be `python ARGUMENTS`, and write down the peak memory in MB."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (24 * 10**9, most))  # fail, rather than take the machine with it
    option, program, *sys.argv[1:] = arguments
    try:
        if option == "-m":
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            exec(program, {"__name__": "__main__"})
    finally:
        peak.write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


@pytest.mark.slow
def test_the_end_of_a_test_of_kinetics_takes_little_more_memory_than_its_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("benchmark_scale", SCRIPT)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)

    def run_forked(name: str, arguments: list[str]) -> dict[str, float]:
        """Without the seven starts of Python, which take longer than what they are for."""
        process = PROCESSES.Process(target=_run_stage, args=(tmp_path / "peak", arguments))
        process.start()
        process.join(600)
        assert process.exitcode == 0, name
        return {"peak_mb": float((tmp_path / "peak").read_text())}

    monkeypatch.setattr(benchmark, "run_stage", run_forked)
    num_videos, num_classes, num_views = 19_761, 400, 6
    stages = benchmark.measure(tmp_path, num_videos, num_classes, num_views, 650_000)
    logits_mb = num_videos * num_classes * num_views * 4 / 1e6  # 190 MB
    start_mb = stages["start"]["peak_mb"]
    peaks = {name: stage["peak_mb"] - start_mb for name, stage in stages.items()}
    assert peaks["test, its end"] < logits_mb + 250
    assert peaks["test --scores"] < logits_mb + 250
    assert peaks["test --scores, two networks"] < logits_mb + 400  # the views of one network at a time
    assert peaks["validation"] < 250
    assert peaks["report"] < 250
    assert peaks["reading a training list"] < 100
