"""The demo's folder: gone after kill -9 when the next one starts, and nothing else with it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import ROOT

from videornn.demo.private_folder import PrivateFolder

pytest.importorskip("fcntl", reason="folders are held by locks of POSIX")

DEMO = "import videornn.demo.server as d; from demo_networks import Light; d.Network = Light; d.serve('x.pt', port=0)"


@contextmanager
def demo(temporary: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """A demo in a process of its own, and its port."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": paths}
    with subprocess.Popen([sys.executable, "-c", DEMO], env=environment, text=True, stdout=subprocess.PIPE) as process:
        try:
            yield process, int(re.search(r":(\d+)/", process.stdout.readline())[1])
        finally:
            process.kill()


def videos(temporary: Path) -> list[Path]:
    return list(temporary.glob("videornn-demo-*/*/video.mp4"))


def test_videos_of_a_demo_that_was_killed_go_when_the_next_one_starts_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    with demo(tmp_path) as (process, port), socket.create_connection(("127.0.0.1", port), timeout=300) as upload:
        upload.sendall(b"POST /predict?name=a.mp4 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n123")
        end = time.monotonic() + 300
        while not videos(tmp_path) and time.monotonic() < end:
            time.sleep(0.02)
        with demo(tmp_path):
            assert len(videos(tmp_path)) == 1
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=300)
    assert len(videos(tmp_path)) == 1
    with demo(tmp_path):
        # the sockets of Python's server of forks, which it keeps in the same place, stay after kill -9
        left = [path for path in tmp_path.iterdir() if not path.name.startswith("pymp-")]
        assert not videos(tmp_path) and len(left) == 1


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_is_called_alike_but_is_not_a_private_folder_of_this_user_stays(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (temporary / "mine").mkdir(0o700)
    (temporary / "mine/letter").write_text("kept")
    (temporary / "videornn-demo-link").symlink_to(temporary / "mine")
    (temporary / "videornn-demo-notes").write_text("kept")
    os.mkfifo(temporary / "videornn-demo-pipe")
    (temporary / "videornn-demo-open").mkdir()
    (temporary / "videornn-demo-open").chmod(0o755)
    (temporary / "videornn-demo-left").mkdir(0o700)
    (temporary / "videornn-demo-left/link").symlink_to(temporary / "mine")
    before = {path.name for path in temporary.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)  # all these are another user's
        PrivateFolder().remove()
    assert {path.name for path in temporary.iterdir()} == before
    PrivateFolder().remove()
    assert {path.name for path in temporary.iterdir()} == before - {"videornn-demo-left"}
    assert (temporary / "mine/letter").read_text() == "kept"


def test_a_folder_that_another_takes_before_it_is_held_is_made_again(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = tempfile.TemporaryDirectory, []

    def make_and_lose(**options: object) -> tempfile.TemporaryDirectory:
        made.append(make(**options))
        if len(made) == 1:
            os.rmdir(made[0].name)
        return made[-1]

    monkeypatch.setattr(tempfile, "TemporaryDirectory", make_and_lose)
    folder = PrivateFolder()
    assert folder.path.is_dir() and folder.path == Path(made[1].name)
    folder.remove()
    assert not list(temporary.iterdir())
