"""Plan the shape of every step and its part of an epoch: integer arithmetic of the step alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from videornn.errors import UserError


@dataclass(frozen=True)
class BatchShape:
    """The batch of a step over all ranks: num_videos videos, clips of num_frames frames of crop_size^2 pixels."""

    num_videos: int
    num_frames: int
    crop_size: int

    @property
    def num_pixels(self) -> int:
        """Pixels of one clip of every video, to which the work of a step is proportional."""
        return self.num_videos * self.num_frames * self.crop_size**2


@dataclass(frozen=True)
class Phase:
    """num_epochs epochs whose steps take the shapes in turn.

    An epoch begins with the first shape and ends where the next batch would no longer fit. lr_factor is the learning rate as
    a multiple of the base one; multigrid's long cycle sets it.
    """

    num_epochs: int
    shapes: tuple[BatchShape, ...]
    lr_factor: float = 1.0


class StepPlan(NamedTuple):
    """What a step takes: its epoch, its number there of num_steps, its first entry in the epoch's order, shape and phase."""

    epoch: int
    step: int
    num_steps: int
    first: int
    shape: BatchShape
    phase: Phase


class BatchPlan:
    """Phases of training on a set of num_videos videos; everything follows from the number of the step.

    Raises:
        UserError: a batch is larger than the set.
    """

    def __init__(self, num_videos: int, phases: Sequence[Phase]) -> None:
        self.num_videos, self.phases = num_videos, tuple(phases)
        self.shapes = tuple(dict.fromkeys(shape for phase in self.phases for shape in phase.shapes))
        largest = max(self.shapes, key=lambda shape: shape.num_videos)
        if largest.num_videos > num_videos:
            way_out = "lower train.batch_size" + (" or turn train.multigrid off" if len(self.shapes) > 1 else "")
            raise UserError(
                f"a batch of {largest.num_videos} videos ({largest.num_frames} frames, {largest.crop_size} pixels) is "
                f"larger than the training set of {num_videos} videos; {way_out}"
            )
        self._epoch_steps = [_steps_per_epoch(num_videos, phase.shapes) for phase in self.phases]
        lengths = [phase.num_epochs * steps for phase, steps in zip(self.phases, self._epoch_steps, strict=True)]
        # the beginning of every phase, and the end of the last one
        self._epochs = [0, *accumulate(phase.num_epochs for phase in self.phases)]
        self._steps = [0, *accumulate(lengths)]

    @property
    def num_epochs(self) -> int:
        return self._epochs[-1]

    @property
    def num_steps(self) -> int:
        return self._steps[-1]

    def step_at(self, step: int) -> StepPlan:
        """Return the plan of a step in [0, num_steps); raises ValueError for any other."""
        if not 0 <= step < self.num_steps:
            raise ValueError(f"step {step} is not in a plan of {self.num_steps} steps")
        number = bisect_right(self._steps, step) - 1
        phase, epoch_steps = self.phases[number], self._epoch_steps[number]
        epoch, step_in_epoch = divmod(step - self._steps[number], epoch_steps)
        cycles, turn = divmod(step_in_epoch, len(phase.shapes))
        sizes = [shape.num_videos for shape in phase.shapes]
        first = cycles * sum(sizes) + sum(sizes[:turn])
        return StepPlan(self._epochs[number] + epoch, step_in_epoch, epoch_steps, first, phase.shapes[turn], phase)

    def phase_at(self, epoch: float) -> Phase:
        """Return the phase after this many epochs, in [0, num_epochs]; at the end, the last one."""
        return self.phases[min(bisect_right(self._epochs, epoch), len(self.phases)) - 1]

    def epoch_at(self, step: int) -> float:
        """Return the epochs done before a step in [0, num_steps]; each step of an epoch counts equally."""
        if step == self.num_steps:
            return float(self.num_epochs)
        plan = self.step_at(step)
        return plan.epoch + plan.step / plan.num_steps

    def ends_epoch(self, num_steps: int) -> bool:
        """Return whether an epoch is complete after this many steps."""
        if num_steps == 0:
            return False
        plan = self.step_at(num_steps - 1)
        return plan.step + 1 == plan.num_steps


def _steps_per_epoch(num_videos: int, shapes: tuple[BatchShape, ...]) -> int:
    sizes = [shape.num_videos for shape in shapes]
    cycles, left = divmod(num_videos, sum(sizes))
    return cycles * len(sizes) + sum(end <= left for end in accumulate(sizes))
