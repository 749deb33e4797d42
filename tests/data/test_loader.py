import itertools
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import SMALL, batches_of, plan_of

from videornn.data.annotations.load import VideoTable, load_videos
from videornn.data.batches import TrainBatches
from videornn.data.dataset import ClipKey, sample_seed
from videornn.data.loader import (
    _prefetch,
    build_loader,
    build_test_loader,
    plain_plan,
    view_spec,
)
from videornn.data.plan import BatchPlan, BatchShape, Phase
from videornn.data.shared_batch import to_device
from videornn.data.video.decoders import read_frames
from videornn.errors import UserError


@pytest.fixture(scope="module")
def table(motion_set: Path) -> VideoTable:
    return load_videos(str(motion_set / "train.txt"))


def test_an_epoch_has_every_video_once_and_epochs_differ() -> None:
    batches = TrainBatches(torch.zeros(10), plan_of(10, 5), seed=0)
    keys = list(itertools.chain.from_iterable(itertools.islice(batches, 4)))
    first, second = keys[:10], keys[10:]
    assert sorted(key.index for key in first) == sorted(key.index for key in second) == list(range(10))
    assert {key.epoch for key in first} == {0} and {key.epoch for key in second} == {1}
    assert [key.index for key in first] != [key.index for key in second]


def test_a_later_start_goes_on_with_the_same_order() -> None:
    whole = list(itertools.islice(TrainBatches(torch.zeros(11), plan_of(11, 3), seed=1), 12))
    for first_step in (1, 3, 7):
        assert (
            list(itertools.islice(TrainBatches(torch.zeros(11), plan_of(11, 3), seed=1, first_step=first_step), 5))
            == whole[first_step:][:5]
        )


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_ranks_share_every_batch_whatever_their_number(num_ranks: int) -> None:
    whole = list(itertools.islice(TrainBatches(torch.zeros(20), plan_of(20, 6), seed=2), 7))
    parts = [
        list(itertools.islice(TrainBatches(torch.zeros(20), plan_of(20, 6), seed=2, rank=r, num_ranks=num_ranks), 7))
        for r in range(num_ranks)
    ]
    assert [list(itertools.chain(*step)) for step in zip(*parts, strict=True)] == whole


def test_impossible_batches_are_refused(table: VideoTable) -> None:
    with pytest.raises(UserError, match=r"64 videos .*larger than the training set of 20 videos; lower train.batch_size$"):
        plain_plan(SMALL, len(table), 1, 64)
    with pytest.raises(UserError, match=r"4 videos cannot be divided equally over ranks x train.accumulate = 3 x 1"):
        build_loader(SMALL, table, plan=plan_of(20, 4), seed=0, num_ranks=3)
    with pytest.raises(UserError, match=r"train.accumulate = 2 x 4"):
        build_loader(SMALL, table, plan=plan_of(20, 4), seed=0, num_ranks=2, accumulate=4)


def test_the_order_of_an_epoch_is_a_permutation_from_its_own_seed() -> None:
    keys = itertools.chain.from_iterable(TrainBatches(torch.zeros(11), plan_of(11, 5), seed=3))
    for epoch, group in itertools.groupby(keys, key=lambda key: key.epoch):
        order = torch.randperm(11, generator=torch.Generator().manual_seed(sample_seed(3, epoch))).tolist()
        assert [key.index for key in group] == order[:10]  # the eleventh is no batch


@pytest.mark.parametrize(("num_ranks", "accumulate"), [(1, 2), (2, 1), (2, 2), (4, 2)])
def test_a_step_has_the_same_clips_however_it_is_divided(num_ranks: int, accumulate: int) -> None:
    shapes = (BatchShape(16, 2, 8), BatchShape(8, 4, 16))
    plan = BatchPlan(50, [Phase(2, shapes), Phase(1, shapes[1:])])  # an epoch: 16 8 16 8, then 8 8 8 8 8 8
    whole = list(TrainBatches(torch.zeros(50), plan, seed=2))
    assert [len(step) for step in whole] == [16, 8, 16, 8] * 2 + [8] * 6
    ranks = [
        TrainBatches(torch.zeros(50), plan, seed=2, rank=rank, num_ranks=num_ranks, accumulate=accumulate)
        for rank in range(num_ranks)
    ]
    steps = [_groups(list(batches), accumulate) for batches in ranks]
    assert [list(itertools.chain(*itertools.chain(*parts))) for parts in zip(*steps, strict=True)] == whole
    for batches in ranks:
        everything = list(batches)
        assert {len({key[3:] for key in batch}) for batch in everything} == {1}  # a batch is a tensor: one shape
        for gone in range(len(everything) + 1):
            assert list(batches.after(gone)) == everything[gone:]
        assert list(batches.from_step(5)) == everything[5 * accumulate :]


def _groups(batches: list, size: int) -> list[list]:
    return [batches[start : start + size] for start in range(0, len(batches), size)]


def test_the_loader_cuts_the_shapes_that_the_plan_asks_for(table: VideoTable, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = BatchPlan(20, [Phase(1, (BatchShape(8, 2, 8), BatchShape(4, 4, 16)))])  # 8 4 8
    sizes = []
    monkeypatch.setattr(
        "videornn.data.loader._prefetch",
        lambda workers, size: sizes.append(size) or _prefetch(workers, size),
    )
    plain = batches_of(table, 5)
    for num_workers in (0, 2):
        section = SMALL.model_copy(update={"num_workers": num_workers})
        batches = list(build_loader(section, table, plan=plan, seed=5, accumulate=2))
        assert [tuple(batch.clips.shape) for batch in batches] == [
            *[(4, 3, 2, 8, 8)] * 2,
            *[(2, 3, 4, 16, 16)] * 2,
            *[(4, 3, 2, 8, 8)] * 2,
        ]
        assert torch.cat([batch.indices for batch in batches]).tolist() == torch.cat([b.indices for b in plain]).tolist()
        # clips of the shape of the config are the very ones of a run without other shapes: places 8 to 12 of the epoch
        assert torch.equal(torch.cat([batch.clips for batch in batches[2:4]]), plain[2].clips)
    assert sizes[1:] == [2 * 3 * 4 * 16 * 16] * 2  # the largest batch, not the one of most clips


def test_clips_of_fewer_frames_have_any_stride_anywhere(table: VideoTable, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    video = SimpleNamespace(num_frames=300, fps=Fraction(30), on_screen=lambda indices: indices)

    def read(path: str, choose, cuts, **options) -> torch.Tensor:
        chosen.append(choose(video)[0])
        return torch.stack([cuts[0](torch.zeros(24, 24, 3, dtype=torch.uint8)) for _ in chosen[-1]])[None]

    monkeypatch.setattr("videornn.data.dataset.read_frames", read)
    dataset = build_loader(SMALL, table, plan=plan_of(20, 4), seed=5).dataset
    for draw in range(400):
        (sample,) = dataset[ClipKey(0, 3, draw, 1 + draw % 2, 8)]
        assert sample.clips.shape == (3, 1 + draw % 2, 8, 8)
    first, last = torch.stack(chosen[1::2]).T
    strides, places = last - first, first / (300 - 2 * (last - first))
    assert strides.unique().tolist() == [2, 3, 4]  # two frames, twice as far apart as four at a stride of 2
    # five standard deviations of what 200 unrelated pairs have
    assert torch.corrcoef(torch.stack([strides.double(), places.double()]))[0, 1].abs() < 5 / 200**0.5
    spread = places.quantile(torch.tensor([0.1, 0.9]))
    assert spread[0] < 0.2 and spread[1] > 0.8


@pytest.mark.parametrize("num_workers", [1, 4])
def test_samples_do_not_depend_on_workers_or_on_where_the_loader_starts(table: VideoTable, num_workers: int) -> None:
    plain, other = batches_of(table, 8), batches_of(table, 8, num_workers=num_workers)
    late = batches_of(table, 3, first_step=5)
    for mine, theirs in [*zip(plain, other, strict=True), *zip(plain[5:], late, strict=True)]:
        assert torch.equal(mine.clips, theirs.clips) and torch.equal(mine.labels, theirs.labels)
    assert plain[0].clips.shape == (4, 3, 4, 16, 16) and plain[0].clips.dtype == torch.uint8


def test_another_epoch_gives_another_clip_of_the_same_video(table: VideoTable) -> None:
    dataset = build_loader(SMALL, table, plan=plan_of(20, 4), seed=5).dataset
    first, second = ClipKey(0, 3, 0, 4, 16), ClipKey(1, 3, 0, 4, 16)
    assert not torch.equal(dataset[first][0].clips, dataset[second][0].clips)
    assert torch.equal(dataset[second][0].clips, dataset[second][0].clips)


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
    ranks = [batches_of(table, 10, num_workers=num_workers, rank=rank, num_ranks=2) for rank in (0, 1)]
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


def test_clips_of_a_video_come_from_one_opening_and_differ(table: VideoTable, monkeypatch: pytest.MonkeyPatch) -> None:
    section = SMALL.model_copy(update={"clips_per_video": 2})
    opened = []
    monkeypatch.setattr(
        "videornn.data.dataset.read_frames", lambda path, *a, **k: opened.append(path) or read_frames(path, *a, **k)
    )
    batch = next(iter(build_loader(section, table, plan=plain_plan(section, len(table), 1, 8), seed=5)))
    assert batch.clips.shape[0] == 8 and len(opened) == 4 and batch.indices[::2].tolist() == batch.indices[1::2].tolist()
    assert not torch.equal(batch.clips[0], batch.clips[1])
    assert torch.equal(batch.clips[::2], batches_of(table, 1)[0].clips)  # the first of each is the one there is without
    with pytest.raises(UserError, match="batch_size=9 clips cannot be cut"):
        plain_plan(section, len(table), 1, 9)


@pytest.mark.parametrize(("class_sampling", "power"), [("natural", 1.0), ("sqrt", 0.5), ("balanced", 0.0)])
def test_class_sampling_draws_classes_as_often_as_it_says(class_sampling: str, power: float) -> None:
    sizes = torch.tensor([16, 144, 1440])
    labels = torch.arange(3).repeat_interleave(sizes)
    batches = TrainBatches(labels, plan_of(1600, 100), seed=3, class_sampling=class_sampling)
    keys = list(itertools.chain.from_iterable(itertools.islice(batches, 160)))  # ten epochs
    assert len(set(keys)) == len(keys)  # a video drawn twice in an epoch gives two clips
    share = torch.bincount(labels[torch.tensor([key.index for key in keys])]).double() / len(keys)
    expected = sizes.double() ** power / (sizes.double() ** power).sum()
    # five standard deviations of a share of 16,000 draws
    assert (share - expected).abs().max() < 5 * (0.25 / 16000) ** 0.5
    assert list(itertools.islice(batches.from_step(7), 3)) == list(itertools.islice(batches.from_step(0), 10))[7:]


def test_seeds_do_not_share_their_orders() -> None:
    orders = {
        tuple(key.index for key in batch)
        for seed in range(5)
        for batch in itertools.islice(TrainBatches(torch.zeros(30), plan_of(30, 30), seed=seed), 5)
    }
    assert len(orders) == 25


def test_test_views_keep_the_shape_of_the_picture_unless_told_to_squeeze() -> None:
    from videornn.config import EvalConfig

    assert not view_spec(SMALL, EvalConfig()).squeeze
    assert view_spec(SMALL.model_copy(update={"aspect": "squeeze"}), EvalConfig()).squeeze


def test_in_evaluation_a_broken_video_is_marked_and_never_replaced(motion_set: Path, tmp_path: Path) -> None:
    from videornn.config import EvalConfig

    table = _list_with_a_bad_video(motion_set, tmp_path)
    test = EvalConfig(num_clips=2, num_crops=3, short_side=16, crop_size=16)
    seen = []
    for rank in range(3):
        loader = build_test_loader(SMALL, table, view_spec(SMALL, test), batch_size=4, rank=rank, num_ranks=3)
        for batch in loader:
            assert batch.clips.shape[1:] == (6, 3, 4, 16, 16)
            seen += list(zip(batch.indices.tolist(), batch.valid.tolist(), strict=True))
    assert sorted(seen) == [(index, index != 3) for index in range(len(table))]
