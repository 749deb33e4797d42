"""Memory at the size of Kinetics: what a test, a validation and a report take for 19,761 videos of 400 classes."""

from __future__ import annotations

import importlib.util
import resource
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from videornn.evaluation import metrics

SCRIPT = ROOT / "scripts/benchmark_scale.py"


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


@pytest.mark.slow
def test_the_end_of_a_test_of_kinetics_takes_little_more_memory_than_its_logits(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("benchmark_scale", SCRIPT)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    num_videos, num_classes, num_views = 19_761, 400, 6
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (24 * 10**9, limits[1]))  # fail, rather than take the machine with it
    try:
        stages = benchmark.measure(tmp_path, num_videos, num_classes, num_views, 650_000)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    logits_mb = num_videos * num_classes * num_views * 4 / 1e6  # 190 MB
    start_mb = stages["start"]["peak_mb"]
    peaks = {name: stage["peak_mb"] - start_mb for name, stage in stages.items()}
    assert peaks["test, its end"] < logits_mb + 250
    assert peaks["scores"] < logits_mb + 250
    assert peaks["scores, two networks"] < logits_mb + 400  # the views of one network at a time
    assert peaks["validation"] < 250
    assert peaks["report"] < 250
    assert peaks["reading a training list"] < 100
