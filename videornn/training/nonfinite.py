"""Handle gradients that are not finite: record the steps and videos, and decide when to stop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from videornn.data.annotations.load import VideoTable
from videornn.distributed import ranks
from videornn.errors import UserError
from videornn.system.files import append_table
from videornn.training.meter import StepRecord

COLUMNS = ["step", "rank", "loss", "grad_norm", "path"]
LONGEST_SCALE_SEARCH = 25  # steps in a row that fp16 may skip: its loss scale begins at 2^16 and halves each time


@dataclass
class NonfiniteGuard:
    """A guard that stops a run whose gradient is not finite, or counts the skipped steps, and writes down their videos.

    Args:
        path: the CSV file that rank 0 writes videos to.
        action: stop, or skip up to max_skipped steps.
        fp16: whether steps are also skipped to find a loss scale, which is no fault as long as the loss is finite.
        num_skipped: steps skipped so far.
    """

    path: Path
    table: VideoTable
    action: str
    max_skipped: int
    fp16: bool
    num_skipped: int = 0
    _searching: int = 0  # steps in a row that fp16 skipped

    def check(self, records: list[StepRecord]) -> None:
        """Check the steps of this rank since the last call; collective.

        Raises:
            UserError: one of them was not finite and the run is to stop, or too many were skipped.
        """
        for record in records:
            if math.isfinite(record.grad_norm):  # the norm is the same on every rank, so all of them take the same branch
                self._searching = 0
                continue
            losses = ranks.gather_objects((record.loss, [self.table.path(index) for index in record.indices]))
            self._searching += 1
            if self.fp16 and all(math.isfinite(loss) for loss, _ in losses) and self._searching <= LONGEST_SCALE_SEARCH:
                continue
            self.num_skipped += 1
            self._write(record, losses)
            if self.action == "stop" or self.num_skipped > self.max_skipped:
                raise UserError(self._sentence(record))

    def _write(self, record: StepRecord, losses: list[tuple[float, list[str]]]) -> None:
        if ranks.rank() == 0:
            rows = [
                [record.step, rank, f"{loss:.6g}", f"{record.grad_norm:.6g}", path]
                for rank, (loss, paths) in enumerate(losses)
                for path in paths
            ]
            append_table(self.path, COLUMNS, rows)

    def _sentence(self, record: StepRecord) -> str:
        ways = "train.clip_norm and train.precision=fp32 may help; a lower train.lr or a longer warm-up take a new run"
        if self.action == "skip":
            return (
                f"{self.num_skipped} steps had a gradient that is not finite, more than train.max_skipped="
                f"{self.max_skipped}, the last step {record.step}; their videos are in {self.path}; with --resume a larger "
                f"train.max_skipped, {ways}"
            )
        return (
            f"the gradient of step {record.step} is not finite (loss {record.loss:.6g}); the videos of its batch are in "
            f"{self.path}, and no checkpoint has it in; with --resume train.nonfinite=skip leaves such steps out, {ways}"
        )
