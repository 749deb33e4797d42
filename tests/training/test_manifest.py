import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import av
import numpy
import pytest
import torch
import torchvision

from videornn.training.manifest import append_manifest, describe_code, describe_start


def _entry() -> dict:
    return describe_start(
        command=["videornn", "train", "my config.yaml"],
        training={"num_ranks": 2, "lr": 0.1, "lr_used": 0.0125},
        data={"train": {"used": 20, "missing": 1}, "classes_without_video": ["swim"]},
        start={"step": 0, "checkpoint": None},
    )


def test_every_start_adds_an_entry_of_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    assert append_manifest(path, _entry()) is None
    first = json.loads(path.read_text())
    resumed = _entry() | {"start": {"step": 400, "checkpoint": "last.pt"}}
    assert append_manifest(path, resumed) is None
    entries = json.loads(path.read_text())
    assert entries[:1] == first and entries[1]["start"] == {"step": 400, "checkpoint": "last.pt"} and len(entries) == 2
    assert entries[0]["command"] == ["videornn", "train", "my config.yaml"] and entries[0]["training"]["lr_used"] == 0.0125
    assert entries[0]["data"]["classes_without_video"] == ["swim"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ['[{"time": "2026', "\0" * 50, '{"time": 1}', "\xff", "[" * 100_000])
def test_a_damaged_manifest_is_kept_aside(text: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    for number in (1, 2):
        path.write_bytes(text.encode("latin-1"))
        remark = append_manifest(path, {"time": number})
        aside = tmp_path / f"manifest.damaged-{number}.json"
        assert f"{path} was damaged" in remark and aside.name in remark
        assert aside.read_bytes() == text.encode("latin-1")
        assert json.loads(path.read_text()) == [{"time": number}]


def test_an_entry_names_versions_and_the_machine() -> None:
    entry = _entry()
    versions = entry["versions"]
    assert versions["torch"] == torch.__version__ and versions["python"] == sys.version.split()[0]
    assert versions["torchvision"].split("+")[0] == torchvision.__version__.split("+")[0]
    assert (versions["numpy"], versions["av"], versions["pytorchvideo"]) == (numpy.__version__, av.__version__, "0.1.5")
    assert set(versions) >= {"videornn", "decord", "torchcodec", "cuda"}
    machine = entry["machine"]
    assert machine["host"] == platform.node() and len(machine["gpus"]) == torch.cuda.device_count()
    assert 1 <= machine["cores"] <= os.cpu_count() and machine["cpu"]
    written = datetime.fromisoformat(entry["time"])
    assert written.utcoffset() == timedelta(0) and abs(datetime.now(timezone.utc) - written) < timedelta(minutes=5)
    if Path("/proc/meminfo").exists():
        total_kib = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0])
        assert machine["memory_gb"] == pytest.approx(total_kib * 1024 / 1e9, rel=0.01, abs=0.06)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of one commit with a package in it."""
    for name in ("videornn/training/train.py", "notes.txt", ".venv/site-packages/videornn/training/train.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1\n")
    identity = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    for arguments in (["init", "-q"], ["add", "videornn", "notes.txt"], [*identity, "commit", "-q", "-m", "one"]):
        try:
            subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("there is no git")
    return tmp_path


def test_the_commit_of_the_code_is_told_and_whether_the_code_has_changes(repository: Path, monkeypatch) -> None:
    head = subprocess.run(["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    package = repository / "videornn"
    assert len(head) == 40 and describe_code(package) == {"commit": head, "dirty": False}
    (repository / "notes.txt").write_text("not code\n")
    assert describe_code(package)["dirty"] is False
    (package / "new.py").write_text("2\n")
    assert describe_code(package) == {"commit": head, "dirty": True}
    (package / "new.py").unlink()
    (package / "train.py").write_text("2\n")
    monkeypatch.setenv("GIT_DIR", str(repository / "elsewhere"))  # as in a hook
    assert describe_code(package) == {"commit": head, "dirty": True}


def test_a_package_that_is_installed_in_somebody_elses_repository_has_no_commit(repository: Path, monkeypatch) -> None:
    nothing = {"commit": None, "dirty": None}
    assert describe_code(repository / ".venv/site-packages/videornn") == nothing
    assert describe_code(Path(os.path.abspath(os.sep))) == nothing
    monkeypatch.setenv("PATH", str(repository))  # no git
    assert describe_code(repository / "videornn") == nothing
