import errno
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import CONFIG

from videornn.config import load_config
from videornn.errors import UserError
from videornn.system import lock
from videornn.system.lock import run_lock
from videornn.training.train import train

fcntl = pytest.importorskip("fcntl")


OF_NODE_7 = """
import fcntl, os, sys, time

lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(lock, fcntl.LOCK_EX)
os.write(lock, b"process 4711 on node7")
print("held", flush=True)
time.sleep(600)
"""
HOLD = """
import os, sys, time
from pathlib import Path
from videornn.system.lock import run_lock

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


@pytest.fixture
def lock_of_node_7(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A stand-in for a dead node whose lock on tmp_path an NFS server keeps: it goes when the process is killed."""
    process = subprocess.Popen([sys.executable, "-c", OF_NODE_7, tmp_path / ".lock"], stdout=subprocess.PIPE)
    with process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


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


def test_the_lock_of_another_host_is_waited_for_until_the_file_system_gives_up_on_a_dead_one(
    tmp_path: Path, lock_of_node_7: subprocess.Popen, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits = []

    def wait() -> None:
        waits.append("a moment")
        if len(waits) == 3:
            lock_of_node_7.kill()

    monkeypatch.setattr(lock, "HERE_SECONDS", 0.0)  # what a process of this host would get
    monkeypatch.setattr(lock, "TELL_SECONDS", 0.0)
    with run_lock(tmp_path, on_wait=wait):
        said = capsys.readouterr().out.splitlines()
    assert len(waits) >= 3 and len(said) == len(waits)
    assert said[0] == (
        f"{tmp_path} is in use by process 4711 on node7; waiting up to 240 s for its end, or for the file system to release "
        f"its lock if its host has died (NFS: 90 s)"
    )


def test_a_lock_of_another_host_that_stays_is_named_with_the_way_out(
    tmp_path: Path, lock_of_node_7: subprocess.Popen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "ELSEWHERE_SECONDS", 0.2)
    end = re.escape(f"choose another --out; if its host is dead and will not come back, remove {tmp_path}/.lock")
    with pytest.raises(UserError, match=rf"process 4711 on node7 is at work in it; .* {end}"), run_lock(tmp_path):
        raise AssertionError("two hold the folder")
    (tmp_path / ".lock").unlink()
    with run_lock(tmp_path, wait_seconds=0):
        pass


def test_ctrl_c_ends_a_training_that_waits_for_the_folder_at_once(
    tmp_path: Path, tiny_settings: list[str], lock_of_node_7: subprocess.Popen, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = iter([signal.SIGINT])

    def sleep(seconds: float) -> None:
        for number in once:
            signal.raise_signal(number)

    monkeypatch.setattr(lock, "ELSEWHERE_SECONDS", 0.5)
    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        train(load_config(CONFIG, tiny_settings), tmp_path)


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
