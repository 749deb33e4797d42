"""Plan multigrid training: many small clips first, few full ones last (Wu et al. 2020, arXiv:1912.00998), as in SlowFast.

A clip of t frames and s^2 pixels costs t s^2, so for the same work a step can take T S^2 / (t s^2) times as many clips as of
the base shape (T, S). The long cycle goes through four shapes, coarse to fine, within every stage of the step schedule; the
short cycle goes through three crops from step to step.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

from videornn.data.plan import BatchShape, Phase
from videornn.errors import UserError

if TYPE_CHECKING:
    from videornn.schema import TrainConfig

# frames and crop size of the long cycle's shapes, and crop sizes of the short cycle before its last, relative to the base
LONG_CYCLE = ((0.25, 0.5**0.5), (0.5, 0.5**0.5), (0.5, 1.0), (1.0, 1.0))
SHORT_CYCLE = (0.5, 0.5**0.5)


def multigrid_phases(base: BatchShape, section: TrainConfig) -> tuple[Phase, ...]:
    """Plan the phases of a run of base-shaped batches; with neither cycle there is one phase of them.

    Batches are whole multiples of the base batch, so whatever divides that divides them all. With the long cycle the phases
    also set the learning rate (lr_factor): step_factor^k in stage k, times the multiple of the base batch. With only the
    short cycle lr_factor is 1: the run's schedule applies, with epochs and step_epochs times epoch_factor.

    Args:
        section: the train section of a config, whose epochs and steps are those of the run without multigrid.

    Raises:
        UserError: the long cycle has no steps to follow, or clips too short for it; no epoch is left.
    """
    epochs, step_epochs, short_cycle = section.epochs, section.step_epochs, section.multigrid.short_cycle
    epoch_factor = section.multigrid.epoch_factor
    if not section.multigrid.long_cycle:
        num_epochs = int(epochs * Fraction(epoch_factor)) if short_cycle else epochs
        return _of_some_epochs([Phase(num_epochs, _shapes(base, base, short_cycle))], epoch_factor)
    _check_long_cycle(base, epochs, step_epochs)
    bases = [_resized(base, round(base.num_frames * frames), round(base.crop_size * size)) for frames, size in LONG_CYCLE]
    cycles = [_shapes(shape, base, short_cycle) for shape in bases]
    batches = [Fraction(sum(shape.num_videos for shape in shapes), len(shapes) * base.num_videos) for shapes in cycles]

    # all shapes take equally many steps of a stage, so epochs in proportion to their mean batch; the steps after the last
    # stage, all of the base shape, are reduced by the same factor as those before
    stage_epochs = [Fraction(end) - Fraction(start) for start, end in pairwise((0, *step_epochs))]
    lengths = [stage * batch / sum(batches) for stage in stage_epochs for batch in batches]
    lengths.append((epochs - Fraction(step_epochs[-1])) * len(batches) / sum(batches) * batches[-1])
    scale = epochs * Fraction(epoch_factor) / sum(lengths)
    ends = [round(scale * sum(lengths[: number + 1])) for number in range(len(lengths))]

    phases, start = [], 0
    for number, end in enumerate(ends[:-1]):
        stage, place = divmod(number, len(cycles))
        batch_factor = bases[place].num_videos // base.num_videos
        phases.append(Phase(end - start, cycles[place], batch_factor * section.step_factor**stage))
        start = end
    # fine-tuning: the first half at the learning rate reached, the second half at the next one
    middle = (start + ends[-1]) // 2
    phases.append(Phase(middle - start, cycles[-1], phases[-1].lr_factor))
    phases.append(Phase(ends[-1] - middle, cycles[-1], section.step_factor ** len(step_epochs)))
    return _of_some_epochs(phases, epoch_factor)


def norm_clips(base: BatchShape, *, clips_per_video: int = 1, accumulate: int = 1, num_ranks: int = 1) -> int:
    """Return the clips whose statistics batch norm takes together in every phase: a rank's batch of the base shape.

    The paper keeps this number (BN_BASE_SIZE, 8 clips, in SlowFast) while batches grow: statistics of more clips regularise
    less. A rank's batches of the other shapes are whole multiples of it.
    """
    return base.num_videos * clips_per_video // (accumulate * num_ranks)


def _check_long_cycle(base: BatchShape, epochs: int, step_epochs: tuple[float, ...]) -> None:
    if not step_epochs:
        raise UserError("train.multigrid.long_cycle follows the steps of train.schedule: step; give train.step_epochs")
    if step_epochs[-1] >= epochs:
        raise UserError(
            f"train.multigrid.long_cycle fine-tunes after the last step, so train.step_epochs={list(step_epochs)} must end "
            f"before train.epochs={epochs}; raise train.epochs"
        )
    if base.num_frames < 4:
        raise UserError(
            f"data.num_frames={base.num_frames} cannot be cut to a quarter for train.multigrid.long_cycle; take 4 or more"
        )


def _of_some_epochs(phases: list[Phase], epoch_factor: float) -> tuple[Phase, ...]:
    """Drop empty phases, which rounding can leave in short runs."""
    kept = tuple(phase for phase in phases if phase.num_epochs > 0)
    if not kept:
        raise UserError(f"train.multigrid.epoch_factor={epoch_factor:g} leaves no epoch; raise it or train.epochs")
    return kept


def _shapes(shape: BatchShape, base: BatchShape, short_cycle: bool) -> tuple[BatchShape, ...]:
    """Return the shapes that the steps of a phase take in turn: in the short cycle smaller crops of the base come first."""
    if not short_cycle:
        return (shape,)
    smaller = [_resized(shape, shape.num_frames, round(base.crop_size * size)) for size in SHORT_CYCLE]
    return (*smaller, shape)


def _resized(shape: BatchShape, num_frames: int, crop_size: int) -> BatchShape:
    """Return a batch of this clip shape, larger by the whole number of times that its clips are smaller."""
    factor = round(shape.num_frames * shape.crop_size**2 / (num_frames * crop_size**2))
    return BatchShape(factor * shape.num_videos, num_frames, crop_size)
