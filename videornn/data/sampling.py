"""Choose the frames of clips: clip samplers in the form of PyTorchVideo's say when, integer arithmetic which frames."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from pytorchvideo.data.clip_sampling import ClipInfo, ClipSampler
from torch import Tensor

from videornn.schema import FrameOrder, Sampling, ShortVideos


@dataclass(frozen=True)
class ClipSpec:
    """A way to take a clip from a video.

    num_frames at a distance of temporal_stride frames of a sampling_fps video (None: of the video itself); with
    sampling "segments", one frame from each of num_frames equal parts of the whole video. A clip that reaches past the end
    of a short video repeats the last frame, or begins again (short_videos). frame_order "shuffled" and "single" are controls
    that take the motion away.
    """

    num_frames: int
    temporal_stride: int = 1
    sampling_fps: float | None = None
    sampling: Sampling = "clip"
    frame_order: FrameOrder = "time"
    short_videos: ShortVideos = "repeat_last"

    def frame_step(self, fps: Fraction) -> Fraction:
        """Return the source frames from one sampled frame to the next, for a video of this many frames per second."""
        if self.sampling_fps is None:
            return Fraction(self.temporal_stride)
        return self.temporal_stride * fps / Fraction(self.sampling_fps).limit_denominator(1001)

    def duration_seconds(self, fps: Fraction) -> Fraction:
        """Return the length of a clip, counting the step after its last frame too."""
        return self.num_frames * self.frame_step(fps) / fps

    def shortened(self, num_frames: int, seed: int) -> ClipSpec:
        """Return the spec for another number of frames; fewer get a random stride, up to where they span the same time.

        This is how multigrid training samples time (Wu et al. 2020, arXiv:1912.00998). A pure function of its arguments;
        seed must not be the one that chooses where the clip starts.
        """
        if num_frames == self.num_frames:
            return self
        longest = self.temporal_stride * max(self.num_frames // num_frames, 1)
        return replace(
            self, num_frames=num_frames, temporal_stride=random.Random(seed).randint(self.temporal_stride, longest)
        )


class SeededClipSampler(ClipSampler):
    """Draw one clip from anywhere in a video, as PyTorchVideo's random sampler does, from a generator of its own.

    Args:
        clip_duration: seconds.
        seed: of the generator; PyTorchVideo's draws from Python's global one.
    """

    def __init__(self, clip_duration: float | Fraction, seed: int) -> None:
        super().__init__(clip_duration)
        self._generator = random.Random(seed)

    def __call__(self, last_clip_time: Any, video_duration: float | Fraction, annotation: dict[str, Any]) -> ClipInfo:
        start = Fraction(self._generator.uniform(0, max(video_duration - self._clip_duration, 0)))
        return ClipInfo(start, start + self._clip_duration, 0, 0, True)


class MiddleClipSampler(ClipSampler):
    """Take clips from the middles of equal parts of a video, where PyTorchVideo takes them from the beginnings.

    Args:
        clip_duration: seconds.
        num_clips: parts, of which each gives a clip.
    """

    def __init__(self, clip_duration: float | Fraction, num_clips: int) -> None:
        super().__init__(clip_duration)
        self._num_clips, self._next = num_clips, 0

    def __call__(self, last_clip_time: Any, video_duration: float | Fraction, annotation: dict[str, Any]) -> ClipInfo:
        number = self._next
        free = Fraction(max(video_duration - self._clip_duration, 0))
        start = free * Fraction(2 * number + 1, 2 * self._num_clips)
        self._next = (number + 1) % self._num_clips
        return ClipInfo(start, start + self._clip_duration, number, 0, self._next == 0)

    def reset(self) -> None:
        """Begin with the first part of the next video."""
        self._next = 0


def clip_indices(
    num_video_frames: int, num_frames: int, frame_step: Fraction, start: int, short_videos: str = "repeat_last"
) -> Tensor:
    """Return the frame indices of one clip.

    Args:
        frame_step: source frames from one sampled frame to the next (1 = consecutive; may be a fraction).
        start: index of the first sampled frame, in [0, num_video_frames).
        short_videos: what follows the end of the video, repeat_last or loop.

    Returns:
        int64 [T], every entry a valid frame index.

    Raises:
        ValueError: a count is below 1, or start is outside the video.
    """
    if num_video_frames < 1 or num_frames < 1:
        raise ValueError(f"num_video_frames and num_frames must be at least 1, got {num_video_frames}, {num_frames}")
    if not 0 <= start < num_video_frames:
        raise ValueError(f"start {start} is outside a video of {num_video_frames} frames")
    steps = torch.arange(num_frames) * frame_step.numerator // frame_step.denominator
    indices = start + steps
    return indices % num_video_frames if short_videos == "loop" else indices.clamp(max=num_video_frames - 1)


def segment_indices(num_video_frames: int, num_frames: int, offsets: Tensor) -> Tensor:
    """Return the index of one frame from each of num_frames equal parts of a video (Wang et al. 2016, arXiv:1608.00859).

    Args:
        offsets: float [T] in [0, 1), the position of each frame in its part.

    Returns:
        int64 [T], non-decreasing, every entry a valid frame index.
    """
    places = (torch.arange(num_frames) + offsets.double()) * num_video_frames / num_frames
    return places.long().clamp(max=num_video_frames - 1)


def sample_random_clip(spec: ClipSpec, num_video_frames: int, fps: Fraction, seed: int) -> Tensor:
    """Draw the frame indices int64 [T] of a random training clip, a pure function of the arguments."""
    generator = torch.Generator().manual_seed(seed)
    if spec.sampling == "segments":
        offsets = torch.rand(spec.num_frames, generator=generator, dtype=torch.float64)
        indices = segment_indices(num_video_frames, spec.num_frames, offsets)
    else:
        clip = SeededClipSampler(spec.duration_seconds(fps), seed)(0, num_video_frames / fps, {})
        indices = _clip_from(spec, num_video_frames, fps, clip.clip_start_sec)
    return _reorder(indices, spec, generator)


def uniform_clips(spec: ClipSpec, num_video_frames: int, fps: Fraction, num_clips: int) -> Tensor:
    """Return the frame indices int64 [num_clips, T] of test clips, each in the middle of one of num_clips equal parts."""
    if spec.sampling == "segments":
        parts = [Fraction(2 * clip + 1, 2 * num_clips) for clip in range(num_clips)]
        clips = [
            segment_indices(num_video_frames, spec.num_frames, torch.full((spec.num_frames,), float(part))) for part in parts
        ]
    else:
        sampler = MiddleClipSampler(spec.duration_seconds(fps), num_clips)
        starts = [sampler(0, num_video_frames / fps, {}).clip_start_sec for _ in range(num_clips)]
        clips = [_clip_from(spec, num_video_frames, fps, start) for start in starts]
    generator = torch.Generator().manual_seed(num_video_frames)
    return torch.stack([_reorder(clip, spec, generator) for clip in clips])


def in_order(indices: Tensor, spec: ClipSpec) -> Tensor:
    """Reorder the indices [T] of a clip of a window as frame_order says, the same way for every clip."""
    return _reorder(indices, spec, torch.Generator().manual_seed(0))


def _clip_from(spec: ClipSpec, num_video_frames: int, fps: Fraction, start_seconds: Fraction) -> Tensor:
    start = min(int(start_seconds * fps), num_video_frames - 1)
    return clip_indices(num_video_frames, spec.num_frames, spec.frame_step(fps), start, spec.short_videos)


def _reorder(indices: Tensor, spec: ClipSpec, generator: torch.Generator) -> Tensor:
    if spec.frame_order == "shuffled":
        return indices[torch.randperm(len(indices), generator=generator)]
    if spec.frame_order == "single":
        choice = torch.randint(len(indices), (1,), generator=generator)
        return indices[choice].expand(len(indices)).clone()
    return indices
