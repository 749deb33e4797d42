"""Map-style datasets: training clips by (epoch, index), test views by index. A sample is a pure function of its key.

A video that cannot be decoded never stops a loader: in training the next sound video of the epoch's order stands in for
it, with its own label, and in evaluation its row is marked invalid; both carry the reason along.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from videornn.data.annotations import VideoTable
from videornn.data.decoding import Decoder, open_video
from videornn.data.sampling import ClipSpec, sample_random_clip, uniform_clips
from videornn.data.transforms import TrainTransform, crop_views
from videornn.errors import DecodeError, UserError

MAX_REPLACEMENTS = 10


@dataclass(frozen=True)
class BadVideo:
    """A video that could not be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Sample:
    """One row of a batch: clips uint8 [3, T, H, W] (training) or [V, 3, T, H, W] (test views), label, index of the video.

    valid is False, and clips is all zeros, where an evaluated video is bad.
    """

    clips: Tensor
    label: int
    index: int
    valid: bool = True
    bad: tuple[BadVideo, ...] = ()


class TrainClips(Dataset):
    """Random training clips of a table of videos; the key is (epoch, index)."""

    def __init__(
        self,
        table: VideoTable,
        spec: ClipSpec,
        *,
        transform: TrainTransform,
        seed: int,
        decoder: Decoder = "auto",
    ) -> None:
        self.table = table
        self.spec = spec
        self.transform = transform
        self.seed = seed
        self.decoder = decoder

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        bad = []
        for attempt in range(MAX_REPLACEMENTS):
            candidate = (index + attempt) % len(self.table)
            path, label = self.table[candidate]
            try:
                clip, label = self._clip(path, label, sample_seed(self.seed, epoch, candidate))
                return Sample(clip, label, candidate, bad=tuple(bad))
            except DecodeError as error:
                bad.append(BadVideo(path, str(error)))
        raise UserError(f"{MAX_REPLACEMENTS} videos in a row cannot be decoded; the last: {bad[-1].reason}")

    def _clip(self, path: str, label: int, seed: int) -> tuple[Tensor, int]:
        video = open_video(path, self.decoder)
        try:
            frames = video.frames_at(sample_random_clip(self.spec, video.num_frames, video.fps, seed))
        finally:
            video.close()
        return self.transform(frames, label, torch.Generator().manual_seed(seed + 1))


@dataclass(frozen=True)
class ViewSpec:
    """The test views of a video: num_clips clips over its length, num_crops square crops of each."""

    clip: ClipSpec
    num_clips: int
    num_crops: int
    crop_size: int
    short_side: int
    squeeze: bool = False
    decoder: Decoder = "auto"


def load_views(path: str, spec: ViewSpec) -> Tensor:
    """Views uint8 [num_clips * num_crops, 3, T, H, W] of a video, every frame decoded once; raises DecodeError."""
    video = open_video(path, spec.decoder)
    try:
        indices = uniform_clips(spec.clip, video.num_frames, video.fps, spec.num_clips)  # [num_clips, T]
        wanted, where = indices.unique(return_inverse=True)
        frames = video.frames_at(wanted)
    finally:
        video.close()
    crops = [
        crop_views(frames[clip], spec.crop_size, spec.short_side, spec.num_crops, squeeze=spec.squeeze) for clip in where
    ]
    return torch.cat(crops)


class VideoViews(Dataset):
    """All test views of every video of a table; the key is the index of the video."""

    def __init__(self, table: VideoTable, spec: ViewSpec) -> None:
        self.table = table
        self.spec = spec

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Sample:
        path, label = self.table[index]
        try:
            return Sample(load_views(path, self.spec), label, index)
        except DecodeError as error:
            size = self.spec.crop_size
            shape = (self.spec.num_clips * self.spec.num_crops, 3, self.spec.clip.num_frames, size, size)
            return Sample(torch.zeros(shape, dtype=torch.uint8), label, index, False, (BadVideo(path, str(error)),))


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """A well-mixed 62-bit seed of a sample (splitmix64), equal wherever and whenever the sample is made."""
    value = 0
    for part in (seed, epoch, index):
        value = (value + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value >> 2
