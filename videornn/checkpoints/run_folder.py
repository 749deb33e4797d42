"""The checkpoints of a run, of which one is sound at any instant: last.pt, best.pt, and the newest few step_STEP.pt."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from videornn.checkpoints.checkpoint import content_bytes, damage, load_checkpoint, save_checkpoint
from videornn.errors import UserError
from videornn.system.files import replacing, sync_folder, telling_if_full


def save_last(folder: Path, content: dict[str, Any] | memoryview, step: int, keep: int, *, best: bool = False) -> Path:
    """Write step_STEP.pt, and make last.pt another name of it.

    Args:
        folder: the run's folder of checkpoints; nobody else may be writing into it (run_lock).
        content: as save_checkpoint takes it.
        keep: step files that stay: this one and the newest before it. Those of later steps, which a resumed run left
            behind as it went on from an earlier one, go.
        best: make best.pt another name of it too.

    Raises:
        UserError: the disk is full; last.pt is the one before.
    """
    _remove_leftovers(folder)  # first, for they can be what fills the disk
    path = folder / f"step_{step:08d}.pt"
    save_checkpoint(path, content, training=True)
    if best:  # before last.pt: a run killed between the two does this step again, and would not look for a best.pt behind it
        _link(path, folder / "best.pt", content)
    _link(path, folder / "last.pt", content)
    for file in set(_step_files(folder)) - set(_step_files(folder, up_to=step)[-keep:]):
        file.unlink(missing_ok=True)
    return path


def save_best(folder: Path, content: dict[str, Any] | memoryview) -> Path:
    """Write best.pt where no save_last is due."""
    _remove_leftovers(folder)
    save_checkpoint(folder / "best.pt", content, training=True)
    return folder / "best.pt"


def load_newest(folder: Path) -> tuple[dict[str, Any], Path, list[str]] | None:
    """The checkpoint to go on from: last.pt, or the newest step file that is sound.

    Returns:
        Its content, its path, and a sentence for every damaged file that it stands in for; None if there is neither last.pt
        nor a step file.

    Raises:
        UserError: there are such files, but none is sound; or the sound one is not a checkpoint of videornn.
    """
    last, damaged = folder / "last.pt", dict[Path, str]()
    candidates = _candidates(folder)
    for path in candidates:
        if any(path.samefile(other) for other in damaged):  # last.pt is another name of a step file
            continue
        if reason := damage(path):
            damaged[path] = reason
            continue
        missing = [] if last.exists() else [f"last.pt is missing; going on from {path.name}"]
        remarks = [f"{other.name} is damaged ({why}); going on from {path.name}" for other, why in damaged.items()]
        return load_checkpoint(path), path, missing + remarks
    if not candidates:
        return None
    reasons = ", ".join(f"{path.name} ({reason})" for path, reason in damaged.items())
    raise UserError(f"no checkpoint in {folder} is sound: {reasons}; start anew in another --out")


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a file, sound or not, that load_newest would look at."""
    return bool(_candidates(folder))


def results_folder(checkpoint: str | Path) -> Path:
    """Where the results of testing a checkpoint go by default: RUN/test, or NAME_test beside a file that is in no run.

    A link is where it lies, not where it leads.
    """
    path = Path(os.path.abspath(checkpoint))
    run = path.parent.parent
    if path.parent.name == "checkpoints" and (run / "config.yaml").is_file():
        return run / "test"
    return path.with_name(f"{path.stem}_test")


def _candidates(folder: Path) -> list[Path]:
    return [path for path in (folder / "last.pt", *reversed(_step_files(folder))) if path.exists()]


def _step_files(folder: Path, up_to: int | None = None) -> list[Path]:
    """The step files of a folder, oldest first."""
    steps = {path: path.stem.removeprefix("step_") for path in folder.glob("step_*.pt")}
    numbers = {path: int(step) for path, step in steps.items() if step.isdecimal()}
    return sorted((path for path, step in numbers.items() if up_to is None or step <= up_to), key=numbers.__getitem__)


def _link(source: Path, path: Path, content: dict[str, Any] | memoryview) -> None:
    """Make path another name of source, or a copy where the file system has no such links, at once or not at all."""
    with telling_if_full(path, content_bytes(content), training=True), replacing(path) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # each file system without hard links says so in its own way
            shutil.copyfile(source, temporary)
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())
    sync_folder(path.parent)


def _remove_leftovers(folder: Path) -> None:
    """Take away what a process that was killed has left; a process number says nothing in a container that was restarted."""
    for leftover in folder.glob(".*.pt.*.tmp"):
        leftover.unlink(missing_ok=True)
