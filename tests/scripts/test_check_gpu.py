"""scripts/check_gpu.py: sections that fail, die or hang cost the others nothing; small versions of them run on a CPU."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers import ROOT

SCRIPTS = ROOT / "scripts"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sections are forks on Linux alone")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import check_gpu

    monkeypatch.setattr(check_gpu, "GRACE", 0.2)
    return check_gpu


def _right(scope) -> Iterator[dict]:
    yield {"what": "one", "ms": 1.0}
    yield {"what": "two", "error": 0.1, "limit": 0.2, "ok": True}


def _wrong(scope) -> Iterator[dict]:
    yield {"what": "one", "ok": True}
    raise ValueError("no such kernel")


def _dies(scope) -> Iterator[dict]:
    yield {"what": "one", "ms": 1.0}
    os._exit(7)


def _hangs(scope) -> Iterator[dict]:
    yield {"what": "one", "ms": 1.0}
    time.sleep(600)


def _run(script: ModuleType, function, tmp_path: Path, seconds: float = 60.0) -> dict:
    from gpu_sections.scope import Scope

    context = multiprocessing.get_context("fork")
    return script._run_section(context, "name", function, Scope("cpu", time.monotonic() + seconds, tmp_path))


def test_a_section_ends_with_its_rows_whatever_happens_to_it(script: ModuleType, tmp_path: Path) -> None:
    right = _run(script, _right, tmp_path)
    assert right["verdict"] == "pass" and [row["what"] for row in right["rows"]] == ["one", "two"] and "error" not in right
    wrong = _run(script, _wrong, tmp_path)
    assert wrong["verdict"] == "fail" and wrong["error"] == "ValueError: no such kernel" and len(wrong["rows"]) == 1
    dead = _run(script, _dies, tmp_path)
    assert dead["verdict"] == "fail" and dead["error"] == "its process died (exit code 7)" and len(dead["rows"]) == 1
    hanging = _run(script, _hangs, tmp_path, seconds=3.0)
    assert hanging["verdict"] == "number" and "cut off" in hanging["error"]


def test_verdicts_are_those_of_the_rows(script: ModuleType) -> None:
    cut = "was cut off: its time was over"
    assert script.verdict([{"what": "a", "ok": True}, {"what": "b", "ok": False}], "") == "fail"
    assert script.verdict([{"what": "a", "ok": True}], cut) == "pass"
    assert script.verdict([{"what": "a"}], "") == "number"
    assert script.verdict([], cut) == "cut"
    assert script.verdict([], "RuntimeError: out of memory") == "fail"


def test_the_table_names_what_is_wrong(script: ModuleType) -> None:
    rows = [{"what": "a | b", "ms": 1.23456, "ok": False}, {"what": "c", "ms": None, "ok": True}, {"what": "d", "is": 0}]
    table = script.markdown([{"section": "s", "verdict": "fail", "seconds": 2.0, "rows": rows}])
    assert "| s | fail | 2.0 | not ok: a / b |" in table
    assert "| a / b | 1.235 | no |" in table and "| c |  | yes |" in table and "| d | 0 |" in table


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "check_gpu.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout.startswith("no GPU: ") and "--device cpu" in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_small_version_of_the_sections_runs_on_a_cpu(tmp_path: Path) -> None:
    names = [
        "versions",
        "step",
        "waits",
        "attention",
        "profile",
        "losses",
        "convolutions",
        "norms and pools",
        "resume",
        "test",
    ]
    command = [sys.executable, str(SCRIPTS / "check_gpu.py"), "--device", "cpu", "--minutes", "15", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--only", *names], capture_output=True, text=True)
    results = [json.loads(line) for line in (tmp_path / "check_gpu.jsonl").read_text().splitlines()]
    assert [result["section"] for result in results] == names
    assert done.returncode == 0, [result for result in results if result["verdict"] == "fail"]
    assert all(result["rows"] and "error" not in result for result in results)
    verdicts = {result["section"]: result["verdict"] for result in results}
    assert {name for name, verdict in verdicts.items() if verdict == "pass"} >= {
        "attention",
        "convolutions",
        "resume",
        "test",
    }
    assert (tmp_path / "check_gpu.md").read_text() in done.stdout
