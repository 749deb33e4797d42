"""The table of labelled videos that a list or folder names, packed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from videornn.data.annotations.labels import ClassIds, NumbersAre, are_numbers, find_labels, is_numbered, same_classes
from videornn.data.annotations.packed_paths import PackedPaths, PathPacker
from videornn.errors import UserError


@dataclass(frozen=True, eq=False)
class VideoTable:
    """Paths and labels of N videos in flat tensors, so that 650,000 rows cost megabytes and workers share them.

    source: the list or folder it came from; root: what paths are relative to; label_ids: int32 [N], -1 where the source has
    none; class_names: by id, empty if unknown; missing, missing_labels (int32): names and labels of listed videos without a
    file, which are no rows; num_ambiguous: videos with several files, of which one was taken; files_seen: False if the
    files were not checked; numbers_are: what numbers in the place of labels are, if the source says so; notes: further
    remarks of the reader.
    """

    source: str
    root: str
    paths: PackedPaths
    label_ids: Tensor
    class_names: tuple[str, ...] = ()
    missing: PackedPaths = field(default_factory=lambda: PathPacker().pack())
    missing_labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    num_ambiguous: int = 0
    files_seen: bool = True
    numbers_are: NumbersAre | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, int]:
        """Return path and label of one video."""
        return self.path(index), int(self.label_ids[index])

    def path(self, index: int) -> str:
        """Return the path of one video."""
        return os.path.join(self.root, self.paths[index])

    @property
    def labels(self) -> np.ndarray:
        """Labels int32 [N], -1 where the source has none; a copy, because the memory of the table may move."""
        return self.label_ids.numpy().copy()

    @property
    def num_listed(self) -> int:
        """Number of videos that the source names, including missing ones."""
        return len(self) + len(self.missing)

    @property
    def num_bytes(self) -> int:
        """Memory of the tensors, in bytes."""
        return self.paths.num_bytes + self.label_ids.nbytes

    def fingerprint(self) -> dict[str, Tensor]:
        """Return what later shows whether videos, their order or labels have changed: 12 bytes a video.

        paths: int64 [N], a hash of each path relative to root, so that a set may move; labels: int32 [N].
        """
        return {"paths": self.paths.hashes(self.root), "labels": self.label_ids.clone()}

    def remarks(self) -> list[str]:
        """Return a sentence for each thing that the user should know about the source: missing, ambiguous or odd."""
        sentences = list(self.notes)
        sentences += [
            f"{self.source}: the classes {_listed(names)} differ in spelling alone, and each is a class of its own: if they "
            f"are one, give them one name"
            for names in same_classes(self.class_names)
        ]
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
        """Return the table with labels that refer to these classes, matched by name; the order of the names may differ.

        Where one side has numbers in the place of names, a label means the same class on both; so does a number that is a
        name on both. Numbers in a list without names may be names: see find_labels.

        Raises:
            UserError: a class that has videos is not among these, or labels can be read in two ways.
        """
        if self.class_names == class_names:
            return self
        if not self.class_names:
            return self._numbers_as(class_names)
        numbered = is_numbered(class_names) or is_numbered(self.class_names)
        if numbered and len(self.class_names) == len(class_names) and not are_numbers(class_names + self.class_names):
            return replace(self, class_names=class_names)
        ids = ClassIds(class_names)
        there = [ids.get(name) for name in self.class_names]
        unknown = [
            self.class_names[label] for label in np.unique(self.labels).tolist() if label >= 0 and there[label] is None
        ]
        if unknown:
            raise UserError(
                f"{self.source}: {_names(unknown)} not among the {len(class_names)} classes of the network "
                f"({_listed(class_names)}); take those videos out of the list, or correct the class names (data.labels)"
            )
        # one more entry, so that the label -1 stays -1
        new = np.array([-1 if index is None else index for index in there] + [-1], np.int32)
        label_ids, missing_labels = torch.from_numpy(new[self.labels]), new[self.missing_labels]
        return replace(self, label_ids=label_ids, missing_labels=missing_labels, class_names=class_names)

    def _numbers_as(self, class_names: tuple[str, ...]) -> VideoTable:
        """Return the table with labels that are numbers as ids of these classes; itself if they are ids already."""
        numbers = np.unique(np.concatenate([self.labels, self.missing_labels]))
        numbers = numbers[numbers >= 0]
        try:
            ids = find_labels(list(map(str, numbers.tolist())), class_names, self.numbers_are)
        except ValueError as error:
            raise UserError(f"{self.source}: {error}") from None
        if None in ids or ids == numbers.tolist():  # check_labels tells which label is out of range
            return self
        # one more entry, for the label -1
        new, old = np.array([*ids, -1], np.int32), np.append(numbers, np.iinfo(np.int32).max)
        found, missing = (
            np.where(labels < 0, -1, new[np.searchsorted(old, labels)]).astype(np.int32)
            for labels in (self.labels, self.missing_labels)
        )
        return replace(self, label_ids=torch.from_numpy(found), missing_labels=missing, class_names=class_names)

    def without_missing(self, there: np.ndarray) -> VideoTable:
        """Keep the rows, bool [N], whose files exist; the others become missing ones."""
        gone, labels = np.flatnonzero(~there), self.labels
        missing = PathPacker()
        for name in [*self.missing, *(self.paths[row] for row in gone.tolist())]:
            missing.append(name)
        return replace(
            self,
            paths=self.paths.take(np.flatnonzero(there)),
            label_ids=torch.from_numpy(labels[there]),
            missing=missing.pack(),
            missing_labels=np.concatenate([self.missing_labels, labels[gone]]),
            files_seen=True,
        )


def _names(names: list[str]) -> str:
    return f"class {names[0]!r} is" if len(names) == 1 else f"{len(names)} classes ({_listed(names)}) are"


def _listed(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (f", and {len(names) - 10} more" if len(names) > 10 else "")
