import itertools
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from videornn.config import DataConfig
from videornn.data.annotations import VideoTable, load_videos
from videornn.data.batches import TrainBatches
from videornn.data.decoding import read_frames
from videornn.data.loader import (
    Batch,
    _fit_shared_memory,
    build_loader,
    build_test_loader,
    to_device,
    view_spec,
)
from videornn.errors import UserError

SMALL = DataConfig(num_frames=4, temporal_stride=2, crop_size=16, short_side=(16, 24), num_workers=0)


def _batches(table: VideoTable, count: int, **arguments: int) -> list[Batch]:
    workers = arguments.pop("num_workers", 0)
    section = SMALL.model_copy(update={"num_workers": workers})
    return list(itertools.islice(build_loader(section, table, batch_size=4, seed=5, **arguments), count))


@pytest.fixture(scope="module")
def table(motion_set: Path) -> VideoTable:
    return load_videos(str(motion_set / "train.txt"))


def test_an_epoch_has_every_video_once_and_epochs_differ() -> None:
    batches = TrainBatches(torch.zeros(10), 5, seed=0)
    keys = list(itertools.chain.from_iterable(itertools.islice(batches, 4)))
    first, second = keys[:10], keys[10:]
    assert sorted(index for _, index, _ in first) == sorted(index for _, index, _ in second) == list(range(10))
    assert {epoch for epoch, _, _ in first} == {0} and {epoch for epoch, _, _ in second} == {1}
    assert [index for _, index, _ in first] != [index for _, index, _ in second]


def test_a_later_start_goes_on_with_the_same_order() -> None:
    whole = list(itertools.islice(TrainBatches(torch.zeros(11), 3, seed=1), 12))
    for first_step in (1, 3, 7):
        assert (
            list(itertools.islice(TrainBatches(torch.zeros(11), 3, seed=1, first_step=first_step), 5))
            == whole[first_step:][:5]
        )


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_ranks_share_every_batch_whatever_their_number(num_ranks: int) -> None:
    whole = list(itertools.islice(TrainBatches(torch.zeros(20), 6, seed=2), 7))
    parts = [
        list(itertools.islice(TrainBatches(torch.zeros(20), 6, seed=2, rank=r, num_ranks=num_ranks), 7))
        for r in range(num_ranks)
    ]
    assert [list(itertools.chain(*step)) for step in zip(*parts, strict=True)] == whole


def test_impossible_batches_are_refused(table: VideoTable) -> None:
    with pytest.raises(UserError, match=r"train.batch_size=64: .*larger than the training set of 20 videos"):
        build_loader(SMALL, table, batch_size=64, seed=0)
    with pytest.raises(UserError, match="cannot be divided equally over 3 ranks"):
        build_loader(SMALL, table, batch_size=4, seed=0, num_ranks=3)


@pytest.mark.parametrize("num_workers", [1, 4])
def test_samples_do_not_depend_on_workers_or_on_where_the_loader_starts(table: VideoTable, num_workers: int) -> None:
    plain, other = _batches(table, 8), _batches(table, 8, num_workers=num_workers)
    late = _batches(table, 3, first_step=5)
    for mine, theirs in [*zip(plain, other, strict=True), *zip(plain[5:], late, strict=True)]:
        assert torch.equal(mine.clips, theirs.clips) and torch.equal(mine.labels, theirs.labels)
    assert plain[0].clips.shape == (4, 3, 4, 16, 16) and plain[0].clips.dtype == torch.uint8


def test_another_epoch_gives_another_clip_of_the_same_video(table: VideoTable) -> None:
    dataset = build_loader(SMALL, table, batch_size=4, seed=5).dataset
    assert not torch.equal(dataset[(0, 3, 0)][0].clips, dataset[(1, 3, 0)][0].clips)
    assert torch.equal(dataset[(1, 3, 0)][0].clips, dataset[(1, 3, 0)][0].clips)


def _list_with_a_bad_video(motion_set: Path, folder: Path) -> VideoTable:
    lines = [f"{motion_set}/{line}" for line in (motion_set / "train.txt").read_text().splitlines()[:16]]
    (folder / "bad.mp4").write_text("no video")
    lines[3] = f"{folder}/bad.mp4 1"
    (folder / "list.txt").write_text("\n".join(lines))
    return load_videos(str(folder / "list.txt"))


@pytest.mark.parametrize("num_workers", [0, 2, 3])
def test_a_broken_video_is_replaced_named_and_changes_no_batch_count(
    motion_set: Path, tmp_path: Path, num_workers: int
) -> None:
    table = _list_with_a_bad_video(motion_set, tmp_path)
    ranks = [_batches(table, 10, num_workers=num_workers, rank=rank, num_ranks=2) for rank in (0, 1)]
    assert [[len(batch.labels) for batch in batches] for batches in ranks] == [[2] * 10] * 2
    bad = [video for batches in ranks for batch in batches for video in batch.bad]
    assert {video.path for video in bad} == {f"{tmp_path}/bad.mp4"} and "cannot be decoded" in bad[0].reason
    for batches in ranks:
        for batch in batches:  # the stand-in brings its own label
            assert [int(table.labels[index]) for index in batch.indices] == batch.labels.tolist()


def test_batches_are_copied_one_ahead_on_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for CUDA's streams: what is ordered before what, as no GPU is needed to tell."""
    told: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            told.append(f"on {self.name}")

        def __exit__(self, *exception: object) -> None:
            told.append(f"off {self.name}")

        def record_event(self) -> int:
            told.append(f"event of {self.name}")
            return told.count(f"event of {self.name}") - 1

        def wait_event(self, number: int) -> None:
            told.append(f"{self.name} waits for {number}")

    class Rows:
        def record_stream(self, stream: Stream) -> None:
            told.append(f"kept for {stream.name}")

    class Item:
        clips = labels = Rows()

        def __init__(self, number: int) -> None:
            self.number = number

        def to(self, device: object) -> "Item":
            told.append(f"copy {self.number}")
            return self

    monkeypatch.setattr("torch.cuda.Stream", lambda device: Stream("copies"))
    monkeypatch.setattr("torch.cuda.stream", lambda stream: stream)
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: Stream("steps"))
    for item in to_device([Item(0), Item(1)], SimpleNamespace(type="cuda")):
        told.append(f"step {item.number}")
    copies = [["on copies", f"copy {number}", "event of copies", "off copies"] for number in range(2)]
    steps = [[f"steps waits for {n}", "kept for steps", "kept for steps", f"step {n}"] for n in range(2)]
    assert told == [*copies[0], *copies[1], *steps[0], *steps[1]]


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang() -> None:
    time.sleep(600)


@pytest.mark.parametrize("disaster", [_kill_this_process, pytest.param(_hang, marks=pytest.mark.slow)])
def test_a_video_that_kills_or_hangs_a_worker_is_named_and_left_out(
    table: VideoTable, monkeypatch: pytest.MonkeyPatch, disaster
) -> None:
    expected = _batches(table, 8)
    victim = int(expected[2].indices[1])

    def read(path: str, *arguments, **options):
        if path == table.path(victim):
            disaster()
        return read_frames(path, *arguments, **options)

    monkeypatch.setattr("videornn.data.dataset.read_frames", read)
    monkeypatch.setattr("videornn.data.loader.POLL_SECONDS", 1.0)
    monkeypatch.setattr("videornn.data.loader.HANG_TIMEOUTS", 0.05)  # of the 60 s that a video may take
    batches = _batches(table, 8, num_workers=2)
    assert [len(batch.labels) for batch in batches] == [4] * 8
    bad = {video.path: video.reason for batch in batches for video in batch.bad}
    assert list(bad) == [table.path(victim)]
    assert "a loader worker" in bad[table.path(victim)] and ("died" in str(bad) or "hung for 3 s" in str(bad))
    for mine, theirs in zip(batches, expected, strict=True):  # all other samples are what they would have been
        same = theirs.indices != victim
        assert torch.equal(mine.clips[same], theirs.clips[same]) and victim not in mine.indices.tolist()


def test_an_error_in_a_worker_is_one_sentence(motion_set: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("".join(f"missing_{n}.mp4 0\n" for n in range(20)))
    with pytest.raises(
        UserError, match=r"^10 videos in a row cannot be decoded; the last: .*missing_\d+.mp4: no such file$"
    ):
        _batches(load_videos(str(tmp_path / "list.txt")), 1, num_workers=1)


def test_clips_of_a_video_come_from_one_opening_and_differ(table: VideoTable, monkeypatch: pytest.MonkeyPatch) -> None:
    section = SMALL.model_copy(update={"clips_per_video": 2})
    opened = []
    monkeypatch.setattr(
        "videornn.data.dataset.read_frames", lambda path, *a, **k: opened.append(path) or read_frames(path, *a, **k)
    )
    batch = next(iter(build_loader(section, table, batch_size=8, seed=5)))
    assert batch.clips.shape[0] == 8 and len(opened) == 4 and batch.indices[::2].tolist() == batch.indices[1::2].tolist()
    assert not torch.equal(batch.clips[0], batch.clips[1])
    assert torch.equal(batch.clips[::2], _batches(table, 1)[0].clips)  # the first of each is the one there is without
    with pytest.raises(UserError, match="batch_size=9 clips cannot be cut"):
        build_loader(section, table, batch_size=9, seed=5)


@pytest.mark.parametrize(("class_sampling", "power"), [("natural", 1.0), ("sqrt", 0.5), ("balanced", 0.0)])
def test_class_sampling_draws_classes_as_often_as_it_says(class_sampling: str, power: float) -> None:
    sizes = torch.tensor([16, 144, 1440])
    labels = torch.arange(3).repeat_interleave(sizes)
    batches = TrainBatches(labels, 100, seed=3, class_sampling=class_sampling)
    keys = list(itertools.chain.from_iterable(itertools.islice(batches, 160)))  # ten epochs
    assert len(set(keys)) == len(keys)  # a video drawn twice in an epoch gives two clips
    share = torch.bincount(labels[torch.tensor([index for _, index, _ in keys])]).double() / len(keys)
    expected = sizes.double() ** power / (sizes.double() ** power).sum()
    # five standard deviations of a share of 16,000 draws
    assert (share - expected).abs().max() < 5 * (0.25 / 16000) ** 0.5
    assert list(itertools.islice(batches.from_step(7), 3)) == list(itertools.islice(batches.from_step(0), 10))[7:]


def test_seeds_do_not_share_their_orders() -> None:
    orders = {
        tuple(index for _, index, _ in batch)
        for seed in range(5)
        for batch in itertools.islice(TrainBatches(torch.zeros(30), 30, seed=seed), 5)
    }
    assert len(orders) == 25


def test_workers_are_cut_down_to_the_shared_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.isdir", lambda path: True)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=64_000_000))  # what Docker gives
    with pytest.warns(UserWarning, match="room for 3 batches of 10 MB: 3 loader workers instead of 8"):
        assert _fit_shared_memory(8, int(1e7)) == (3, 1)
    assert _fit_shared_memory(2, int(5e6)) == (2, 3)
    assert _fit_shared_memory(0, int(1e7)) == (0, None)


def test_test_views_keep_the_shape_of_the_picture_unless_told_to_squeeze() -> None:
    from videornn.config import TestConfig

    assert not view_spec(SMALL, TestConfig()).squeeze
    assert view_spec(SMALL.model_copy(update={"aspect": "squeeze"}), TestConfig()).squeeze


def test_in_evaluation_a_broken_video_is_marked_and_never_replaced(motion_set: Path, tmp_path: Path) -> None:
    from videornn.config import TestConfig

    table = _list_with_a_bad_video(motion_set, tmp_path)
    test = TestConfig(num_clips=2, num_crops=3, short_side=16, crop_size=16)
    seen = []
    for rank in range(3):
        loader = build_test_loader(SMALL, table, view_spec(SMALL, test), batch_size=4, rank=rank, num_ranks=3)
        for batch in loader:
            assert batch.clips.shape[1:] == (6, 3, 4, 16, 16)
            seen += list(zip(batch.indices.tolist(), batch.valid.tolist(), strict=True))
    assert sorted(seen) == [(index, index != 3) for index in range(len(table))]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_is_flat_over_20000_samples(make_video, tmp_path: Path) -> None:
    lines = [f"{make_video(tmp_path / f'{n}{suffix}', 20)} 0\n" for n in range(4) for suffix in (".mp4", ".avi", ".mkv")]
    (tmp_path / "list.txt").write_text("".join(lines))
    (tmp_path / "bad.mp4").write_text("no video")
    (tmp_path / "list.txt").write_text("".join([*lines, f"{tmp_path}/bad.mp4 0\n"]))
    dataset = build_loader(SMALL, load_videos(str(tmp_path / "list.txt")), batch_size=4, seed=5).dataset
    resident = []
    for number in range(20000):
        assert len(dataset[(number, number % 13, 0)]) == 1
        if number % 4000 == 3999:
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)
    assert max(resident) - resident[0] < 20, resident
