"""Loaders: an endless, resumable, rank-aware order of training samples, and every test video exactly once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from videornn.data.annotations import VideoTable
from videornn.data.dataset import BadVideo, Sample, TrainClips, VideoViews, ViewSpec
from videornn.data.sampling import ClipSpec
from videornn.data.transforms import train_transform
from videornn.errors import UserError

if TYPE_CHECKING:
    from videornn.config import DataConfig, TestConfig


@dataclass(frozen=True)
class Batch:
    """clips uint8 [B, ...], labels int64 [B], indices int64 [B] into the table, valid bool [B], and the bad videos met."""

    clips: Tensor
    labels: Tensor
    indices: Tensor
    valid: Tensor
    bad: list[BadVideo]

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; called by DataLoader."""
        return Batch(self.clips.pin_memory(), self.labels.pin_memory(), self.indices, self.valid.pin_memory(), self.bad)


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) keys of one rank, from step first_step on, epoch after epoch, for ever.

    Each epoch is a permutation cut into batches of batch_size (the incomplete last one is left out); rank r of n takes the
    r-th of n equal parts of every batch, so a step sees the same samples whatever the number of ranks.

    Raises:
        ValueError: the set is smaller than a batch, or a batch does not divide by the number of ranks.
    """

    def __init__(
        self, num_videos: int, batch_size: int, *, seed: int, first_step: int = 0, rank: int = 0, num_ranks: int = 1
    ) -> None:
        if batch_size > num_videos:
            raise ValueError(f"a batch of {batch_size} clips is larger than the training set of {num_videos} videos")
        if batch_size % num_ranks:
            raise ValueError(f"a batch of {batch_size} clips cannot be divided equally over {num_ranks} ranks")
        self.num_videos = num_videos
        self.batch_size = batch_size
        self.seed = seed
        self.first_step = first_step
        self.part = slice(rank * batch_size // num_ranks, (rank + 1) * batch_size // num_ranks)
        self.steps_per_epoch = num_videos // batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first = divmod(self.first_step, self.steps_per_epoch)
        while True:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            order = torch.randperm(self.num_videos, generator=generator).tolist()
            for step in range(first, self.steps_per_epoch):
                batch = order[step * self.batch_size : (step + 1) * self.batch_size]
                yield [(epoch, index) for index in batch[self.part]]
            epoch, first = epoch + 1, 0


def build_loader(
    section: DataConfig,
    table: VideoTable,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    rank: int = 0,
    num_ranks: int = 1,
    pin_memory: bool = False,
) -> DataLoader:
    """Endless training loader of one rank, from step first_step on; batch_size counts the clips of all ranks.

    Raises:
        UserError: the batch is larger than the set, or does not divide by the number of ranks.
    """
    dataset = TrainClips(
        table,
        clip_spec(section),
        transform=train_transform(section, table.class_names),
        seed=seed,
        decoder=section.decoder,
    )
    try:
        batches = TrainBatches(len(table), batch_size, seed=seed, first_step=first_step, rank=rank, num_ranks=num_ranks)
    except ValueError as error:
        raise UserError(f"train.batch_size={batch_size}: {error}") from error
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=section.num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=_init_worker,
        prefetch_factor=4 if section.num_workers else None,
    )


def build_test_loader(
    table: VideoTable,
    spec: ViewSpec,
    *,
    batch_size: int,
    num_workers: int,
    pin_memory: bool = False,
    rank: int = 0,
    num_ranks: int = 1,
) -> DataLoader:
    """Loader of the views of every num_ranks-th video from rank on; no video is repeated to even out the ranks."""
    return DataLoader(
        VideoViews(table, spec),
        batch_size=batch_size,
        sampler=range(rank, len(table), num_ranks),
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=_init_worker,
    )


def clip_spec(section: DataConfig) -> ClipSpec:
    """How the data section of a config takes a clip from a video."""
    return ClipSpec(section.num_frames, section.temporal_stride, section.sampling_fps, section.sampling, section.frame_order)


def view_spec(section: DataConfig, test: TestConfig) -> ViewSpec:
    """The test views that a config asks for."""
    return ViewSpec(clip_spec(section), test.num_clips, test.num_crops, test.crop_size, test.short_side, section.decoder)


def collate(samples: list[Sample]) -> Batch:
    """Stack samples into a Batch."""
    return Batch(
        clips=torch.stack([sample.clips for sample in samples]),
        labels=torch.tensor([sample.label for sample in samples]),
        indices=torch.tensor([sample.index for sample in samples]),
        valid=torch.tensor([sample.valid for sample in samples]),
        bad=[bad for sample in samples for bad in sample.bad],
    )


def _init_worker(worker_id: int) -> None:
    # Ctrl-C reaches the whole process group; the training process decides when its workers end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # one process per core: threads of a worker would compete with the other workers and the training process
    torch.set_num_threads(1)
