"""Loader workers: those that die, hang or cannot start, and the memory they take."""

from __future__ import annotations

import errno
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
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import Command
from helpers import CONFIG, SMALL, batches_of, plan_of

from videornn import config
from videornn.data.annotations.load import VideoTable, load_videos
from videornn.data.dataset import ClipKey, TrainClips, VideoReader
from videornn.data.loader import _prefetch, build_loader, build_test_loader, view_spec
from videornn.data.shared_batch import SentBatch
from videornn.errors import UserError

VIEW = config.EvalConfig(num_clips=1, num_crops=1, short_side=16, crop_size=16)


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


def _run_out_of_memory(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)  # as Linux does then


def _hang() -> None:
    time.sleep(600)


@dataclass(frozen=True, eq=False)
class Trap(VideoTable):
    """A table that does something to the worker that reads one of its videos, some times (a byte in sprung for each)."""

    victim: int = -1
    disaster: Callable[[], None] = _hang
    times: int = 1
    sprung: Path = Path()

    def path(self, index: int) -> str:
        if torch.utils.data.get_worker_info() is not None and index == self.victim and self.num_sprung() < self.times:
            with self.sprung.open("ab") as file:
                file.write(b"!")
            self.disaster()
        return super().path(index)

    def num_sprung(self) -> int:
        return self.sprung.stat().st_size if self.sprung.exists() else 0


def _trap(table: VideoTable, victim: int, disaster: Callable[[], None], folder: Path, times: int = 1) -> Trap:
    columns = {each.name: getattr(table, each.name) for each in fields(VideoTable)}
    return Trap(**columns, victim=victim, disaster=disaster, times=times, sprung=folder / "sprung")


def _make_long(monkeypatch: pytest.MonkeyPatch, is_meant: Callable[[int], bool]) -> None:
    """Let workers at certain videos (-1: at none) seem to be there for ever: no real time is both short and sure."""
    workers = VideoReader.workers

    def changed(self: VideoReader) -> list[tuple[int, int, float]]:
        return [(pid, index, seconds + 1e6 * is_meant(index)) for pid, index, seconds in workers(self)]

    monkeypatch.setattr(VideoReader, "workers", changed)


@pytest.fixture(params=["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
def start_method(request: pytest.FixtureRequest) -> Iterator[None]:
    """How workers start: fork up to Python 3.13, forkserver from 3.14 on."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.usefixtures("start_method")
@pytest.mark.parametrize(
    ("disaster", "times", "words"),
    [
        pytest.param(_run_out_of_memory, 2, "died (SIGKILL, as when memory runs out)", marks=pytest.mark.slow),
        pytest.param(_crash, 2, "died (SIGSEGV)", marks=pytest.mark.slow),
        pytest.param(_hang, 1, "hung for 300 s", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:a loader worker (died|hung)")
def test_a_video_that_kills_twice_or_hangs_a_worker_is_named_and_left_out(
    table: VideoTable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    disaster: Callable[[], None],
    times: int,
    words: str,
) -> None:
    expected = batches_of(table, 8, first_step=1, accumulate=2)
    victim = int(expected[3].indices[1])
    monkeypatch.setattr("videornn.data.loader.POLL_SECONDS", 0.2)
    trap = _trap(table, victim, disaster, tmp_path, times)
    if disaster is _hang:
        _make_long(monkeypatch, lambda index: index == victim and trap.num_sprung() > 0)
    batches = batches_of(trap, 8, num_workers=2, first_step=1, accumulate=2)
    assert [len(batch.labels) for batch in batches] == [2] * 8 and trap.num_sprung() == times
    bad = {video.path: video.reason for batch in batches for video in batch.bad}
    assert bad == {table.path(victim): f"{table.path(victim)}: a loader worker {words} at it"}
    for mine, theirs in zip(batches, expected, strict=True):  # all other samples are what they would have been
        same = theirs.indices != victim
        assert torch.equal(mine.clips[same], theirs.clips[same]) and victim not in mine.indices.tolist()


@pytest.mark.usefixtures("start_method")
def test_a_worker_that_the_system_killed_once_costs_no_video(
    table: VideoTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = batches_of(table, 6)
    trap = _trap(table, int(expected[2].indices[1]), _run_out_of_memory, tmp_path)
    monkeypatch.setattr("videornn.data.loader.POLL_SECONDS", 0.2)
    with pytest.warns(UserWarning, match=r"worker died \(SIGKILL, as when memory runs out\); new workers load again"):
        batches = batches_of(trap, 6, num_workers=2)
    assert trap.num_sprung() == 1 and not any(batch.bad for batch in batches)
    for mine, theirs in zip(batches, expected, strict=True):
        assert torch.equal(mine.clips, theirs.clips) and torch.equal(mine.indices, theirs.indices)


def test_a_worker_that_died_between_two_passes_is_replaced(table: VideoTable) -> None:
    section = SMALL.model_copy(update={"num_workers": 1})
    loader = build_test_loader(section, table, view_spec(section, VIEW), batch_size=10)
    first = list(loader)
    ((pid, _, _),) = loader.dataset.reader.workers()
    os.kill(pid, signal.SIGKILL)
    (worker,) = [child for child in multiprocessing.active_children() if child.pid == pid]
    worker.join()
    second = list(loader)
    assert len(first) == len(second) == 2 and loader.dataset.reader.workers()[0][0] != pid
    for before, after in zip(first, second, strict=True):
        assert torch.equal(before.clips, after.clips) and after.valid.all()


@pytest.mark.filterwarnings("ignore:a loader worker died")
def test_workers_that_die_wherever_they_are_end_a_run_with_a_sentence(
    table: VideoTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videornn.data.loader.MAX_RESTARTS", 1)
    monkeypatch.setattr("videornn.data.loader.POLL_SECONDS", 0.2)
    monkeypatch.setattr("videornn.data.loader._init_worker", _run_out_of_memory)
    with pytest.raises(UserError, match=r"^2 times in a row, a loader worker died \(SIGKILL.*\): DataLoader worker"):
        batches_of(table, 1, num_workers=1)


def _loses(sent: SentBatch, mark: Path) -> tuple:
    """How a worker pickles a batch, the first time without success."""
    if not mark.exists():
        mark.touch()
        raise MemoryError("no room")
    return SentBatch, tuple(getattr(sent, each.name) for each in fields(SentBatch))


@pytest.mark.slow
@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="other workers would not lose it")
def test_a_batch_that_a_worker_lost_is_asked_for_again(
    table: VideoTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = batches_of(table, 3)
    monkeypatch.setattr(SentBatch, "__reduce__", partialmethod(_loses, tmp_path / "mark"))
    monkeypatch.setattr("videornn.data.loader.POLL_SECONDS", 0.2)
    _make_long(monkeypatch, lambda index: index < 0 and (tmp_path / "mark").exists())
    with pytest.warns(UserWarning, match="a loader worker lost a batch; new workers load again"):
        batches = batches_of(table, 3, num_workers=1)
    assert (tmp_path / "mark").exists()
    assert all(torch.equal(mine.clips, theirs.clips) for mine, theirs in zip(batches, expected, strict=True))


@pytest.mark.slow
@pytest.mark.usefixtures("start_method")
def test_no_video_is_blamed_for_a_worker_that_was_asked_to_end(
    table: VideoTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler that preempts a job sends SIGTERM to all of its processes."""
    expected = batches_of(table, 4)
    victim = int(expected[2].indices[1])
    monkeypatch.setattr("videornn.data.loader.POLL_SECONDS", 0.2)
    monkeypatch.setattr("videornn.data.loader.MAX_PREFETCH", 1)
    section = SMALL.model_copy(update={"num_workers": 1})
    trap = _trap(table, victim, _hang, tmp_path)
    loader = build_loader(section, trap, plan=plan_of(len(table), 4), seed=5)
    batches = []
    for batch in itertools.islice(loader, 4):
        if len(batches) == 1:
            while not trap.num_sprung():  # until the worker is at a video
                time.sleep(0.01)
            (worker,) = loader.dataset.reader.workers()
            subprocess.run(["kill", "-TERM", str(worker[0])], check=True)  # from this process it means a usual end
        batches.append(batch)
    assert not any(batch.bad for batch in batches)
    for mine, theirs in zip(batches, expected, strict=True):
        assert torch.equal(mine.clips, theirs.clips)


def _start_by_a_server() -> None:
    multiprocessing.set_start_method("forkserver", force=True)  # what Python 3.14 does by itself


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="what a killed process leaves is read from /proc")
def test_workers_of_a_server_end_with_the_training_that_was_killed(tiny_settings: list[str], tmp_path: Path) -> None:
    settings = [*tiny_settings, "data.num_workers=2", "train.epochs=1000", "data.val=null"]
    command = Command(tmp_path / "log", "train", CONFIG, *settings, "--out", tmp_path / "run", before=_start_by_a_server)
    command.wait_until_it_says("step 1/")
    command.kill(alone=True)
    command.wait_for_all(60)


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
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=1800)
    assert done.returncode == 1
    # what a worker leaves behind when it ends so is told after it
    assert any(line.startswith("videornn.errors.UserError: loader workers end before") for line in done.stderr.splitlines())


def test_an_error_in_a_worker_is_one_sentence(motion_set: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("".join(f"missing_{n}.mp4 0\n" for n in range(20)))
    with pytest.raises(
        UserError,
        match=r"^\d+ of 20 training videos cannot be decoded, more than data.max_bad_share=0.1 allows; one of .*file\.",
    ):
        batches_of(load_videos(str(tmp_path / "list.txt")), 1, num_workers=1)


def test_batches_that_wait_take_bounded_memory() -> None:
    assert [_prefetch(8, size) for size in (int(1e6), int(6e7), int(4.7e8))] == [4, 2, 1]


def test_without_room_for_the_locks_of_workers_videos_are_loaded_here(
    table: VideoTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    expected, before = batches_of(table, 3), multiprocessing.active_children()
    monkeypatch.setattr(multiprocessing, "Lock", refuse)
    with pytest.warns(UserWarning, match=r"locks of loader workers \(no space left on device\)"):
        batches = batches_of(table, 3, num_workers=2)
    assert multiprocessing.active_children() == before
    assert all(torch.equal(mine.clips, theirs.clips) for mine, theirs in zip(batches, expected, strict=True))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_is_flat_over_1500_samples(make_video, tmp_path: Path) -> None:
    lines = [f"{make_video(tmp_path / f'{n}{suffix}', 20)} 0\n" for n in range(4) for suffix in (".mp4", ".avi", ".mkv")]
    (tmp_path / "list.txt").write_text("".join(lines))
    (tmp_path / "bad.mp4").write_text("no video")
    (tmp_path / "list.txt").write_text("".join([*lines, f"{tmp_path}/bad.mp4 0\n"]))
    dataset = build_loader(SMALL, load_videos(str(tmp_path / "list.txt")), plan=plan_of(13, 4), seed=5).dataset
    resident = []
    for number in range(1500):
        assert len(dataset[ClipKey(number, number % 13, 0, 4, 16)]) == 1
        if number % 500 == 499:
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)
    assert max(resident) - resident[0] < 3, resident  # 3 kB a sample: less than one decoded frame


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
