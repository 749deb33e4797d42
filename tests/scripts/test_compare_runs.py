"""scripts/compare_runs.py: records written by hand, run as a user runs it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

RECORDS = [
    {"kind": "train", "step": 5, "epoch": 0.5, "lr": 0.1, "loss": 2.5, "clips_per_second": 10.0, "data_wait": 0.1},
    {"kind": "train", "step": 10, "epoch": 1.0, "lr": 0.08, "loss": 2.0, "memory_gb": 3.5, "eta_seconds": 50},
    {"kind": "val", "step": 10, "epoch": 1.0, "top1": 40.0, "loss": 2.2},
]


@pytest.fixture
def two_runs(tmp_path: Path) -> tuple[Path, Path]:
    for name in "ab":
        _write(tmp_path / name, RECORDS)
    return tmp_path / "a", tmp_path / "b"


def _write(run: Path, records: list[dict]) -> None:
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def _changed(index: int, **numbers: object) -> list[dict]:
    return [record | numbers if index == number else record for number, record in enumerate(RECORDS)]


def _compare(*arguments: object) -> tuple[int, list[str], str]:
    command = [sys.executable, str(ROOT / "scripts/compare_runs.py"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_runs_that_differ_in_clock_and_machine_alone_are_equal(two_runs: tuple[Path, Path]) -> None:
    records = _changed(0, clips_per_second=99.0, data_wait=0.9)
    records[1] = records[1] | {"memory_gb": 1.0, "eta_seconds": 1, "mfu": 0.3}
    _write(two_runs[1], records)
    code, lines, _ = _compare(*two_runs)
    document = json.loads(lines[-1])
    assert code == 0 and lines[0] == "equal" and document["equal"] and document["first_difference"] is None
    assert set(document["largest_relative_difference"]) == {
        "train epoch",
        "train lr",
        "train loss",
        "val epoch",
        "val top1",
        "val loss",
    }
    assert document["num_compared"] == 9


def test_the_first_step_that_differs_and_the_largest_differences_are_told(two_runs: tuple[Path, Path]) -> None:
    records = _changed(1, loss=1.98)
    records[2] = records[2] | {"top1": 50.0}
    _write(two_runs[1], records)
    code, lines, _ = _compare(*two_runs)
    document = json.loads(lines[-1])
    assert code == 1 and lines[0] == "first difference: train step 10, loss: 2.0 and 1.98"
    assert document["first_difference"] == {"step": 10, "kind": "train", "number": "loss"}
    assert document["largest_relative_difference"]["train loss"] == pytest.approx(0.01)
    assert document["largest_relative_difference"]["val top1"] == pytest.approx(0.2)
    assert document["largest_relative_difference"]["train lr"] == 0
    assert any(line.split() == ["val", "top1", "0.2", "10"] for line in lines)
    for rtol, expected in ((0.19, 1), (0.21, 0)):
        assert _compare(*two_runs, "--rtol", rtol)[0] == expected


@pytest.mark.parametrize(
    ("records", "first"),
    [
        (RECORDS[:2], "val step 10, epoch: 1.0 and missing"),
        ([RECORDS[0], RECORDS[2]], "train step 10, epoch: 1.0 and missing"),
        (_changed(0, loss=float("nan")), "train step 5, loss: 2.5 and nan"),
        (_changed(2, top5=1.0), "val step 10, top5: missing and 1.0"),
        (_changed(0, loss="high"), "train step 5, loss: 2.5 and high"),
        (_changed(0, loss=10**309), f"train step 5, loss: 2.5 and 1{309 * '0'}"),
    ],
)
def test_what_one_run_lacks_or_has_no_number_for_differs_at_any_tolerance(
    two_runs: tuple[Path, Path], records: list[dict], first: str
) -> None:
    _write(two_runs[1], records)
    code, lines, _ = _compare(*two_runs, "--rtol", 1e9)
    assert code == 1 and lines[0] == f"first difference: {first}"
    assert None in json.loads(lines[-1])["largest_relative_difference"].values()


def test_nan_in_the_same_place_is_equal(two_runs: tuple[Path, Path]) -> None:
    for run in two_runs:
        _write(run, _changed(0, loss=float("nan")))
    assert _compare(*two_runs)[0] == 0


def test_wrong_input_is_one_sentence_and_exit_code_2(two_runs: tuple[Path, Path]) -> None:
    run, broken = two_runs
    path = broken / "metrics.jsonl"
    good = path.read_text()
    for text, message in [
        ("", "has no records"),
        (good + '{"kind": "tra', "metrics.jsonl:4 is not valid JSON: Unterminated string"),
        ("[1]\n", "metrics.jsonl:1: not a record"),
        ('{"loss": 1}\n', "metrics.jsonl:1: not a record"),
        ('{"kind": "train", "step": [1]}\n', "metrics.jsonl:1: not a record"),
        (good * 2, "metrics.jsonl:4: a second train record of step 5"),
    ]:
        path.write_text(text)
        code, lines, complaint = _compare(run, broken)
        assert (code, lines) == (2, []) and message in complaint and complaint.count("\n") == 1
    shutil.rmtree(broken)
    for arguments, message in [((run, broken), "has no metrics.jsonl"), ((run, run, "--rtol", -1), "--rtol must be")]:
        code, _, complaint = _compare(*arguments)
        assert code == 2 and message in complaint and complaint.count("\n") == 1
