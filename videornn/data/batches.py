"""Put clips into batches: in a resumable, rank-aware order for training, every video once for testing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from videornn.data.dataset import ClipKey, sample_seed
from videornn.data.plan import BatchPlan
from videornn.errors import UserError
from videornn.schema import ClassSampling


class TrainBatches(Sampler[list[ClipKey]]):
    """Batches of keys of one rank, from step first_step to the last of the plan; accumulate batches are a step.

    Each epoch is an order of all videos, of which a step takes the part that the plan gives it. Rank r of n takes the r-th
    of n equal parts of that, cut again into accumulate equal batches: a step sees the same samples for any number of ranks
    and batches. With class_sampling "natural" the order is a permutation; "sqrt" and "balanced" draw as many videos with
    replacement, with classes as likely as the square root of their size, or equally likely.

    Raises:
        UserError: the videos of a step do not divide by ranks and batches.
    """

    def __init__(
        self,
        labels: Tensor,
        plan: BatchPlan,
        *,
        seed: int,
        class_sampling: ClassSampling = "natural",
        first_step: int = 0,
        accumulate: int = 1,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        for shape in plan.shapes:
            if shape.num_videos % (num_ranks * accumulate):
                raise UserError(
                    f"a step of {shape.num_videos} videos cannot be divided equally over ranks x train.accumulate = "
                    f"{num_ranks} x {accumulate} batches; change train.batch_size, train.accumulate or the number of ranks"
                )
        self.labels = labels
        self.plan = plan
        self.seed = seed
        self.class_sampling = class_sampling
        self.first_step = first_step
        self.accumulate = accumulate
        self.rank = rank
        self.num_ranks = num_ranks

    def __iter__(self) -> Iterator[list[ClipKey]]:
        return self.from_step(self.first_step)

    def after(self, num_batches: int) -> Iterator[list[ClipKey]]:
        """Return what is left of the batches when so many are gone."""
        steps, batches = divmod(num_batches, self.accumulate)
        return itertools.islice(self.from_step(self.first_step + steps), batches, None)

    def from_step(self, step: int) -> Iterator[list[ClipKey]]:
        """Yield the batches from a step on, a pure function of the seed and the step."""
        plans = map(self.plan.step_at, range(step, self.plan.num_steps))
        for epoch, steps in itertools.groupby(plans, key=lambda plan: plan.epoch):
            order, draws = self._epoch(epoch)
            for plan in steps:
                shape = plan.shape
                share = shape.num_videos // self.num_ranks
                start = plan.first + self.rank * share
                size = share // self.accumulate
                for first in range(start, start + share, size):
                    rows = zip(order[first : first + size].tolist(), draws[first : first + size].tolist(), strict=True)
                    yield [ClipKey(epoch, index, draw, shape.num_frames, shape.crop_size) for index, draw in rows]

    def _epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Draw the order of an epoch, and count how often each video came earlier in it; both int64 [N]."""
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
    """Count for every entry the equal ones before it, int64 [N]."""
    by_value = order.argsort(stable=True)
    _, counts = order[by_value].unique_consecutive(return_counts=True)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    times = torch.empty_like(order)
    times[by_value] = torch.arange(len(order)) - starts
    return times


class EvalBatches(Sampler[list[int]]):
    """Batches of every num_ranks-th of some videos, starting with rank; none is repeated to even out the ranks."""

    def __init__(self, indices: Sequence[int], batch_size: int, *, rank: int = 0, num_ranks: int = 1) -> None:
        indices = indices[rank::num_ranks]
        self.batches = [list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return self.after(0)

    def after(self, num_batches: int) -> Iterator[list[int]]:
        """Return what is left of the batches when so many are gone."""
        return iter(self.batches[num_batches:])
