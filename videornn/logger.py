"""Where numbers go: metrics.jsonl, TensorBoard, and the screen (a progress bar with ETA, or plain lines)."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter


class RunLogger:
    """Writes one run's numbers; on ranks other than 0 it does nothing.

    Args:
        folder: the run folder; None on ranks that write nothing.
        num_steps: steps of the whole run, for the progress bar.
        first_step: where a resumed run goes on; later lines of an earlier life are taken out of metrics.jsonl.
    """

    def __init__(self, folder: Path | None, *, num_steps: int, first_step: int = 0) -> None:
        self._active = folder is not None
        if folder is None:
            return
        self._path = folder / "metrics.jsonl"
        _drop_lines_after(self._path, first_step)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._tensorboard = SummaryWriter(folder / "tensorboard", purge_step=first_step + 1 if first_step else None)
        self._console = Console()
        self._progress = _progress(self._console) if self._console.is_terminal else None
        self._num_steps, self._first_step, self._start = num_steps, first_step, time.monotonic()
        if self._progress:
            self._task = self._progress.add_task("train", total=num_steps, completed=first_step, note="")
            self._progress.start()

    def log(self, kind: str, step: int, **numbers: float) -> None:
        """One line of numbers of a kind (train, val, ...) after a step, on the screen and in both files."""
        if not self._active:
            return
        record = {"kind": kind, "step": step, **{key: _short(value) for key, value in numbers.items()}}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for key, value in numbers.items():
            self._tensorboard.add_scalar(f"{kind}/{key}", value, step)
        if self._progress and kind == "train":
            self._progress.update(self._task, completed=step, note=_train_note(numbers))
        else:
            self.say(f"{kind:5}  {self._line(kind, step, numbers)}")

    def say(self, text: str) -> None:
        """A line for people."""
        if self._active:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Flush everything and stop the progress bar."""
        if self._active:
            if self._progress:
                self._progress.stop()
            self._file.close()
            self._tensorboard.close()
            sys.stdout.flush()

    def _line(self, kind: str, step: int, numbers: dict[str, float]) -> str:
        place = f"epoch {numbers['epoch']:.2f}  step {step}/{self._num_steps}"
        if kind == "train":
            return f"{place}  {_train_note(numbers)}  lr {numbers['lr']:.4g}{self._eta(step, kind)}"
        return place + "".join(f"  {key} {_short(value)}" for key, value in numbers.items() if key != "epoch")

    def _eta(self, step: int, kind: str) -> str:
        if kind != "train" or step <= self._first_step:
            return ""
        seconds = (time.monotonic() - self._start) / (step - self._first_step) * (self._num_steps - step)
        return f"  eta {int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def _train_note(numbers: dict[str, float]) -> str:
    return (
        f"loss {numbers['loss']:.3f}  top1 {numbers['top1']:.1f} %  {numbers['clips_per_second']:.1f} clips/s"
        f"  data wait {100 * numbers['data_wait']:.0f} %"
    )


def _progress(console: Console) -> Progress:
    columns = (
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=console)


def _drop_lines_after(path: Path, step: int) -> None:
    """Take out the records of steps that a resumed run will do again (and a half-written last line)."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    path.write_text("".join(kept), encoding="utf-8")


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")
