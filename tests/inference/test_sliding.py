"""Sliding windows: which frames each clip has, that none is cut out twice, and what windows are made of them."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from videornn import load_predictor
from videornn.data.dataset import ViewSpec
from videornn.data.sampling import ClipSpec
from videornn.data.video import stream as stream_module
from videornn.data.video.stream import VideoStream
from videornn.errors import UserError
from videornn.inference.sliding import WindowPlan, sliding_clips
from videornn.inference.timeline import Window
from videornn.inference.windows import KeptWindows

VIEW = ViewSpec(ClipSpec(4, 2, 25.0), num_clips=1, num_crops=1, crop_size=32, short_side=32)


def plan_of(window: str, stride: str, view: ViewSpec = VIEW, fps: int = 25) -> WindowPlan:
    return WindowPlan(view, Fraction(fps), Fraction(window), Fraction(stride))


def clips_of(path: Path, plan: WindowPlan, numbers) -> list[tuple[int, list[int]]]:
    """Number on the raster, and numbers of the frames, of all clips."""
    with VideoStream(str(path)) as stream:
        return [(number, numbers(clip.permute(1, 2, 3, 0))) for number, clip in sliding_clips(stream, plan)]


def test_clips_have_the_frames_of_their_time_and_the_last_one_ends_with_the_video(
    make_video, read_frame_numbers, tmp_path: Path
) -> None:
    path = make_video(tmp_path / "a.mp4", 30, bf="2")
    expected = [(k, [6 * k, 6 * k + 2, 6 * k + 4, 6 * k + 6]) for k in range(4)]
    # the next would be 24, 26, 28, 30, and there is no frame 30
    assert clips_of(path, plan_of("0.32", "0.24"), read_frame_numbers) == [*expected, (4, [22, 24, 26, 28])]


def test_another_frame_rate_is_sampled_in_real_time(make_video, read_frame_numbers, tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 60, fps=50)
    view = ViewSpec(ClipSpec(4, 2, 30.0), num_clips=1, num_crops=1, crop_size=32, short_side=32)
    clips = clips_of(path, plan_of("4/15", "4/15", view, 50), read_frame_numbers)
    # a clip frame every 2/30 s is every 50/15 = 3.33 frames
    assert clips[0] == (0, [0, 3, 6, 10]) and clips[1] == (1, [13, 16, 20, 23])


def test_segments_spread_one_clip_over_the_window(make_video, read_frame_numbers, tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 50)
    view = ViewSpec(ClipSpec(4, sampling="segments"), num_clips=1, num_crops=1, crop_size=32, short_side=32)
    clips = clips_of(path, plan_of("0.8", "0.8", view), read_frame_numbers)
    assert clips[0] == (0, [2, 7, 12, 17]) and clips[1] == (1, [22, 27, 32, 37])  # the middles of four parts of 20 frames


def test_a_window_longer_than_the_video_is_as_long_as_the_video(tiny_run: Path, make_video, tmp_path: Path) -> None:
    """Else the last frame would stand for all that is missing: 18 of 30 s turned an answer into another."""
    path = make_video(tmp_path / "a.mp4", 60)
    overrides = ["data.sampling=segments", "test.num_clips=1", "test.num_crops=1", "device=cpu"]
    predictor = load_predictor(tiny_run / "checkpoints/best.pt", topk=10, overrides=overrides)
    (window,) = predictor.windows(path, window=30, stride=20)
    assert (window.start, window.end) == (0.0, 2.4)
    scores = dict(predictor(path))
    torch.testing.assert_close(window.scores, torch.tensor([scores[name] for name in predictor.class_names]))


@pytest.mark.parametrize("short", ["repeat_last", "loop"])
def test_a_video_shorter_than_a_clip_goes_on_as_clips_of_it_do(
    make_video, read_frame_numbers, tmp_path: Path, short: str
) -> None:
    path = make_video(tmp_path / "a.mp4", 4)
    view = ViewSpec(ClipSpec(4, 2, 25.0, short_videos=short), num_clips=1, num_crops=1, crop_size=32, short_side=32)
    expected = [0, 2, 3, 3] if short == "repeat_last" else [0, 2, 0, 2]
    assert clips_of(path, plan_of("0.32", "0.16", view), read_frame_numbers) == [(0, expected)]


def test_no_picture_is_converted_twice_however_much_windows_overlap(
    make_video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "a.mp4", 60)
    converted = []
    convert = stream_module.to_picture
    monkeypatch.setattr(stream_module, "to_picture", lambda *given: converted.append(given[0].pts) or convert(*given))
    with VideoStream(str(path)) as stream:
        clips = list(sliding_clips(stream, plan_of("0.96", "0.08")))
    assert len(clips) > 20
    assert len(converted) == len(set(converted)) == 30  # every second frame of 60


@pytest.mark.parametrize(
    ("window", "stride", "spacing", "per_window"),
    [
        ("0.32", "0.16", 0.16, 1),
        ("0.64", "0.32", 0.32, 2),
        ("1.28", "0.64", 0.32, 4),
        ("2.56", "0.16", 0.16, 15),
        ("0.4", "0.4", 0.2, 1),
    ],
)
def test_clips_of_a_window_fill_it_evenly_and_overlapping_windows_share_them(
    window: str, stride: str, spacing: float, per_window: int
) -> None:
    plan = plan_of(window, stride)
    assert plan.clips_per_window == per_window
    starts = [plan.clip_start(clip) * float(plan.step) for clip in plan.clips_of(3)]
    assert starts[0] == pytest.approx(3 * float(Fraction(stride)), abs=0.05)
    assert all(b - a == pytest.approx(spacing, abs=0.081) for a, b in pairwise(starts))
    assert starts[-1] + 0.32 <= plan.end(3) + spacing / 2 + 0.05


@pytest.mark.parametrize(
    ("window", "stride", "message"),
    [
        ("0.1", "0.1", "a window of 0.1 s is shorter than a clip of the network, which spans 0.32 s; give --window 0.24 or"),
        ("5000", "1", "a window of 5000 s is too long"),
        ("1", "2", "a stride of 2 s is longer than the window of 1 s"),
        ("1", "0.01", "a stride of 0.01 s is shorter than the 0.08 s between two frames"),
    ],
)
def test_windows_without_sense_are_a_sentence(window: str, stride: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_of(window, stride)


@pytest.fixture(scope="module")
def one_view(tiny_run: Path):
    """The network of 4 frames, 4 apart at 30 frames per second, on one centre view."""
    overrides = ["test.num_clips=1", "test.num_crops=1"]
    return load_predictor(tiny_run / "checkpoints/best.pt", topk=10, overrides=overrides)


@pytest.mark.parametrize(("fps", "num_frames"), [(30, 16), (15, 8), (30, 9)])
def test_a_window_over_a_video_as_long_as_a_clip_has_the_scores_of_the_predictor(
    one_view, make_video, tmp_path: Path, fps: int, num_frames: int
) -> None:
    path = make_video(tmp_path / "a.mp4", num_frames, fps=fps)
    (window,) = one_view.windows(path)
    assert (window.start, window.end) == (0, pytest.approx(num_frames / fps, abs=1e-3))
    torch.testing.assert_close(window.scores, one_view.scores(path), atol=1e-6, rtol=0)


def test_windows_follow_each_other_to_the_end_and_average_their_clips(one_view, make_video, tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 75, fps=30, size=(64, 64))
    clip, half = 16 / 30, 8 / 30
    short = list(one_view.windows(path))  # one clip each, every half clip
    assert [round(w.start, 3) for w in short] == [round(half * k, 3) for k in range(8)]
    # the last but 0.1 s, less than what lies between two frames of a clip, belongs to the last window
    assert [round(w.end, 3) for w in short] == [round(half * k + clip, 3) for k in range(7)] + [2.5]
    double = list(one_view.windows(path, window=2 * clip, stride=clip))
    # clips every clip: those of windows 0 and 2, then 2 and 4, ...
    torch.testing.assert_close(double[0].scores, (short[0].scores + short[2].scores) / 2, atol=1e-5, rtol=0)
    torch.testing.assert_close(double[1].scores, (short[2].scores + short[4].scores) / 2, atol=1e-5, rtol=0)
    assert double[-1].end == pytest.approx(2.5)


def test_windows_are_kept_as_they_were() -> None:
    kept, expected = KeptWindows(), []
    for number in range(KeptWindows.ROWS + 3):
        expected.append(Window(number / 3, number / 3 + 1, torch.rand(5)))
        kept.append(expected[-1])
    assert len(kept) == len(expected)
    for one, other in zip([*kept, kept[0], kept[-1]], [*expected, expected[0], expected[-1]], strict=True):
        assert (one.start, one.end) == (other.start, other.end) and one.scores.equal(other.scores)
    with pytest.raises(IndexError):
        kept[len(expected)]


def test_predictions_of_many_videos_come_in_order_and_do_not_depend_on_their_neighbours(
    one_view, motion_set: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.mp4").write_text("this is text")
    files = sorted((motion_set / "videos/test").rglob("*.mp4"))
    files = files[:5]
    mixed = [files[3], tmp_path / "text.mp4", *reversed(files), tmp_path / "none.mp4", files[3]]
    results = list(one_view.predict_many(mixed))
    assert [result.path for result in results] == [str(path) for path in mixed]
    assert [result.error is None for result in results] == [True, False, *[True] * len(files), False, True]
    assert "text.mp4: cannot be decoded" in results[1].error and "none.mp4: no such file" in results[-2].error
    for result in results:
        if result.error is None:
            torch.testing.assert_close(result.scores, one_view.scores(result.path), atol=1e-5, rtol=0)
    assert list(one_view.predict_many([])) == []
