"""Loader workers: those that die, hang or cannot start, and the memory they take."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_loader import SMALL, batches_of, plan_of

from videornn.data.annotations import VideoTable, load_videos
from videornn.data.dataset import ClipKey, TrainClips
from videornn.data.loader import _fit_shared_memory, build_loader
from videornn.errors import UserError


@pytest.fixture(scope="module")
def table(motion_set: Path) -> VideoTable:
    return load_videos(str(motion_set / "train.txt"))


class _Garbage:
    """In a cycle, as containers of PyAV are: only the garbage collector ends it. Its end is written down."""

    def __init__(self, ends: Path) -> None:
        self.ends, self.cycle = ends, self

    def __del__(self) -> None:
        with self.ends.open("a") as file:
            file.write(f"{os.getpid()}\n")


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="workers that are no forks have no such garbage")
def test_workers_leave_the_garbage_of_their_parent_alone(
    motion_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, ends, workers = TrainClips.__getitem__, tmp_path / "ends", tmp_path / "workers"

    def collect_and_load(self: TrainClips, key: ClipKey) -> list:
        gc.collect()
        with workers.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return load(self, key)

    monkeypatch.setattr(TrainClips, "__getitem__", collect_and_load)
    table = load_videos(str(motion_set / "train.txt"))
    gc.disable()
    try:
        _Garbage(ends)
        assert len(batches_of(table, 4, num_workers=2)) == 4
        assert not ends.exists()  # neither here, where nothing is collected now, nor in a worker
    finally:
        gc.enable()
    gc.collect()
    assert ends.read_text() == f"{os.getpid()}\n"
    assert len(set(workers.read_text().split()) - {str(os.getpid())}) == 2


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _run_out_of_memory() -> None:
    os.kill(os.getpid(), signal.SIGKILL)  # as Linux does then


def _hang() -> None:
    time.sleep(600)


@dataclass(frozen=True, eq=False)
class Trap(VideoTable):
    """A table that does something to the worker that reads one of its videos, the first time (sprung is a file then)."""

    victim: int = -1
    disaster: Callable[[], None] = _hang
    sprung: Path = Path()

    def path(self, index: int) -> str:
        if torch.utils.data.get_worker_info() is not None and index == self.victim and not self.sprung.exists():
            self.sprung.touch()
            self.disaster()
        return super().path(index)


def _trap(table: VideoTable, victim: int, disaster: Callable[[], None], folder: Path) -> Trap:
    columns = {each.name: getattr(table, each.name) for each in fields(VideoTable)}
    return Trap(**columns, victim=victim, disaster=disaster, sprung=folder / "sprung")


@pytest.fixture(params=["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
def start_method(request: pytest.FixtureRequest) -> Iterator[None]:
    """How workers start: fork up to Python 3.13, forkserver from 3.14 on."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.usefixtures("start_method")
@pytest.mark.parametrize(
    ("disaster", "words"),
    [
        (_run_out_of_memory, "died (SIGKILL, as when memory runs out)"),
        pytest.param(_crash, "died (SIGSEGV)", marks=pytest.mark.slow),
        pytest.param(_hang, "hung for 3 s", marks=pytest.mark.slow),
    ],
)
def test_a_video_that_kills_or_hangs_a_worker_is_named_and_left_out(
    table: VideoTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disaster: Callable[[], None], words: str
) -> None:
    expected = batches_of(table, 8, first_step=1, accumulate=2)
    victim = int(expected[3].indices[1])
    monkeypatch.setattr("videornn.data.loader.POLL_SECONDS", 1.0)
    monkeypatch.setattr("videornn.data.loader.HANG_TIMEOUTS", 0.05)  # of the 60 s that a video may take
    batches = batches_of(_trap(table, victim, disaster, tmp_path), 8, num_workers=2, first_step=1, accumulate=2)
    assert [len(batch.labels) for batch in batches] == [2] * 8
    bad = {video.path: video.reason for batch in batches for video in batch.bad}
    assert bad == {table.path(victim): f"{table.path(victim)}: a loader worker {words} at it"}
    for mine, theirs in zip(batches, expected, strict=True):  # all other samples are what they would have been
        same = theirs.indices != victim
        assert torch.equal(mine.clips[same], theirs.clips[same]) and victim not in mine.indices.tolist()


@pytest.mark.slow
@pytest.mark.usefixtures("start_method")
def test_no_video_is_blamed_for_a_worker_that_was_asked_to_end(
    table: VideoTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler that preempts a job sends SIGTERM to all of its processes."""
    expected = batches_of(table, 4)
    victim = int(expected[2].indices[1])
    monkeypatch.setattr("videornn.data.loader.POLL_SECONDS", 1.0)
    monkeypatch.setattr("videornn.data.loader.MAX_PREFETCH", 1)
    section = SMALL.model_copy(update={"num_workers": 1})
    trap = _trap(table, victim, _hang, tmp_path)
    loader = build_loader(section, trap, plan=plan_of(len(table), 4), seed=5)
    batches = []
    for batch in itertools.islice(loader, 4):
        if len(batches) == 1:
            while not trap.sprung.exists():  # until the worker is at a video
                time.sleep(0.01)
            (worker,) = loader.dataset.reader.workers()
            subprocess.run(["kill", "-TERM", str(worker[0])], check=True)  # from this process it means a usual end
        batches.append(batch)
    assert not any(batch.bad for batch in batches)
    for mine, theirs in zip(batches, expected, strict=True):
        assert torch.equal(mine.clips, theirs.clips)


@pytest.mark.slow
def test_a_script_that_every_worker_would_run_again_is_told_so(tiny_run: Path, motion_set: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "multiprocessing.set_start_method('forkserver', force=True)\n"  # what Python 3.14 does by itself
        "from videornn import load_predictor\n"
        "list(load_predictor(sys.argv[1], overrides=['data.num_workers=1']).predict_many(sys.argv[2:]))\n"
    )
    video = next((motion_set / "videos/train").rglob("*.mp4"))
    command = [sys.executable, script, tiny_run / "checkpoints/last.pt", video]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "loader workers end before they read anything" in done.stderr.splitlines()[-1]


def test_an_error_in_a_worker_is_one_sentence(motion_set: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("".join(f"missing_{n}.mp4 0\n" for n in range(20)))
    with pytest.raises(
        UserError, match=r"^10 videos in a row cannot be decoded; the last: .*missing_\d+.mp4: no such file$"
    ):
        batches_of(load_videos(str(tmp_path / "list.txt")), 1, num_workers=1)


def test_workers_are_cut_down_to_the_shared_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.isdir", lambda path: True)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=64_000_000))  # what Docker gives
    with pytest.warns(UserWarning, match="room for 3 batches of 10 MB: 3 loader workers instead of 8"):
        assert _fit_shared_memory(8, int(1e7)) == (3, 1)
    assert _fit_shared_memory(2, int(5e6)) == (2, 3)
    assert _fit_shared_memory(0, int(1e7)) == (0, None)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_is_flat_over_20000_samples(make_video, tmp_path: Path) -> None:
    lines = [f"{make_video(tmp_path / f'{n}{suffix}', 20)} 0\n" for n in range(4) for suffix in (".mp4", ".avi", ".mkv")]
    (tmp_path / "list.txt").write_text("".join(lines))
    (tmp_path / "bad.mp4").write_text("no video")
    (tmp_path / "list.txt").write_text("".join([*lines, f"{tmp_path}/bad.mp4 0\n"]))
    dataset = build_loader(SMALL, load_videos(str(tmp_path / "list.txt")), plan=plan_of(13, 4), seed=5).dataset
    resident = []
    for number in range(20000):
        assert len(dataset[ClipKey(number, number % 13, 0, 4, 16)]) == 1
        if number % 4000 == 3999:
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)
    assert max(resident) - resident[0] < 20, resident


@pytest.mark.parametrize("alive", [True, False])
def test_a_pinning_thread_that_ended_is_not_waited_for(
    table: VideoTable, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    loader, polls = build_loader(SMALL, table, plan=plan_of(20, 4), seed=0), []

    class Stuck:
        _pin_memory_thread = SimpleNamespace(is_alive=lambda: alive)

        def __next__(self) -> None:
            polls.append(1)
            if len(polls) > 3:
                raise StopIteration
            raise RuntimeError("DataLoader timed out after 5 seconds")

    monkeypatch.setattr(loader, "_start", lambda _: Stuck())
    if alive:  # a slow video
        assert list(loader) == [] and len(polls) == 4
    else:
        with pytest.raises(RuntimeError, match="pinned memory has ended"):
            list(loader)
