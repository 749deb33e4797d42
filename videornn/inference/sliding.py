"""Plan sliding windows over a video of any length, and make their clips, cutting every frame once."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from videornn.data.dataset import ViewSpec
from videornn.data.sampling import clip_indices, in_order
from videornn.data.video.errors import errors_of_video
from videornn.data.video.pictures import MAX_FRAME_PIXELS
from videornn.data.video.stream import TimedFrame, VideoStream
from videornn.errors import UserError
from videornn.system.urls import without_secrets

MAX_WINDOW_SECONDS = 3600.0


@dataclass(frozen=True)
class WindowPlan:
    """Windows of window seconds, one every stride seconds, over a video of fps frames per second.

    All frames lie on one grid of time, a step apart, and all clips on one raster of that grid, so that overlapping windows
    share both: clips lie stride / m seconds apart, with the smallest m that leaves no gap between them. With sampling
    "segments", a window is treated as a whole video: one clip of num_frames evenly spread frames.

    Raises:
        UserError: the window is shorter than a clip or out of range, or the stride is longer than the window or too short.
    """

    view: ViewSpec
    fps: Fraction
    window: Fraction
    stride: Fraction

    def __post_init__(self) -> None:
        if not self.window <= MAX_WINDOW_SECONDS:
            raise UserError(f"a window of {float(self.window):g} s is too long; give at most {MAX_WINDOW_SECONDS:g}")
        shortest = self.clip_seconds - self.step
        if self.window <= 0 or self.window < shortest:
            raise UserError(
                f"a window of {float(self.window):g} s is shorter than a clip of the network, which spans "
                f"{float(self.clip_seconds):.3g} s; give --window {math.ceil(shortest * 100) / 100:g} or more"
            )
        if self.stride > self.window:
            raise UserError(
                f"a stride of {float(self.stride):g} s is longer than the window of {float(self.window):g} s: what lies "
                f"between two windows would not be seen"
            )
        if self.stride < self.step:
            raise UserError(
                f"a stride of {float(self.stride):g} s is shorter than the {float(self.step):.3g} s between two frames of a "
                f"clip; give that or more"
            )

    @cached_property
    def step(self) -> Fraction:
        """Seconds between two points of the grid."""
        clip = self.view.clip
        return self.window / clip.num_frames if clip.sampling == "segments" else clip.frame_step(self.fps) / self.fps

    @cached_property
    def clip_seconds(self) -> Fraction:
        """Length of a clip, counting the step after its last frame too."""
        return self.view.clip.num_frames * self.step

    @cached_property
    def clips_per_stride(self) -> int:
        """Number of clips of the raster from the start of one window to that of the next."""
        return math.ceil(self.stride / self.clip_seconds)

    @cached_property
    def clips_per_window(self) -> int:
        """Number of clips over which a window's scores are averaged."""
        spacing = self.stride / self.clips_per_stride
        return 1 + max(round((self.window - self.clip_seconds) / spacing), 0)

    def start(self, window: int) -> float:
        """Return the second at which a window starts."""
        return float(window * self.stride)

    def end(self, window: int) -> float:
        """Return the second at which a window ends, if the video is long enough."""
        return float(window * self.stride + self.window)

    def is_last(self, window: int, duration: float) -> bool:
        """Return whether a window reaches the end of a video of this duration, up to a step of the grid."""
        return self.end(window) + float(self.step) > duration - 1e-6

    def last_window(self, duration: float) -> int:
        """Return the number of the first window for which is_last holds."""
        left = duration - 1e-6 - float(self.step) - float(self.window)
        return max(math.floor(left / float(self.stride)) + 1, 0) if left > 0 else 0

    def is_used(self, clip: int) -> bool:
        """Return whether a clip of the raster is part of a window."""
        return clip % self.clips_per_stride < self.clips_per_window

    def clips_of(self, window: int) -> range:
        """Return the numbers, on the raster, of the clips of a window."""
        first = window * self.clips_per_stride
        return range(first, first + self.clips_per_window)

    def clip_start(self, clip: int) -> int:
        """Return the point of the grid at which a clip of the raster begins."""
        return round(clip * self.stride / self.clips_per_stride / self.step)

    def seconds(self, point: int) -> float:
        """Return when a point of the grid is sampled: in the middle of a frame of a constant rate (as on_screen)."""
        place = (point + Fraction(self.view.clip.sampling == "segments", 2)) * self.step * self.fps
        return (math.floor(place) + 0.5) / float(self.fps)


def plan_windows(
    view: ViewSpec, window: float | None, stride: float | None, fps: Fraction, duration: float | None = None
) -> WindowPlan:
    """Plan windows of some seconds, by default those of one clip, stride seconds apart, by default half a window.

    A clip that is spread over a window is spread over the whole video if that is known to be shorter.

    Raises:
        UserError: window or stride make no sense.
    """
    if window is None and view.clip.sampling == "segments":
        raise UserError("a clip of this network is spread over a whole video: give --window, in seconds")
    length = view.clip.duration_seconds(fps) if window is None else Fraction(window).limit_denominator(10**6)
    apart = length / 2 if stride is None else Fraction(stride).limit_denominator(10**6)
    if view.clip.sampling == "segments" and duration and 0 < duration < length <= MAX_WINDOW_SECONDS:
        length = Fraction(duration).limit_denominator(10**6)
        apart = min(apart, length)
    return WindowPlan(view, fps, length, apart)


class StreamInfo(NamedTuple):
    """The properties that a stream announces: fps, and its duration in seconds or None."""

    fps: Fraction
    duration: float | None


class Reading(NamedTuple):
    """How far a stream is read, and the clips uint8 [B, 3, T, S, S] that have become complete, with their numbers.

    end and num_damaged are those of VideoStream; numbers are those of sliding_clips. There are none if clips is None.
    """

    end: float
    num_damaged: int
    numbers: list[int]
    clips: np.ndarray | None


def read_clips(
    source: str,
    plan_windows: Callable[[Fraction, float | None], WindowPlan],
    batch_size: int,
    max_pixels: int = MAX_FRAME_PIXELS,
) -> Iterator[StreamInfo | Reading]:
    """Yield what a source announces, then its clips, batch_size at a time; made to run in another process.

    Args:
        source: as VideoStream takes it.
        plan_windows: plans windows, given the frames per second of a video and its seconds, if known.
        max_pixels: width x height that a frame may have.

    Raises:
        DecodeError: the source cannot be opened or decoded, or is lost.
        UserError: from plan_windows.
    """
    with errors_of_video(without_secrets(source)), VideoStream(source, max_pixels=max_pixels) as stream:
        yield StreamInfo(stream.fps, stream.duration)
        clips = sliding_clips(stream, plan_windows(stream.fps, stream.duration))
        more = True
        while more:
            batch = list(islice(clips, batch_size))
            more = len(batch) == batch_size
            pixels = np.stack([clip.numpy() for _, clip in batch]) if batch else None
            yield Reading(stream.end, stream.num_damaged, [number for number, _ in batch], pixels)


def sliding_clips(stream: VideoStream, plan: WindowPlan) -> Iterator[tuple[int, Tensor]]:
    """Yield (number on the raster, clip uint8 [3, T, S, S], centre crop) of a stream as soon as its frames have come.

    If clips reach past the end of the video, the last one ends with it and replaces all from its number on. Memory holds
    one clip.
    """
    view, num_frames = plan.view, plan.view.clip.num_frames
    pictures: deque[Tensor] = deque(maxlen=num_frames)  # [3, 1, S, S], of the last points of the grid
    order = in_order(torch.arange(num_frames), view.clip)
    point = number = 0
    shown: TimedFrame | None = None

    def wanted(start: float, end: float) -> bool:
        place = max(point, int(start / float(plan.step)) - 1)
        while plan.seconds(place) < start:
            place += 1
        return plan.seconds(place) < end

    def fill(shown: TimedFrame, until: float) -> Iterator[tuple[int, Tensor]]:
        """Yield the clips that are complete when a frame has been on screen until a time."""
        nonlocal point, number
        picture = None
        while plan.seconds(point) < until:
            picture = view.cut_centre(shown.picture()) if picture is None else picture
            pictures.append(picture)
            point += 1
            if point == plan.clip_start(number) + num_frames:
                if plan.is_used(number):
                    yield number, torch.cat(list(pictures), dim=1)[:, order]
                number += 1

    for frame in stream.frames(wanted):
        if shown is not None:
            yield from fill(shown, frame.time)
        shown = frame
    assert shown is not None  # a stream without frames raises
    yield from fill(shown, stream.end)
    if number > plan.clips_of(plan.last_window(stream.end))[-1]:
        return
    if len(pictures) < num_frames and (view.clip.short_videos == "repeat_last" or not pictures):
        pictures.append(view.cut_centre(shown.picture()))
    tail = clip_indices(len(pictures), num_frames, Fraction(1), 0, view.clip.short_videos)
    yield number, torch.cat([pictures[index] for index in tail.tolist()], dim=1)[:, order]
