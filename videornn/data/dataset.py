"""Map-style datasets: training clips by ClipKey, test views by index. A sample is a pure function of its key.

A video that cannot be decoded never stops a loader: in training another one, drawn from all, replaces it, with its own
label; in evaluation its row is marked invalid. Both carry the reason along.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.sharedctypes import RawArray
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from videornn.data.annotations.load import VideoTable
from videornn.data.sampling import ClipSpec, sample_random_clip, uniform_clips
from videornn.data.transforms import TrainTransform, crop_views
from videornn.data.video.base import Cut, FrameVideo
from videornn.data.video.decoders import Decoder, read_frames
from videornn.data.video.errors import memory_of_video
from videornn.data.video.pictures import MAX_FRAME_PIXELS
from videornn.errors import DecodeError, UserError
from videornn.system.memory import lacks_memory

MAX_SEARCHED = 1000  # bad videos tried in search of a sound one, or those that data.max_bad_share allows
SLOW_SECONDS = 1.0  # a video that takes longer than this to fail is not tried again


@dataclass(frozen=True)
class BadVideo:
    """A video that could not be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Sample:
    """One row of a batch: clips uint8 [3, T, H, W] (training) or [V, 3, T, H, W] (test views), label, index of the video.

    valid is False, and clips is all zeros, if an evaluated video is bad or no sound training video is found.
    """

    clips: Tensor
    label: int
    index: int
    valid: bool = True
    bad: tuple[BadVideo, ...] = ()
    refusals: tuple[str, ...] = ()  # see read_frames


class TooManyBad(UserError):
    """Raised when more training videos are bad than data.max_bad_share allows."""

    def __init__(self, bad: Collection[BadVideo], num_videos: int, max_share: float) -> None:
        one = min(bad, key=lambda video: video.path)  # the same one on all ranks, for equal messages
        super().__init__(
            f"{len(bad)} of {num_videos} training videos cannot be decoded, more than data.max_bad_share={max_share:g} "
            f"allows; one of them: {one.reason}. `videornn data verify` names all that are broken: leave them out, or set "
            f"another data.max_bad_share"
        )
        self.bad = bad


class ClipKey(NamedTuple):
    """A training clip: its video, its epoch, how often the video was drawn in it before, and its shape (frames, pixels)."""

    epoch: int
    index: int  # type: ignore[assignment]  # tuples have a method of this name
    draw: int
    num_frames: int
    crop_size: int


@dataclass
class VideoReader:
    """A reader of the videos of a table; the training process can see what each worker is reading.

    Args:
        timeout: seconds that PyAV may take to open a video, and again to decode from it.
        max_pixels: width x height that a frame may have.
        known_bad: videos that are not opened again, by index, with the reason: they killed a worker, hung, or failed slowly.
    """

    table: VideoTable
    decoder: Decoder = "auto"
    timeout: float = 60.0
    max_pixels: int = MAX_FRAME_PIXELS
    known_bad: dict[int, str] = field(default_factory=dict)
    _refusals: list[str] = field(default_factory=list)
    _work: Any = None  # float64 [3 * num_workers], shared: process id or 0, index of the video, time of its start

    @contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """Enclose all work on a video; raises DecodeError if it is known to be bad, or takes all memory."""
        if index in self.known_bad:
            raise DecodeError(self.known_bad[index])
        self._note(index)
        start = time.monotonic()
        try:
            with memory_of_video(self.table.path(index)):
                yield
        except DecodeError as error:
            # next time there may be enough memory for it
            if time.monotonic() - start > SLOW_SECONDS and not lacks_memory(error.__cause__):
                self.known_bad[index] = str(error)
            raise
        finally:
            self._note(-1)

    def cuts(self, index: int, choose: Callable[[FrameVideo], Tensor], cuts: Sequence[Cut]) -> Tensor:
        """Read cuts of the frames of one video, as read_frames does; raises DecodeError."""
        return read_frames(
            self.table.path(index),
            choose,
            cuts,
            decoder=self.decoder,
            timeout=self.timeout,
            max_pixels=self.max_pixels,
            on_refusal=self._refusals.append,
        )

    def taken_refusals(self) -> tuple[str, ...]:
        """Return, once, the messages of read_frames about videos that the chosen back end does not read."""
        refusals, self._refusals = tuple(self._refusals), []
        return refusals

    def watch_workers(self, num_workers: int) -> None:
        """Make room for the states of this many workers, started from now on."""
        self._work = RawArray("d", 3 * num_workers) if num_workers else None

    @property
    def num_workers(self) -> int:
        """Number of workers in the last start."""
        return len(self._work or ()) // 3

    def workers(self) -> list[tuple[int, int, float]]:
        """Return (process id, index of the video it reads, or -1, seconds so far) of every worker that has read one."""
        rows = [self._work[3 * worker : 3 * worker + 3] for worker in range(self.num_workers)]
        return [(int(pid), int(index), time.monotonic() - since) for pid, index, since in rows if pid > 0]

    def _note(self, index: int) -> None:
        worker = get_worker_info()
        if worker is not None and self._work is not None:
            self._work[3 * worker.id : 3 * worker.id + 3] = os.getpid(), index, time.monotonic()


class TrainClips(Dataset):
    """Random training clips of a table of videos.

    An item is a list of clips_per_video samples, cut from one opened video (repeated augmentation, Hoffer et al. 2020,
    arXiv:1901.09335). Clips of fewer frames or pixels than spec and transform have are made by ClipSpec.shortened and
    TrainTransform.at_crop_size.
    """

    def __init__(
        self,
        reader: VideoReader,
        spec: ClipSpec,
        *,
        transform: TrainTransform,
        seed: int,
        clips_per_video: int = 1,
        max_bad_share: float = 1.0,
    ) -> None:
        self.reader = reader
        self.spec = spec
        self.transform = transform
        self.seed = seed
        self.clips_per_video = clips_per_video
        self.max_bad_share = max_bad_share

    def __len__(self) -> int:
        return len(self.reader.table)

    def __getitem__(self, key: ClipKey) -> list[Sample]:
        epoch, index, draw, num_frames, crop_size = key
        bad: dict[int, BadVideo] = {}
        candidate, seed = index, sample_seed(self.seed, epoch, index, *([draw] if draw else []))
        for attempt in itertools.count(1):
            if candidate not in bad:
                try:
                    with self.reader.reading(candidate):
                        clips = self._clips(candidate, seed, num_frames, crop_size)
                    return self._samples(clips, candidate, bad)
                except DecodeError as error:
                    bad[candidate] = BadVideo(self.reader.table.path(candidate), str(error))
                    if len(bad) == len(self) or len(bad) > max(self.max_bad_share * len(self), MAX_SEARCHED):
                        break
            # from the whole table: videos of a class lie side by side, and what is missing is mostly a whole folder
            candidate = sample_seed(self.seed, epoch, index, draw, attempt) % len(self)
            # not the clip that the replacement has in its own turn
            seed = sample_seed(self.seed, epoch, candidate, draw, index)
        nothing = torch.zeros(3, num_frames, crop_size, crop_size, dtype=torch.uint8)
        return self._samples([(nothing, -1)] * self.clips_per_video, index, bad, valid=False)

    def _samples(
        self, clips: list[tuple[Tensor, int]], index: int, bad: dict[int, BadVideo], *, valid: bool = True
    ) -> list[Sample]:
        """Make samples of the clips of one video; the first one carries the bad videos and refusals."""
        first, *others = (Sample(clip, label, index, valid) for clip, label in clips)
        return [replace(first, bad=tuple(bad.values()), refusals=self.reader.taken_refusals()), *others]

    def _clips(self, index: int, seed: int, num_frames: int, crop_size: int) -> list[tuple[Tensor, int]]:
        """Load clips of one video with their labels."""
        draw = self.draw(seed, num_frames, crop_size)
        crops = self.reader.cuts(index, draw.choose, draw.cuts)
        return draw.finish(crops, self.reader.table[index][1])

    def draw(self, seed: int, num_frames: int, crop_size: int) -> ClipDraw:
        """Draw the clips of one video and their transforms."""
        seeds = [seed + 2 * clip for clip in range(self.clips_per_video)]
        transform = self.transform.at_crop_size(crop_size)
        generators = [torch.Generator().manual_seed(clip_seed + 1) for clip_seed in seeds]
        # a seed of its own: the stride must not depend on where the clip starts
        specs = [self.spec.shortened(num_frames, sample_seed(clip_seed)) for clip_seed in seeds]
        return ClipDraw(specs, seeds, transform, generators, [transform.cutter(generator) for generator in generators])


@dataclass(frozen=True)
class ClipDraw:
    """The drawn clips of one video; cuts are for FrameVideo.cuts_at, one for each clip."""

    specs: list[ClipSpec]
    seeds: list[int]
    transform: TrainTransform
    generators: list[torch.Generator]
    cuts: list[Cut]

    def choose(self, video: FrameVideo) -> Tensor:
        """Return the frame indices int64 [clips, T]."""
        pairs = zip(self.specs, self.seeds, strict=True)
        clips = [sample_random_clip(spec, video.num_frames, video.fps, clip_seed) for spec, clip_seed in pairs]
        return video.on_screen(torch.stack(clips))

    def finish(self, crops: Tensor, label: int) -> list[tuple[Tensor, int]]:
        """Turn the results of the cuts into clips uint8 [3, T, S, S] with their labels, which a flip can swap."""
        pairs = zip(crops, self.generators, strict=True)
        return [self.transform.finish(clip, label, generator) for clip, generator in pairs]


@dataclass(frozen=True)
class ViewSpec:
    """The test views of a video: num_clips clips over its length, num_crops square crops of each."""

    clip: ClipSpec
    num_clips: int
    num_crops: int
    crop_size: int
    short_side: int
    squeeze: bool = False

    def choose(self, video: FrameVideo) -> Tensor:
        """Return frame indices int64 [1, num_clips * T] of all clips of a video, one clip after the other."""
        return video.on_screen(uniform_clips(self.clip, video.num_frames, video.fps, self.num_clips)).reshape(1, -1)

    def cut(self, frame: Tensor) -> Tensor:
        """Cut a frame uint8 [H, W, 3] into its crops uint8 [num_crops, S, S, 3]."""
        crops = crop_views(frame[None], self.crop_size, self.short_side, self.num_crops, squeeze=self.squeeze)
        return crops[:, :, 0].permute(0, 2, 3, 1)

    def views(self, crops: Tensor) -> Tensor:
        """Arrange crops uint8 [1, num_clips * T, num_crops, S, S, 3] as views [num_clips * num_crops, 3, T, S, S]."""
        clips = crops[0].unflatten(0, (self.num_clips, -1))  # [num_clips, T, num_crops, S, S, 3]
        return clips.permute(0, 2, 5, 1, 3, 4).flatten(0, 1)

    def cut_centre(self, picture: np.ndarray) -> Tensor:
        """Cut a frame uint8 [H, W, 3] to uint8 [3, 1, S, S] as the centre crop of a view does."""
        frame = torch.from_numpy(np.ascontiguousarray(picture))[None]
        return crop_views(frame, self.crop_size, self.short_side, 1, squeeze=self.squeeze)[0]


def load_views(
    path: str,
    spec: ViewSpec,
    *,
    decoder: Decoder = "auto",
    timeout: float = 60.0,
    max_pixels: int = MAX_FRAME_PIXELS,
) -> Tensor:
    """Load the views uint8 [num_clips * num_crops, 3, T, S, S] of a video, decoding every frame once; raises DecodeError."""
    with memory_of_video(path):
        crops = read_frames(path, spec.choose, [spec.cut], decoder=decoder, timeout=timeout, max_pixels=max_pixels)
        return spec.views(crops)


class VideoViews(Dataset):
    """All test views of every video of a table; the key is the index of the video."""

    def __init__(self, reader: VideoReader, spec: ViewSpec) -> None:
        self.reader = reader
        self.spec = spec

    def __len__(self) -> int:
        return len(self.reader.table)

    def __getitem__(self, index: int) -> list[Sample]:
        path, label = self.reader.table[index]
        try:
            with self.reader.reading(index):
                views = self.spec.views(self.reader.cuts(index, self.spec.choose, [self.spec.cut]))
            return [Sample(views, label, index, refusals=self.reader.taken_refusals())]
        except DecodeError as error:
            spec = self.spec
            shape = (spec.num_clips * spec.num_crops, 3, spec.clip.num_frames, spec.crop_size, spec.crop_size)
            return [Sample(torch.zeros(shape, dtype=torch.uint8), label, index, False, (BadVideo(path, str(error)),))]


def sample_seed(*parts: int) -> int:
    """Mix a 62-bit seed of a sample (splitmix64), the same wherever and whenever the sample is made."""
    value = 0
    for part in parts:
        value = (value + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value >> 2
