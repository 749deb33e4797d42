import random
from fractions import Fraction

import pytest
import torch

from videornn.data.sampling import ClipSpec, clip_indices, sample_random_clip, segment_indices, uniform_clips


def test_last_frame_repeats_past_the_end() -> None:
    assert clip_indices(10, 4, Fraction(3), 5).tolist() == [5, 8, 9, 9]


def test_a_fractional_step_rounds_down_frame_by_frame() -> None:
    assert clip_indices(100, 5, Fraction(5, 2), 1).tolist() == [1, 3, 6, 8, 11]


@pytest.mark.parametrize(("frames", "count", "start"), [(0, 4, 0), (10, 0, 0), (10, 4, 10), (10, 4, -1)])
def test_impossible_clips_are_refused(frames: int, count: int, start: int) -> None:
    with pytest.raises(ValueError, match=r"at least 1|outside"):
        clip_indices(frames, count, Fraction(1), start)


@pytest.mark.parametrize("fps", [Fraction(12), Fraction(30000, 1001), Fraction(60)])
def test_stride_is_in_seconds_whatever_the_frame_rate(fps: Fraction) -> None:
    spec = ClipSpec(num_frames=8, temporal_stride=8, sampling_fps=30.0)
    indices = sample_random_clip(spec, int(20 * fps), fps, seed=3)
    steps = indices.diff().double() / float(fps)
    assert abs(steps.mean().item() - 8 / 30) < 1 / float(fps) / 7
    assert (steps - 8 / 30).abs().max().item() <= 1 / float(fps)


def test_random_clips_cover_the_whole_video_and_depend_on_the_seed_alone() -> None:
    spec = ClipSpec(num_frames=8, temporal_stride=4)
    state = random.getstate()
    clips = torch.stack([sample_random_clip(spec, 100, Fraction(25), seed) for seed in range(400)])
    assert random.getstate() == state
    assert torch.equal(clips[7], sample_random_clip(spec, 100, Fraction(25), 7))
    assert clips.min() == 0
    # a clip lasts 32 frames with the step after its last frame, so starts go up to 68
    assert 64 <= clips[:, 0].max() <= 68 and clips.max() <= 97
    assert abs(clips[:, 0].float().mean().item() - 34) < 3


def test_uniform_clips_lie_in_the_middle_of_equal_parts() -> None:
    clips = uniform_clips(ClipSpec(num_frames=8, temporal_stride=4), 132, Fraction(25), num_clips=5)
    # 100 free frames in 5 parts of 20: starts 10, 30, 50, 70, 90
    assert clips[:, 0].tolist() == [10, 30, 50, 70, 90]
    assert uniform_clips(ClipSpec(8, 4), 132, Fraction(25), 1)[0, 0] == 50


def test_a_video_shorter_than_the_clip_gives_the_same_padded_clip() -> None:
    clips = uniform_clips(ClipSpec(num_frames=4, temporal_stride=4), 6, Fraction(25), num_clips=3)
    assert clips.tolist() == [[0, 4, 5, 5]] * 3


def test_segments_take_one_frame_from_each_equal_part() -> None:
    assert segment_indices(80, 4, torch.full((4,), 0.5)).tolist() == [10, 30, 50, 70]
    spec = ClipSpec(num_frames=4, sampling="segments")
    clips = torch.stack([sample_random_clip(spec, 80, Fraction(25), seed) for seed in range(200)])
    parts = clips // 20
    assert (parts == torch.arange(4)).all()
    assert clips.unique().numel() == 80
    assert uniform_clips(spec, 80, Fraction(25), 2).tolist() == [[5, 25, 45, 65], [15, 35, 55, 75]]


def test_controls_shuffle_the_order_or_repeat_one_frame() -> None:
    ordered = sample_random_clip(ClipSpec(8, 4), 100, Fraction(25), 5)
    shuffled = sample_random_clip(ClipSpec(8, 4, frame_order="shuffled"), 100, Fraction(25), 5)
    single = sample_random_clip(ClipSpec(8, 4, frame_order="single"), 100, Fraction(25), 5)
    assert torch.equal(shuffled.sort().values, ordered) and not torch.equal(shuffled, ordered)
    assert single.unique().numel() == 1 and single[0] in ordered


def test_fewer_frames_lie_at_any_stride_up_to_the_same_span() -> None:
    spec = ClipSpec(num_frames=8, temporal_stride=3)
    strides = {spec.shortened(2, seed).temporal_stride for seed in range(200)}
    assert strides == set(range(3, 13))  # 2 frames 12 apart span what 8 frames 3 apart do
    assert spec.shortened(2, 5) == spec.shortened(2, 5) and spec.shortened(2, 5).num_frames == 2
    assert spec.shortened(8, 5) is spec
    assert {spec.shortened(6, seed).temporal_stride for seed in range(20)} == {3}
