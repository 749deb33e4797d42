"""The checkpoints of a run, one of which is sound at any time: last.pt, best.pt, and the newest few step_STEP.pt."""

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
        folder: the run's folder of checkpoints; no other process may write into it (run_lock).
        content: as save_checkpoint takes it.
        keep: number of step files that stay: this one and the newest before it. Those of later steps, left behind by a run
            that was resumed from an earlier one, are removed.
        best: make best.pt another name of it too.

    Raises:
        UserError: the disk is full; last.pt is unchanged.
    """
    _remove_leftovers(folder)  # first, because they may be what fills the disk
    path = folder / f"step_{step:08d}.pt"
    save_checkpoint(path, content, training=True)
    if best:  # before last.pt: a run killed between the two repeats this step, but would not look for a best.pt before it
        _link(path, folder / "best.pt", content)
    _link(path, folder / "last.pt", content)
    for file in set(_step_files(folder)) - set(_step_files(folder, up_to=step)[-keep:]):
        file.unlink(missing_ok=True)
    return path


def save_best(folder: Path, content: dict[str, Any] | memoryview) -> Path:
    """Write best.pt when no save_last is due."""
    _remove_leftovers(folder)
    save_checkpoint(folder / "best.pt", content, training=True)
    return folder / "best.pt"


def load_newest(folder: Path) -> tuple[dict[str, Any], Path, list[str]] | None:
    """Load the checkpoint to resume from: last.pt, or the newest sound step file.

    Returns:
        Its content, its path, and a sentence for every damaged file that it replaces; None if there is neither last.pt nor
        a step file.

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
    """Return whether there is a file, sound or not, that load_newest would read."""
    return bool(_candidates(folder))


def results_folder(checkpoint: str | Path) -> Path:
    """Return the default folder for test results of a checkpoint: RUN/test, or NAME_test beside a file outside a run.

    For a link, the folder of the link counts, not that of its target.
    """
    path = Path(os.path.abspath(checkpoint))
    run = path.parent.parent
    if path.parent.name == "checkpoints" and (run / "config.yaml").is_file():
        return run / "test"
    return path.with_name(f"{path.stem}_test")


def _candidates(folder: Path) -> list[Path]:
    return [path for path in (folder / "last.pt", *reversed(_step_files(folder))) if path.exists()]


def _step_files(folder: Path, up_to: int | None = None) -> list[Path]:
    """List the step files of a folder, oldest first."""
    steps = {path: path.stem.removeprefix("step_") for path in folder.glob("step_*.pt")}
    numbers = {path: int(step) for path, step in steps.items() if step.isdecimal()}
    return sorted((path for path, step in numbers.items() if up_to is None or step <= up_to), key=numbers.__getitem__)


def _link(source: Path, path: Path, content: dict[str, Any] | memoryview) -> None:
    """Make path another name of source, or a copy if the file system has no hard links, atomically."""
    with telling_if_full(path, content_bytes(content), training=True), replacing(path) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # file systems without hard links raise different errors
            shutil.copyfile(source, temporary)
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())
    sync_folder(path.parent)


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left; process ids in names are ignored, because a restarted container reuses them."""
    for leftover in folder.glob(".*.pt.*.tmp"):
        leftover.unlink(missing_ok=True)
