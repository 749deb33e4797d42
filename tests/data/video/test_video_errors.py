"""Whatever reading one video raises is that video's row, wherever videos are read; faults of ours are raised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL, plan_of

from videornn import config
from videornn.data.annotations.load import VideoTable, load_videos
from videornn.data.dataset import ClipKey, load_views
from videornn.data.loader import build_loader, build_test_loader, view_spec
from videornn.data.prepare.prepare import prepare_videos
from videornn.data.prepare.reencode import Encoding
from videornn.data.prepare.verify import inspect_video
from videornn.data.transforms import TrainTransform
from videornn.data.video.decoders import open_video, read_frames
from videornn.data.video.errors import errors_of_video
from videornn.data.video.pyav import PyAVVideo
from videornn.errors import DecodeError, UserError
from videornn.explain.job import load_clip
from videornn.inference.predictor import load_predictor
from videornn.inference.sliding import plan_windows, read_clips

VIEWS = view_spec(SMALL, config.EvalConfig(num_clips=2, num_crops=1, crop_size=16, short_side=16))
FAULTS = {
    "ZeroDivisionError: division by zero": lambda: 1 / 0,
    "OverflowError: Python": lambda: np.zeros(1, np.int64).fill(2**70),
    "AttributeError: 'NoneType'": lambda: None.planes,
    "do not fit into memory (Unable to allocate": lambda: np.empty(2**60, np.uint8),
    "can't allocate memory": lambda: torch.empty(2**60, dtype=torch.uint8),
}


@pytest.fixture(params=FAULTS)
def fault(request: pytest.FixtureRequest) -> str:
    return request.param


def _raising(fault: Callable[[], object], *arguments: object, **options: object) -> None:
    fault()


@pytest.fixture
def odd(motion_set: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> tuple[VideoTable, int]:
    """A table and the index of a video on which the decoder raises the fault."""
    table = load_videos(str(motion_set / "train.txt"))
    decode = PyAVVideo._decode

    def decode_or_raise(self: PyAVVideo, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        return FAULTS[fault]() if self.path == table.path(7) else decode(self, indices)

    monkeypatch.setattr(PyAVVideo, "_decode", decode_or_raise)
    return table, 7


def test_a_loader_has_a_row_for_a_video_that_raises_anything(odd: tuple[VideoTable, int], fault: str) -> None:
    table, index = odd
    (sample,) = build_loader(SMALL, table, plan=plan_of(20, 4), seed=0).dataset[ClipKey(0, index, 0, 4, 16)]
    assert sample.index != index and [bad.path for bad in sample.bad] == [table.path(index)]
    assert sample.bad[0].reason.startswith(f"{table.path(index)}: ") and fault in sample.bad[0].reason
    (batch,) = build_test_loader(SMALL, table, VIEWS, batch_size=3, indices=[index - 1, index, index + 1])
    assert batch.valid.tolist() == [True, False, True] and fault in batch.bad[0].reason


def test_other_readers_say_a_sentence_for_a_video_that_raises_anything(
    odd: tuple[VideoTable, int], fault: str, tiny_run: Path
) -> None:
    table, index = odd
    path = table.path(index)
    predictor = load_predictor(tiny_run / "checkpoints/last.pt", overrides=["data.num_workers=0"])
    for read in (partial(load_views, path, VIEWS), partial(predictor, path), partial(load_clip, predictor.trained, path)):
        with pytest.raises(DecodeError) as caught:
            read()
        assert fault in str(caught.value) and str(caught.value).count(path) == 1
    first, second = predictor.predict_many([path, table.path(0)])
    assert first.scores is None and fault in first.error and second.scores is not None
    report = inspect_video(path)
    assert report.status == "undecodable" and fault in report.reason and path not in report.reason


def test_windows_and_prepared_videos_have_a_row_for_a_video_that_raises_anything(
    motion_set: Path, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = next((motion_set / "videos/train").rglob("*.mp4"))
    (tmp_path / "list.txt").write_text(f"{video} 0\n")
    monkeypatch.setattr("videornn.data.video.stream.to_picture", partial(_raising, FAULTS[fault]))
    with pytest.raises(DecodeError) as caught:
        list(read_clips(str(video), partial(plan_windows, VIEWS, 1.0, None), 4))
    assert fault in str(caught.value)
    # as a worker does it, which this process is now
    monkeypatch.setattr("videornn.data.prepare.prepare.run_parallel", lambda work, jobs, **_: enumerate(map(work, jobs)))
    monkeypatch.setattr("videornn.data.prepare.prepare.reencode", partial(_raising, FAULTS[fault]))
    (row,) = prepare_videos(str(tmp_path / "list.txt"), tmp_path / "out", Encoding(), root=str(motion_set)).rows
    assert row.status == "undecodable" and fault in row.reason and str(video) not in row.reason


def test_what_a_file_says_of_itself_may_break_the_choice_of_frames(
    motion_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(next((motion_set / "videos/train").rglob("*.mp4")))
    with pytest.raises(DecodeError, match=r"mp4: cannot be decoded \(ZeroDivisionError: Fraction\(1, 0\)\)"):
        read_frames(path, lambda video: torch.tensor([int(1 / Fraction(0) * video.num_frames)]))
    monkeypatch.setattr("videornn.data.video.pyav.open_file", partial(_raising, FAULTS["AttributeError: 'NoneType'"]))
    with pytest.raises(DecodeError, match=r"mp4: cannot be decoded \(AttributeError: 'NoneType'"):
        open_video(path)
    with pytest.raises(UserError, match=r"^a sentence$"), errors_of_video(path):
        raise UserError("a sentence")


def test_of_a_transform_only_a_lack_of_memory_is_the_videos_fault(motion_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = load_videos(str(motion_set / "train.txt"))
    dataset = build_loader(SMALL, table, plan=plan_of(20, 4), seed=0).dataset
    transform, calls = TrainTransform.finish, []

    def first(fault: Callable[[], object], self: TrainTransform, *arguments: object) -> tuple[torch.Tensor, int]:
        calls.append(1)
        return fault() if len(calls) == 1 else transform(self, *arguments)

    monkeypatch.setattr(TrainTransform, "finish", lambda *a: first(lambda: np.empty(2**60, np.uint8), *a))
    (sample,) = dataset[ClipKey(0, 3, 0, 4, 16)]
    assert [bad.path for bad in sample.bad] == [table.path(3)] and "do not fit into memory" in sample.bad[0].reason
    for fault, kind in ((lambda: 1 / 0, ZeroDivisionError), (lambda: torch.zeros(2) @ torch.zeros(3), RuntimeError)):
        calls.clear()
        monkeypatch.setattr(TrainTransform, "finish", lambda *a, fault=fault: first(fault, *a))
        with pytest.raises(kind):
            dataset[ClipKey(0, 3, 0, 4, 16)]
    monkeypatch.setattr("videornn.data.dataset.crop_views", lambda *a, **k: np.empty(2**60, np.uint8))
    (batch,) = build_test_loader(SMALL, table, VIEWS, batch_size=1, indices=[0])
    assert batch.valid.tolist() == [False] and "do not fit into memory" in batch.bad[0].reason
