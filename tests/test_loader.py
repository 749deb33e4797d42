import itertools
from pathlib import Path

import pytest
import torch

from videornn.config import DataConfig
from videornn.data.annotations import VideoTable, load_videos
from videornn.data.loader import Batch, TrainBatches, build_loader, build_test_loader, view_spec
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
    batches = TrainBatches(10, 5, seed=0)
    keys = list(itertools.chain.from_iterable(itertools.islice(batches, 4)))
    first, second = keys[:10], keys[10:]
    assert sorted(index for _, index in first) == sorted(index for _, index in second) == list(range(10))
    assert {epoch for epoch, _ in first} == {0} and {epoch for epoch, _ in second} == {1}
    assert [index for _, index in first] != [index for _, index in second]


def test_a_later_start_goes_on_with_the_same_order() -> None:
    whole = list(itertools.islice(TrainBatches(11, 3, seed=1), 12))
    for first_step in (1, 3, 7):
        assert list(itertools.islice(TrainBatches(11, 3, seed=1, first_step=first_step), 5)) == whole[first_step:][:5]


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_ranks_share_every_batch_whatever_their_number(num_ranks: int) -> None:
    whole = list(itertools.islice(TrainBatches(20, 6, seed=2), 7))
    parts = [list(itertools.islice(TrainBatches(20, 6, seed=2, rank=r, num_ranks=num_ranks), 7)) for r in range(num_ranks)]
    assert [list(itertools.chain(*step)) for step in zip(*parts, strict=True)] == whole


def test_impossible_batches_are_refused(table: VideoTable) -> None:
    with pytest.raises(UserError, match=r"train.batch_size=64: .*larger than the training set of 20 videos"):
        build_loader(SMALL, table, batch_size=64, seed=0)
    with pytest.raises(UserError, match="cannot be divided equally over 3 ranks"):
        build_loader(SMALL, table, batch_size=4, seed=0, num_ranks=3)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_samples_do_not_depend_on_workers_or_on_where_the_loader_starts(table: VideoTable, num_workers: int) -> None:
    plain, other = _batches(table, 8), _batches(table, 8, num_workers=num_workers)
    late = _batches(table, 3, first_step=5)
    for mine, theirs in [*zip(plain, other, strict=True), *zip(plain[5:], late, strict=True)]:
        assert torch.equal(mine.clips, theirs.clips) and torch.equal(mine.labels, theirs.labels)
    assert plain[0].clips.shape == (4, 3, 4, 16, 16) and plain[0].clips.dtype == torch.uint8


def test_another_epoch_gives_another_clip_of_the_same_video(table: VideoTable) -> None:
    dataset = build_loader(SMALL, table, batch_size=4, seed=5).dataset
    assert not torch.equal(dataset[(0, 3)].clips, dataset[(1, 3)].clips)
    assert torch.equal(dataset[(1, 3)].clips, dataset[(1, 3)].clips)


def _list_with_a_bad_video(motion_set: Path, folder: Path) -> VideoTable:
    lines = [f"{motion_set}/{line}" for line in (motion_set / "train.txt").read_text().splitlines()]
    (folder / "bad.mp4").write_text("no video")
    lines[3] = f"{folder}/bad.mp4 1"
    (folder / "list.txt").write_text("\n".join(lines))
    return load_videos(str(folder / "list.txt"))


@pytest.mark.parametrize("num_workers", [0, 3])
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


def test_in_evaluation_a_broken_video_is_marked_and_never_replaced(motion_set: Path, tmp_path: Path) -> None:
    from videornn.config import TestConfig

    table = _list_with_a_bad_video(motion_set, tmp_path)
    test = TestConfig(num_clips=2, num_crops=3, short_side=16, crop_size=16)
    seen = []
    for rank in range(3):
        loader = build_test_loader(table, view_spec(SMALL, test), batch_size=4, num_workers=0, rank=rank, num_ranks=3)
        for batch in loader:
            assert batch.clips.shape[1:] == (6, 3, 4, 16, 16)
            seen += list(zip(batch.indices.tolist(), batch.valid.tolist(), strict=True))
    assert sorted(seen) == [(index, index != 3) for index in range(len(table))]
