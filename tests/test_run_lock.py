import errno
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from videornn.errors import UserError
from videornn.run_lock import run_lock

fcntl = pytest.importorskip("fcntl")

HOLD = """
import os, sys, time
from pathlib import Path
from videornn.run_lock import run_lock

with run_lock(Path(sys.argv[1])) as remark:
    worker = os.fork() if sys.argv[3] == "worker" else None
    if worker != 0:
        print(f"held {worker} {remark}", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def _holder(folder: Path, seconds: float, worker: str = "alone") -> tuple[subprocess.Popen, list[str]]:
    """A process that holds a run folder for so long, and what it says as soon as it does."""
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds), worker]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().split()


def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs/mine"
    process, said = _holder(folder, 600)
    assert said == ["held", "None", "None"]
    with process:
        expected = f"process {process.pid} on {platform.node()}"
        message = re.escape(f"{folder}: {expected} is at work in it")
        with pytest.raises(UserError, match=message), run_lock(folder, wait_seconds=0.3):
            raise AssertionError("two hold the folder")
        assert f"{folder} is in use by {expected}; waiting" in capsys.readouterr().out
        process.kill()
    with run_lock(folder, wait_seconds=5) as remark:
        assert remark is None
    assert (folder / ".lock").read_text() == f"process {os.getpid()} on {platform.node()}\n"


def test_another_process_that_ends_in_time_is_waited_for(tmp_path: Path) -> None:
    process, _ = _holder(tmp_path, 0.7)
    with process, run_lock(tmp_path, wait_seconds=30):
        pass
    assert process.returncode == 0


def test_kill_9_leaves_nothing_to_clean_up_even_if_a_loader_worker_lives_on(tmp_path: Path) -> None:
    process, said = _holder(tmp_path, 600, "worker")
    worker = int(said[1])
    try:
        with process:
            process.kill()
        os.kill(worker, 0)  # it lives
        with run_lock(tmp_path, wait_seconds=0):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_the_end_of_a_forked_loader_worker_does_not_free_the_folder(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        worker = os.fork()
        if worker == 0:
            os.closerange(3, 100)
            os._exit(0)
        os.waitpid(worker, 0)
        process, said = _holder(tmp_path, 0)
        with process:
            assert said[:5] == [str(tmp_path), "is", "in", "use", "by"]
            process.kill()
    process, said = _holder(tmp_path, 0)
    with process:
        assert said[0] == "held"


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, command: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    with run_lock(tmp_path) as remark:
        assert remark == f"{tmp_path} is on a file system without locks: see to it that no other process works in it"
