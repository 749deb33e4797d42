"""Lists of labelled videos: PyTorchVideo's LabeledVideoPaths, checked line by line and packed into flat arrays."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from pytorchvideo.data.labeled_video_paths import LabeledVideoPaths

from videornn.errors import UserError

VIDEO_SUFFIXES = frozenset(
    [".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts", ".ogv"]
)


class VideoTable:
    """Paths and labels of N videos in three flat arrays, so that 650,000 rows cost megabytes and workers share them.

    Args:
        videos: PyTorchVideo's pairs.
        class_names: names by label id, empty if unknown.
        source: the list or folder it came from, for messages.
    """

    def __init__(self, videos: LabeledVideoPaths, class_names: tuple[str, ...], source: str) -> None:
        paths, labels = [], np.empty(len(videos), dtype=np.int32)
        for index in range(len(videos)):
            path, annotation = videos[index]
            paths.append(os.fsencode(path))
            labels[index] = annotation["label"]
        self._path_bytes = np.frombuffer(b"".join(paths), dtype=np.uint8)
        self._ends = np.cumsum([len(path) for path in paths], dtype=np.int64)
        self.labels = labels
        self.class_names = class_names
        self.source = source

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Path of one video."""
        start = self._ends[index - 1] if index > 0 else 0
        return os.fsdecode(self._path_bytes[start : self._ends[index]].tobytes())

    def __getitem__(self, index: int) -> tuple[str, int]:
        """Path and label of one video."""
        return self.path(index), int(self.labels[index])


def load_videos(source: str, *, root: str | None = None, labels: str | None = None) -> VideoTable:
    """The videos of a list file or of a folder of class folders.

    Args:
        source: a file of `path label` lines (label: an integer id; the path may hold spaces), or a folder in which every
            folder is a class, sorted by name.
        root: what list paths are relative to; by default the folder of the list.
        labels: file of class names, one a line, by id; by default labels.txt beside the list, if there is one.

    Raises:
        UserError: something is missing, a line has no label or a wrong one, or a class folder has no video.
    """
    path = Path(source)
    if path.is_dir():
        return _class_folders(path)
    if not path.is_file():
        raise UserError(
            f"video list {source} does not exist: give a file of `path label` lines or a folder of class folders"
        )
    class_names = _class_names(path, labels)
    pairs = [_parse_line(path, number, line, class_names) for number, line in _lines(path)]
    if not pairs:
        raise UserError(f"{source}: the list is empty; every line is `path label`")
    if root is not None and not Path(root).is_dir():
        raise UserError(f"data.root {root} is not a folder")
    prefix = str(path.parent) if root is None else root
    return VideoTable(LabeledVideoPaths(pairs, path_prefix=prefix), class_names, source)


def load_labels(path: str | Path) -> tuple[str, ...]:
    """Class names, by id, of a file with one a line; raises UserError if there is no such file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"labels {path} does not exist; it holds one class name a line, by id")
    return tuple(line for _, line in _lines(path))


def check_labels(table: VideoTable, num_classes: int) -> None:
    """Raises UserError if a label is not in [0, num_classes); needed where the two come from different places."""
    outside = np.flatnonzero((table.labels < 0) | (table.labels >= num_classes))
    if outside.size:
        path, label = table[int(outside[0])]
        raise UserError(
            f"{table.source}: label {label} of {path} is outside 0..{num_classes - 1} (the model has {num_classes} "
            f"classes); correct the list or model.num_classes"
        )


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file; a list has `path label` lines") from error
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]


def _parse_line(path: Path, number: int, line: str, class_names: tuple[str, ...]) -> tuple[str, int]:
    *video, label = line.rsplit(None, 1)
    if not video:
        raise UserError(f"{path}:{number}: {line!r} has no label; every line is `path label`")
    if not label.isdecimal():
        raise UserError(f"{path}:{number}: label {label!r} of {video[0]!r} is not a whole number from 0 on")
    if class_names and int(label) >= len(class_names):
        raise UserError(
            f"{path}:{number}: label {label} of {video[0]!r} is out of range: there are {len(class_names)} class names, "
            f"so labels are 0 to {len(class_names) - 1}"
        )
    return video[0], int(label)


def _class_names(list_path: Path, labels: str | None) -> tuple[str, ...]:
    beside = list_path.parent / "labels.txt"
    return load_labels(labels) if labels else load_labels(beside) if beside.is_file() else ()


def _class_folders(folder: Path) -> VideoTable:
    class_names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))
    if not class_names:
        raise UserError(f"{folder} has no class folders; it should hold one folder of videos per class")
    pairs = []
    for label, name in enumerate(class_names):
        files = sorted(file for file in (folder / name).rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES)
        if not files:
            raise UserError(f"class folder {folder / name} has no video ({', '.join(sorted(VIDEO_SUFFIXES))})")
        pairs += [(str(file.relative_to(folder)), label) for file in files]
    return VideoTable(LabeledVideoPaths(pairs, path_prefix=str(folder)), class_names, str(folder))
