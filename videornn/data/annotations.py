"""Labelled videos of any list or folder as one packed table."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from videornn.data import annotation_formats as formats
from videornn.data.annotation_formats import Listing
from videornn.data.label_maps import ClassIds, is_numbered, load_labels
from videornn.data.packed_paths import PackedPaths
from videornn.data.plain_lists import read_list
from videornn.data.video_files import VIDEO_SUFFIXES
from videornn.errors import UserError

__all__ = ["VIDEO_SUFFIXES", "VideoTable", "check_labels", "load_labels", "load_videos"]


class VideoTable:
    """Paths and labels of N videos in flat tensors, so that 650,000 rows cost megabytes and workers share them.

    class_names: names by label id, empty if unknown; source: the list or folder it came from; missing: names of the listed
    videos that have no file, which are no rows of the table, and missing_labels, int32, their labels.
    """

    def __init__(self, listing: Listing, source: str) -> None:
        self.root = listing.root
        self.class_names = listing.class_names
        self.source = source
        self.missing = listing.missing
        self.missing_labels = listing.missing_labels
        self.num_ambiguous = listing.num_ambiguous
        self._paths: PackedPaths = listing.paths
        self._labels = torch.from_numpy(np.array(listing.labels, np.int32))

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> str:
        """Path of one video."""
        return os.path.join(self.root, self._paths[index])

    def __getitem__(self, index: int) -> tuple[str, int]:
        """Path and label of one video."""
        return self.path(index), int(self._labels[index])

    @property
    def labels(self) -> np.ndarray:
        """Labels int32 [N], -1 where the source has none; a copy, because the memory of the table may move."""
        return self._labels.numpy().copy()

    @property
    def num_listed(self) -> int:
        """Number of videos that the source names, the missing ones too."""
        return len(self) + len(self.missing)

    @property
    def num_bytes(self) -> int:
        """Memory of the tensors."""
        return self._paths.num_bytes + self._labels.nbytes

    def remarks(self) -> list[str]:
        """A sentence for each thing about the source that its user should know: missing videos, videos there twice."""
        sentences = []
        if len(self.missing):
            sentences.append(
                f"{self.source}: {len(self)} of {self.num_listed} listed videos are under {self.root}; {len(self.missing)} "
                f"are missing and left out, the first {self.missing[0]}"
            )
        if self.num_ambiguous:
            sentences.append(
                f"{self.source}: {self.num_ambiguous} of {self.num_listed} listed videos are there several times under "
                f"{self.root}; the first by path was taken"
            )
        return sentences

    def with_classes(self, class_names: tuple[str, ...]) -> VideoTable:
        """The same videos with labels that mean these classes, found by name; the order of the names may differ.

        Where one of the two sides has numbers in the place of names, a label is the same class on both.

        Raises:
            UserError: a class that has videos is not among these.
        """
        if not self.class_names or self.class_names == class_names:
            return self
        if len(self.class_names) == len(class_names) and (is_numbered(class_names) or is_numbered(self.class_names)):
            return self._relabelled(self._labels.numpy(), self.missing_labels, class_names)
        ids = ClassIds(class_names)
        there = [ids.get(name) for name in self.class_names]
        used = np.unique(np.concatenate([self._labels.numpy(), self.missing_labels]))
        unknown = [self.class_names[label] for label in used.tolist() if label >= 0 and there[label] is None]
        if unknown:
            raise UserError(
                f"{self.source}: {_names(unknown)} not among the {len(class_names)} classes of the network "
                f"({_listed(class_names)}); take those videos out of the list, or correct the class names (data.labels)"
            )
        # one more entry, so that the label -1 stays -1
        new = np.array([-1 if index is None else index for index in there] + [-1], np.int32)
        return self._relabelled(new[self._labels.numpy()], new[self.missing_labels], class_names)

    def _relabelled(self, labels: np.ndarray, missing_labels: np.ndarray, class_names: tuple[str, ...]) -> VideoTable:
        listing = Listing(self.root, self._paths, labels, class_names, self.missing, missing_labels, self.num_ambiguous)
        return VideoTable(listing, self.source)


def load_videos(
    source: str, *, root: str | None = None, labels: str | None = None, split: str | None = None, fold: int = 1
) -> VideoTable:
    """The videos of a list file or of a folder; how it is written is recognised.

    A file may have `path label` lines (label: an id, or the name of a class; path: of a video or a folder of frames), in any
    of the spellings of plain_lists.py, or be an official list of Kinetics, UCF101 or Something-Something v2. A folder may
    have a folder per class, or hold the official lists of UCF101 or HMDB51. Videos of official lists are looked for by name
    anywhere under root; those that are not there are left out and counted.

    Args:
        root: what list paths are relative to, and where the videos of official lists are; by default the list's folder.
        labels: file of class names; by default labels.txt beside the list, if there is one. Without names, the classes are
            the names met, sorted.
        split: train, val or test, where a source holds several; by default all of a Kinetics list.
        fold: which of the three official splits of UCF101 and HMDB51.

    Raises:
        UserError: something is missing, lines are wrong (the first ten are told), or a class folder has no video.
    """
    path = Path(source)
    if path.is_dir() and (path / "classInd.txt").is_file() and (path / f"trainlist{fold:02d}.txt").is_file():
        path = path / f"{_need_split(path, split).replace('val', 'test')}list{fold:02d}.txt"
    if not path.exists():
        raise UserError(
            f"video list {source} does not exist: give a file of `path label` lines or a folder of class folders"
        )
    if root is not None and not Path(root).is_dir():
        raise UserError(f"data.root {root} is not a folder")
    if path.is_dir():
        class_names = load_labels(labels) if labels else ()
        if formats.hmdb51_files(path):
            listing = formats.read_hmdb51(path, class_names, root or source, _need_split(path, split), fold)
        else:
            listing = formats.read_class_folders(path, class_names)
    else:
        listing = _read_file(path, _class_names(path, labels), root or str(path.parent), split)
    return VideoTable(listing, source)


def check_labels(table: VideoTable, num_classes: int) -> None:
    """Raises UserError if a video has no label, or one that is not in [0, num_classes)."""
    labels = table.labels
    if (labels < 0).any():
        raise UserError(
            f"{table.source} has no labels, which training and testing need; `videornn infer` takes videos without labels"
        )
    outside = np.flatnonzero(labels >= num_classes)
    if outside.size:
        path, label = table[int(outside[0])]
        raise UserError(
            f"{table.source}: label {label} of {path} is outside 0..{num_classes - 1} (the model has {num_classes} "
            f"classes); correct the list or model.num_classes"
        )


def _read_file(path: Path, class_names: tuple[str, ...], root: str, split: str | None) -> Listing:
    first_line = next((line for _, line in islice(formats.numbered_lines(path), 1)), "")
    if first_line[:1] in ("{", "["):
        return formats.read_something(path, class_names, root)
    if formats.is_kinetics(first_line):
        return formats.read_kinetics(path, class_names, root, split)
    if formats.is_ucf101(path, first_line):
        return formats.read_ucf101(path, class_names, root)
    if formats.HMDB_FILE.fullmatch(path.name):
        raise UserError(f"{path} is one class of HMDB51: give its folder, {path.parent}")
    return read_list(path, class_names, root)


def _class_names(list_path: Path, labels: str | None) -> tuple[str, ...]:
    beside = list_path.parent / "labels.txt"
    return load_labels(labels) if labels else load_labels(beside) if beside.is_file() else ()


def _need_split(folder: Path, split: str | None) -> str:
    if split is None:
        raise UserError(f"{folder} holds a training and a test list: say which is meant, split train or test")
    return split


def _names(names: list[str]) -> str:
    return f"class {names[0]!r} is" if len(names) == 1 else f"{len(names)} classes ({_listed(names)}) are"


def _listed(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (f", and {len(names) - 10} more" if len(names) > 10 else "")
