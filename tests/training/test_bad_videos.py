"""Videos that cannot be read: what stands in for them in training, and when they are too many."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch
from helpers import SMALL, batches_of, plan_of

from videornn import config
from videornn.data.annotations.load import VideoTable, load_videos
from videornn.data.dataset import BadVideo, ClipKey, TooManyBad, load_views
from videornn.data.loader import build_loader, build_test_loader, view_spec
from videornn.distributed import ranks
from videornn.errors import DecodeError
from videornn.training.bad_share import BadShare


def _table(motion_set: Path, folder: Path, missing: range) -> VideoTable:
    """The 20 training videos sorted by class, some of which are not there, such as all of a folder."""
    lines = [f"{motion_set}/{line}" for line in sorted((motion_set / "train.txt").read_text().splitlines())]
    for index in missing:
        lines[index] = f"{folder}/gone/{index}.mp4 {lines[index].split()[-1]}"
    (folder / "list.txt").write_text("\n".join(lines))
    return load_videos(str(folder / "list.txt"))


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaders of helpers that allow all but the last video to be bad."""
    monkeypatch.setattr("helpers.SMALL", SMALL.model_copy(update={"max_bad_share": 0.95}))


@pytest.mark.usefixtures("lenient")
def test_stand_ins_are_drawn_of_the_whole_table_by_the_key_alone(motion_set: Path, tmp_path: Path) -> None:
    table = _table(motion_set, tmp_path, range(4, 16))  # 12 in a row
    plain = batches_of(table, 20)  # four epochs
    for mine, theirs in [
        *zip(batches_of(table, 20, num_workers=2), plain, strict=True),
        *zip(batches_of(table, 9, first_step=11), plain[11:], strict=True),
    ]:
        assert torch.equal(mine.clips, theirs.clips) and torch.equal(mine.indices, theirs.indices)
    assert all(batch.valid.all() and len(batch.labels) == 4 for batch in plain)
    indices = torch.cat([batch.indices for batch in plain])
    assert torch.equal(torch.from_numpy(table.labels)[indices].long(), torch.cat([batch.labels for batch in plain]))
    counts = indices.bincount(minlength=20)
    # eight sound videos share 48 places of bad ones: each has four of its own, and six more on average, not 48 of one
    assert counts[4:16].sum() == 0 and counts.sum() == 80 and counts.max() <= 20
    assert {video.path for batch in plain for video in batch.bad} == {table.path(index) for index in range(4, 16)}


@pytest.mark.usefixtures("lenient")
def test_a_stand_in_has_another_clip_than_in_its_own_place(motion_set: Path, tmp_path: Path) -> None:
    (sound,) = sound_ones = range(19, 20)
    table = _table(motion_set, tmp_path, range(sound))
    section = SMALL.model_copy(update={"max_bad_share": 1.0})
    dataset = build_loader(section, table, plan=plan_of(20, 4), seed=5).dataset
    (own,), (other,) = dataset[ClipKey(0, sound, 0, 4, 16)], dataset[ClipKey(0, 3, 0, 4, 16)]
    assert own.index == other.index in sound_ones and own.label == other.label
    assert not torch.equal(own.clips, other.clips) and own.bad == () and len(other.bad) >= 1


@pytest.mark.parametrize(("share", "num_bad"), [(0.0, 3), (0.1, 3), (0.5, 11), (1.0, 20)])
def test_a_search_ends_when_it_has_passed_the_share_and_met_many(
    motion_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, num_bad: int
) -> None:
    table = _table(motion_set, tmp_path, range(20))
    monkeypatch.setattr("videornn.data.dataset.MAX_SEARCHED", 2)
    section = SMALL.model_copy(update={"max_bad_share": share})
    with pytest.raises(
        TooManyBad, match=rf"^{num_bad} of 20 training videos cannot be decoded, .*: no such file\..*data\.max_bad_share$"
    ) as caught:
        next(iter(build_loader(section, table, plan=plan_of(20, 1), seed=5)))
    assert len({video.path for video in caught.value.bad}) == num_bad


def test_a_third_of_missing_videos_costs_as_many_looks_as_it_must(
    motion_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole folder of a list in the order of its folders, where the next sound video was 1000 rows away."""
    lines = [f"{'gone' if 900 <= n < 1900 else 'there'}/{n}.mp4 0\n" for n in range(3000)]
    (tmp_path / "list.txt").write_text("".join(lines))
    section = SMALL.model_copy(update={"max_bad_share": 0.5})
    dataset = build_loader(section, load_videos(str(tmp_path / "list.txt")), plan=plan_of(3000, 4), seed=5).dataset
    looks = []

    def clips(index: int, *others: object) -> list[tuple[torch.Tensor, int]]:
        looks.append(index)
        if 900 <= index < 1900:
            raise DecodeError(f"{index}: no such file")
        return [(torch.zeros(3, 4, 16, 16, dtype=torch.uint8), 0)]

    monkeypatch.setattr(dataset, "_clips", clips)
    chosen = torch.tensor([dataset[ClipKey(0, index, 0, 4, 16)][0].index for index in range(3000)])
    assert len(looks) < 1.55 * 3000  # 1.5 is what looking at any video until one is sound takes
    # 1000 stand-ins of 2000 sound videos: none is taken more often than chance has it
    assert chosen.bincount(minlength=3000).max() <= 1 + 7


def test_a_video_that_fails_slowly_is_not_tried_again(
    motion_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = _table(motion_set, tmp_path, range(0))
    dataset = build_loader(SMALL, table, plan=plan_of(20, 4), seed=5).dataset
    clock, make, tries = [0.0], dataset._clips, []

    def clips(index: int, *others: object) -> list[tuple[torch.Tensor, int]]:
        if index in (3, 7, 9):
            tries.append(index)
            clock[0] += 0.1 if index == 3 else 60.0
            raise DecodeError(f"{table.path(index)}: why") from (MemoryError() if index == 9 else None)
        return make(index, *others)

    monkeypatch.setattr("videornn.data.dataset.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(dataset, "_clips", clips)
    for index in (3, 7, 9):  # for the last there may be memory another time
        first, second = dataset[ClipKey(0, index, 0, 4, 16)], dataset[ClipKey(0, index, 0, 4, 16)]
        assert first[0].bad == second[0].bad and torch.equal(first[0].clips, second[0].clips)
    assert [tries.count(index) for index in (3, 7, 9)] == [2, 1, 2]


def test_all_ranks_end_when_their_bad_videos_together_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks, by turns in one process."""
    bad = [{}, {}]
    known = {name: BadVideo(name, f"{name}: is empty") for name in "abcdef"}
    both = [BadShare(mine, tmp_path / f"{rank}.csv", 40, 0.1) for rank, mine in enumerate(bad)]
    monkeypatch.setattr(ranks, "num_ranks", lambda: 2)
    monkeypatch.setattr(ranks, "gather_objects", lambda value: [dict(mine) for mine in bad])

    def step(*met: str) -> list[object]:
        """What each rank ends with, None if it goes on, or "not asked"."""
        for mine, name in zip(bad, met, strict=True):
            mine |= {name: known[name]} if name else {}
        largest = max(rank.num_new for rank in both)
        return [rank.exchange() if rank.may_be_passed(largest) else "not asked" for rank in both]

    assert step("b", "c") == step("a", "") == ["not asked"] * 2
    assert step("d", "b") == [None, None]  # one has met three, but together they have met four, which is a tenth of 40
    assert sorted(bad[0]) == sorted(bad[1]) == list("abcd") and (tmp_path / "0.csv").read_text().count("is empty") == 4
    assert step("", "a") == ["not asked"] * 2
    ends = step("", "e")
    assert [str(end).partition(",")[0] for end in ends] == ["5 of 40 training videos cannot be decoded"] * 2
    assert str(ends[0]) == str(ends[1])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_back_end_that_reads_nothing_is_told_once_with_a_count(
    motion_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    (tmp_path / "torchcodec.py").write_text("raise OSError('no reason')\n")  # which workers find that are no forks, too
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("videornn.data.loader.choose_decoder", lambda decoder: (decoder, "as asked for"))
    section = SMALL.model_copy(update={"decoder": "torchcodec", "num_workers": num_workers})
    table = _table(motion_set, tmp_path, range(2))
    said = r"PyAV reads what data\.decoder=torchcodec does not: .*mp4: torchcodec cannot be loaded \(no reason\)$"
    views = view_spec(section, config.EvalConfig(num_clips=1, num_crops=1, short_side=16, crop_size=16))
    loader = build_test_loader(section, table, views, batch_size=4)
    with pytest.warns(UserWarning, match=rf"^18 of 20 videos: {said}"):
        batches = iter(loader)
        assert sum(int(next(batches).valid.sum()) for _ in range(5)) == 18
        del batches  # which nobody has asked for its end
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(loader)
    monkeypatch.setattr("videornn.data.loader.MANY_READ", 6)
    with pytest.warns(UserWarning, match=rf"^8 of the first 8 videos: {said}"):
        batches = iter(build_loader(section.model_copy(update={"max_bad_share": 0.5}), table, plan=plan_of(20, 4), seed=5))
        next(batches), next(batches), next(batches)
    with pytest.warns(UserWarning, match=rf"^{said}"):
        load_views(table.path(5), views, decoder="torchcodec")
