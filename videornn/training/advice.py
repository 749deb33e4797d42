"""Say in a sentence what a training run lacks on this machine, and which settings need less of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from videornn.distributed import ranks
from videornn.errors import UserError
from videornn.system.memory import is_lack_of_memory

if TYPE_CHECKING:
    from videornn.training.logger import RunLogger
    from videornn.training.run import Run


@contextmanager
def errors_of_a_step(run: Run, logger: RunLogger) -> Iterator[None]:
    """Turn errors of what the machine lacks into a sentence about the settings that need it; also of a lost run folder."""
    try:
        yield
    except FileNotFoundError:
        logger.check_place()
        raise
    except (RuntimeError, MemoryError) as error:
        if sentence := what_is_lacking(run, error):
            raise UserError(sentence) from error
        raise


def what_is_lacking(run: Run, error: Exception) -> str | None:
    """Return whether memory or a deterministic kernel is lacking, in words; None if an error is about something else."""
    operator, lack, _ = str(error).partition(" does not have a deterministic implementation")
    if lack:
        return (
            f"train.deterministic: torch {torch.__version__} cannot compute {operator} on {run.device.type} with the same "
            f"bits every time; a newer torch may, or leave it out"
        )
    if not is_lack_of_memory(error):
        return None
    return (
        f"rank {ranks.rank()} is out of memory in step {run.step + 1} with {run.clips_at_once} clips at once; "
        f"{_ways_to_need_less(run)}a smaller data.crop_size or data.num_frames needs less in a new run"
    )


def _ways_to_need_less(run: Run) -> str:
    """List the settings left to resume a run with less memory, and what they entail."""
    num_parts, ways = 2 * run.config.train.accumulate, []
    if all(shape.num_videos % (ranks.num_ranks() * num_parts) == 0 for shape in run.plan.shapes):
        ways.append(f"train.accumulate={num_parts} (half as many at once, no other result but for batch norm)")
    if not run.config.model.recompute_blocks:
        ways.append("model.recompute_blocks=true")
    return f"{' or '.join(ways)} needs less, also with --resume; " if ways else ""


@contextmanager
def memory_of_validation(run: Run) -> Iterator[None]:
    """Turn a lack of memory into a sentence about the settings of validation, which has no gradient to make in parts."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        assert run.data.val is not None
        views = min(run.config.test.batch_size, len(run.data.val))
        advice = f"test.batch_size={views // 2}" if views > 1 else "a lower test.crop_size"
        raise UserError(
            f"rank {ranks.rank()} is out of memory in the validation after step {run.step} with {views} videos at "
            f"once; {advice} needs less, also with --resume"
        ) from error
