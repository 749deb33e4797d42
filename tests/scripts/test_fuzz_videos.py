"""Videos whose numbers are extreme are read or refused, in bounded memory; scripts/fuzz_videos.py does thousands."""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
from helpers import ROOT

from videornn.system.workers import Lost

SCRIPT = ROOT / "scripts/fuzz_videos.py"


@pytest.fixture(scope="module")
def fuzzing() -> ModuleType:
    """The script as a module that worker processes find by its name, too."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        yield importlib.import_module("fuzz_videos")
    finally:
        sys.path.remove(str(SCRIPT.parent))


def test_a_mutation_is_made_again_from_its_seed_and_number(fuzzing: ModuleType) -> None:
    content = random.Random(0).randbytes(5000)
    mutations = [fuzzing.mutate(content, random.Random(f"0 {number}")) for number in range(50)]
    assert mutations == [fuzzing.mutate(content, random.Random(f"0 {number}")) for number in range(50)]
    assert len(set(mutations)) > 45 and content not in mutations


@pytest.mark.slow
def test_mutated_videos_are_read_or_refused_in_bounded_memory(
    fuzzing: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parent), prepend=":")
    (tmp_path / "made").mkdir()
    sources = fuzzing.make_videos(tmp_path / "made")
    outcomes = list(fuzzing.fuzz(sources, count=160, seed=1, memory_gb=3, timeout_seconds=120, folder=tmp_path))
    faults = [f"{mutation}: {outcome}" for mutation, outcome in outcomes if isinstance(outcome, Lost) or outcome.faults]
    assert len(outcomes) == 160 and not faults
    results = [set(outcome.results.values()) for _, outcome in outcomes]
    assert {"read"} in results and {"refused"} in results  # or the mutations would be too weak, or too strong
