"""Log numbers to metrics.jsonl, to TensorBoard, and to the screen (a progress bar with ETA, or plain lines)."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from videornn.errors import UserError
from videornn.system.console import SafeConsole, printable
from videornn.system.text_files import json_lines

BAR_WIDTH = 12


class RunLogger:
    """A logger of one run's numbers; on ranks other than 0 it does nothing.

    Args:
        folder: the run folder; None on ranks that write nothing.
        num_steps: steps of the whole run, for the progress bar.
        first_step: where a resumed run continues; later lines of an earlier start are removed from metrics.jsonl.
    """

    def __init__(self, folder: Path | None, *, num_steps: int, first_step: int = 0) -> None:
        self._active = folder is not None
        if folder is None:
            return
        self._folder, self._path = folder, folder / "metrics.jsonl"
        _drop_lines_after(self._path, first_step)
        # unbuffered: a line is written as soon as it is logged, and closing the file cannot fail
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
        self._console = SafeConsole()
        self._tensorboard: SummaryWriter | None = None
        with self._tensorboard_may_fail():
            self._tensorboard = SummaryWriter(folder / "tensorboard", purge_step=first_step + 1 if first_step else None)
        self._progress = _progress(self._console) if self._console.is_terminal else None
        self._num_steps, self._first_step, self._start = num_steps, first_step, time.monotonic()
        if self._progress:
            self._task = self._progress.add_task("train", total=num_steps, completed=first_step, note="")
            self._progress.start()

    def log(self, kind: str, step: int, **numbers: float) -> None:
        """Log one line of numbers of a kind (train, val, ...) after a step, on the screen and in both files.

        Raises:
            UserError: metrics.jsonl cannot be written because the disk is full or the folder is gone. TensorBoard's file,
                which shows the same numbers, is given up with a remark.
        """
        if not self._active:
            return
        self.check_place()
        record = {"kind": kind, "step": step, **{key: _short(value) for key, value in numbers.items()}}
        self._write(json.dumps(record).encode() + b"\n")
        with self._tensorboard_may_fail():
            if self._tensorboard:
                for key, value in numbers.items():
                    self._tensorboard.add_scalar(f"{kind}/{key}", value, step)
        if self._progress and kind == "train":
            # only what fits beside the bar, the count and the ETA: rich would shorten them all
            room = self._console.width - BAR_WIDTH - 2 * len(str(self._num_steps)) - len("  / eta 0:00:00  ")
            parts = _train_note(numbers)
            while parts and len("  ".join(parts)) > room:
                parts.pop()
            self._progress.update(self._task, completed=step, note="  ".join(parts))
        else:
            self.say(f"{kind:5}  {self._line(kind, step, numbers)}")

    def advance(self, step: int) -> None:
        """Show that a step is done."""
        if self._active and self._progress:
            self._progress.update(self._task, completed=step)

    def check_place(self) -> None:
        """Raise UserError if the run folder is gone or replaced, so that a removed folder is not made again."""
        if not self._active:
            return
        try:
            in_place = os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except (FileNotFoundError, NotADirectoryError):
            in_place = False
        if not in_place:
            raise UserError(
                f"{self._folder} was removed, moved or replaced while this run was at work in it, so the run ends and "
                f"writes no more; if it was moved, --out with its new place and --resume go on from its last checkpoint"
            )

    def say(self, text: str) -> None:
        """Print a line for people."""
        if self._active:
            self._console.print(printable(text), soft_wrap=True)

    def close(self) -> None:
        """Flush everything and stop the progress bar."""
        if self._active:
            if self._progress:
                self._progress.stop()
            self._file.close()
            with self._tensorboard_may_fail():
                if self._tensorboard:
                    self._tensorboard.close()
            sys.stdout.flush()

    def _write(self, line: bytes) -> None:
        try:
            while line:  # a disk that becomes full takes part of it
                line = line[self._file.write(line) :]
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be written: {error.strerror}; the last checkpoint stands: make room, then go on with "
                f"--resume"
            ) from error

    @contextmanager
    def _tensorboard_may_fail(self) -> Iterator[None]:
        """Give up TensorBoard on errors: its thread raises that of a full disk at any later call; the run matters more."""
        try:
            yield
        except OSError as error:
            self._tensorboard = None
            self.say(f"TensorBoard's file is given up ({error.strerror}); {self._path} goes on with the same numbers")

    def _line(self, kind: str, step: int, numbers: dict[str, float]) -> str:
        place = f"epoch {numbers['epoch']:.2f}  step {step}/{self._num_steps}"
        if kind == "train":
            return f"{place}  {'  '.join(_train_note(numbers))}  lr {numbers['lr']:.4g}{self._eta(step, kind)}"
        return place + "".join(f"  {key} {_short(value)}" for key, value in numbers.items() if key != "epoch")

    def _eta(self, step: int, kind: str) -> str:
        if kind != "train" or step <= self._first_step:
            return ""
        seconds = (time.monotonic() - self._start) / (step - self._first_step) * (self._num_steps - step)
        return f"  eta {int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def _train_note(numbers: dict[str, float]) -> list[str]:
    """Return the important numbers of a line of training, the most important first."""
    # above 1 if the machine was never idle when it was measured
    mfu = f"{100 * numbers['mfu']:.0f} %" if numbers["mfu"] <= 1 else "> 100 % (rate measured on a busy machine)"
    return [
        f"loss {numbers['loss']:.3f}",
        f"top1 {numbers['top1']:.1f} %",
        f"{numbers['clips_per_second']:.1f} clips/s",
        f"data wait {100 * numbers['data_wait']:.0f} %",
        f"mfu {mfu}",
        f"{numbers['memory_gb']:.1f} GB",
    ]


def _progress(console: SafeConsole) -> Progress:
    columns = (
        BarColumn(bar_width=BAR_WIDTH),
        MofNCompleteColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=console)


def _drop_lines_after(path: Path, step: int) -> None:
    """Remove records of steps that a resumed run will repeat, and an incomplete last line left by a kill or a full disk.

    Raises:
        UserError: a line before the last is no record: the file is not ours, or damaged. Nothing is removed then.
    """
    if not path.exists():
        return
    num_bytes = 0
    for line, record in json_lines(path, lambda record: isinstance(record.get("step"), int)):
        if record["step"] > step:
            break
        num_bytes += len(line)
    os.truncate(path, num_bytes)  # steps ascend, so this is enough, and safe from kills and full disks


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")
