"""Load labelled videos from any list or folder: recognise the format and call its reader."""

from __future__ import annotations

import os
import re
from itertools import islice
from pathlib import Path

import numpy as np

from videornn.data.annotations import official as formats
from videornn.data.annotations.find import VIDEO_SUFFIXES
from videornn.data.annotations.labels import load_labels
from videornn.data.annotations.plain import read_list
from videornn.data.annotations.table import VideoTable
from videornn.errors import UserError
from videornn.system.files import is_file

NUM_FEW = 100  # videos of a list whose files are looked for before a job begins

__all__ = [
    "VideoTable",
    "check_files",
    "check_labels",
    "find_source",
    "first_missing",
    "load_labels",
    "load_videos",
    "needs_split",
]


def load_videos(
    source: str,
    *,
    root: str | None = None,
    labels: str | None = None,
    split: str | None = None,
    fold: int = 1,
    on_name: formats.OnName = lambda: None,
) -> VideoTable:
    """Load the videos of a list file or of a folder; its format is recognised.

    A file may have `path label` lines (label: an id or the name of a class; path: of a video or a folder of frames), in any
    of the spellings of plain.py, or be an official list of Kinetics, UCF101 or Something-Something v2. A folder may have a
    folder per class, or hold the official lists of UCF101 or HMDB51. Videos of official lists are searched by name anywhere
    under root; those that are missing are left out and counted.

    Args:
        root: what list paths are relative to, and where the videos of official lists are; by default the list's folder.
        labels: file of class names; by default labels.txt beside the list, if there is one. Without it, the classes are
            the names found, sorted.
        split: train, val or test, where a source holds several; by default all of a Kinetics list. UCF101 and HMDB51 have
            no val: test is taken instead.
        fold: which of the three official splits of UCF101 and HMDB51.
        on_name: called for every file and folder met in a search for videos, which can take minutes.

    Raises:
        UserError: something is missing, lines are wrong (the first ten are told), or a class folder has no video.
    """
    path, root = find_source(source, root=root, split=split, fold=fold)
    if not path.is_dir():
        return _read_file(path, _class_names(path, labels), root, split, on_name)
    class_names = load_labels(labels) if labels else ()
    if formats.hmdb51_files(path):
        assert split is not None  # find_source has demanded it
        return formats.read_hmdb51(path, class_names, root, split, fold, on_name)
    return formats.read_class_folders(path, class_names, on_name)


def find_source(source: str, *, root: str | None, split: str | None, fold: int) -> tuple[Path, str]:
    """Return the list or folder that load_videos reads for these arguments, and what its paths are relative to."""
    source, root = os.path.expanduser(source), root and os.path.expanduser(root)
    path = Path(source)
    there = is_file(source) or os.path.isdir(source)
    if there and not os.access(source, os.R_OK | (os.X_OK if os.path.isdir(source) else 0)):
        raise UserError(f"video list {source} may not be read: ask its owner for permission")
    if split not in (None, *formats.HMDB_CODES):
        raise UserError(f"split {split!r} is not one of {', '.join(formats.HMDB_CODES)}")
    if split is None and needs_split(source):
        raise UserError(f"{source} holds training and test lists: say which are meant, split train or test")
    if formats.is_ucf101_folder(path):
        path = path / f"{'train' if split == 'train' else 'test'}list{fold:02d}.txt"
    if not path.exists():
        raise UserError(f"video list {path} does not exist: give a file of `path label` lines or a folder of class folders")
    if root is not None and not Path(root).is_dir():
        raise UserError(f"data.root {root} is not a folder")
    if not path.is_dir():
        return path, root or str(path.parent)
    return path, (root or source) if formats.hmdb51_files(path) else str(path)


def needs_split(source: str) -> bool:
    """Return whether a source is a folder of official lists, of which load_videos takes those of one split."""
    return formats.is_ucf101_folder(Path(source)) or bool(formats.hmdb51_files(Path(source)))


def check_labels(table: VideoTable, num_classes: int) -> None:
    """Raise UserError if a video has no label, or one that is not in [0, num_classes)."""
    labels = table.labels
    if (labels < 0).any():
        raise UserError(
            f"{table.source} has no labels, which training and testing need and a list has after the paths, such as "
            f"{table.paths[int((labels < 0).argmax())]!r}; `videornn infer` takes videos without labels"
        )
    outside = np.flatnonzero(labels >= num_classes)
    if outside.size:
        path, label = table[int(outside[0])]
        raise UserError(
            f"{table.source}: label {label} of {path} is outside 0..{num_classes - 1} (the model has {num_classes} "
            f"classes); correct the list or model.num_classes"
        )


def check_files(table: VideoTable) -> None:
    """Raise UserError if no video of a plain list exists; as a rule looking at a few of them is enough."""
    rows = (row for rows in (_few(table), range(len(table))) for row in rows)
    if table.files_seen or any(os.path.exists(table.path(row)) for row in rows):
        return
    listed = table.paths[0]
    last = re.split(r"[\s,]+", listed)[-1]
    suffix = next((suffix for suffix in sorted(VIDEO_SUFFIXES) if os.path.exists(table.path(0) + suffix)), None)
    if suffix:
        way_out = f"give its paths their suffix, {suffix}"
    elif last != listed and os.path.exists(os.path.join(table.root, last)):
        way_out = "its lines do not begin with the path: give it a header that says where path and label are"
    elif "\\" in listed and os.sep != "\\":
        way_out = "write its paths with / where they have \\, as on Windows"
    elif os.path.isabs(listed):
        way_out = "its paths are absolute, of another place or another machine: correct them"
    else:
        way_out = "give the folder that the paths are relative to (data.root, or --root)"
    raise UserError(
        f"{table.source}: none of its {len(table)} videos is there; the first would be {table.path(0)}: {way_out}"
    )


def first_missing(table: VideoTable) -> str | None:
    """Return the path of the first missing video among a few spread over a table; None if all exist."""
    return next((path for path in map(table.path, _few(table)) if not os.path.exists(path)), None)


def _few(table: VideoTable) -> list[int]:
    return np.linspace(0, len(table) - 1, NUM_FEW, dtype=int).tolist()


def _read_file(
    path: Path, class_names: tuple[str, ...], root: str, split: str | None, on_name: formats.OnName
) -> VideoTable:
    if path.suffix.lower() == ".json":
        return formats.read_something(path, class_names, root, on_name)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        raise UserError(f"{path} is a video: give a file of `path label` lines or a folder of class folders")
    first_line = next((line for _, line in islice(formats.numbered_lines(path), 1)), "")
    if first_line in ("[", "{") or first_line.startswith(("[{", '{"')):
        raise formats.no_json_list(path)
    if formats.is_kinetics(first_line):
        return formats.read_kinetics(path, class_names, root, split, on_name)
    if formats.is_ucf101(path, first_line):
        return formats.read_ucf101(path, class_names, root, on_name)
    if formats.HMDB_FILE.fullmatch(path.name):
        raise UserError(f"{path} is one class of HMDB51: give its folder, {path.parent}")
    return read_list(path, class_names, root)


def _class_names(list_path: Path, labels: str | None) -> tuple[str, ...]:
    beside = list_path.parent / "labels.txt"
    return load_labels(labels) if labels else load_labels(beside) if beside.is_file() else ()
