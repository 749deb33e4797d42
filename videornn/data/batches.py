"""Which videos are in which batch: a resumable, rank-aware order for training, every video once for testing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Sampler

from videornn.data.dataset import sample_seed


class TrainBatches(Sampler[list[tuple[int, int, int]]]):
    """Batches of (epoch, index, draw) keys of one rank, from step first_step on, epoch after epoch, for ever.

    Each epoch is an order of all videos cut into batches of batch_size (the incomplete last one is left out); rank r of n
    takes the r-th of n equal parts of every batch, so a step sees the same samples whatever the number of ranks. With
    class_sampling "natural" the order is a permutation; "sqrt" and "balanced" draw as many videos, with replacement and
    with classes as likely as the square root of their size, or equally likely. draw counts how often the epoch has had
    the video before.

    Raises:
        ValueError: the set is smaller than a batch, or a batch does not divide by the number of ranks.
    """

    def __init__(
        self,
        labels: Tensor,
        batch_size: int,
        *,
        seed: int,
        class_sampling: Literal["natural", "sqrt", "balanced"] = "natural",
        first_step: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        if batch_size > len(labels):
            raise ValueError(f"a batch of {batch_size} videos is larger than the training set of {len(labels)} videos")
        if batch_size % num_ranks:
            raise ValueError(f"a batch of {batch_size} videos cannot be divided equally over {num_ranks} ranks")
        self.labels = labels
        self.batch_size = batch_size
        self.seed = seed
        self.class_sampling = class_sampling
        self.first_step = first_step
        self.part = slice(rank * batch_size // num_ranks, (rank + 1) * batch_size // num_ranks)
        self.steps_per_epoch = len(labels) // batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        return self.from_step(self.first_step)

    def from_step(self, step: int) -> Iterator[list[tuple[int, int, int]]]:
        """The batches from a step on, a pure function of the seed and the step."""
        first_epoch, first = divmod(step, self.steps_per_epoch)
        for epoch in itertools.count(first_epoch):
            order, draws = self._epoch(epoch)
            for start in range(first * self.batch_size, self.steps_per_epoch * self.batch_size, self.batch_size):
                places = range(start, start + self.batch_size)[self.part]
                yield [(epoch, int(order[place]), int(draws[place])) for place in places]
            first = 0

    def _epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Indices of all places of an epoch, and how often each was there before, int64 [N] both."""
        generator = torch.Generator().manual_seed(sample_seed(self.seed, epoch))
        num_videos = len(self.labels)
        if self.class_sampling == "natural":
            return torch.randperm(num_videos, generator=generator), torch.zeros(num_videos, dtype=torch.int64)
        _, classes, sizes = self.labels.unique(return_inverse=True, return_counts=True)
        weights = sizes.double() ** (-0.5 if self.class_sampling == "sqrt" else -1.0)
        # inverse of the cumulative distribution: torch.multinomial takes no more than 2^24 videos
        ends = weights[classes].cumsum(0)
        order = torch.searchsorted(ends, torch.rand(num_videos, generator=generator, dtype=torch.float64) * ends[-1])
        return order, _times_before(order)


def _times_before(order: Tensor) -> Tensor:
    """For every entry, how many equal ones precede it, int64 [N]."""
    by_value = order.argsort(stable=True)
    _, counts = order[by_value].unique_consecutive(return_counts=True)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    times = torch.empty_like(order)
    times[by_value] = torch.arange(len(order)) - starts
    return times


class TestBatches(Sampler[list[int]]):
    """Batches of the indices of every num_ranks-th video from rank on; none is repeated to even out the ranks."""

    __test__ = False  # for pytest: this is no test

    def __init__(self, num_videos: int, batch_size: int, *, rank: int = 0, num_ranks: int = 1) -> None:
        indices = range(rank, num_videos, num_ranks)
        self.first_step = 0
        self.batches = [list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return self.from_step(self.first_step)

    def from_step(self, step: int) -> Iterator[list[int]]:
        """The batches from a step on."""
        return iter(self.batches[step:])
