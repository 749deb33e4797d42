"""Readers of the lists and folders in which data sets come; each returns a VideoTable, and load.py picks the reader.

Rows go straight into packed arrays, so that a list of 650,000 videos needs no more memory than its table.
"""

from __future__ import annotations

import csv
import os
import re
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from videornn.data.annotations.find import FRAME_SUFFIXES, VIDEO_SUFFIXES, FileIndex, counted, is_hidden, scan_videos, stem
from videornn.data.annotations.labels import ClassIds, LabelReader, load_labels
from videornn.data.annotations.packed_paths import PathPacker
from videornn.data.annotations.table import VideoTable
from videornn.errors import UserError
from videornn.system.text_files import parse_json, read_text

KINETICS_COLUMNS = ("youtube_id", "time_start", "time_end")
SPLITS = frozenset(["train", "val", "test"])
SPLIT_NAMES = {"validate": "val", "validation": "val", "training": "train", "testing": "test"}
UCF_ROW = re.compile(r"[^/]+/v_[^/]+_g\d+_c\d+\.\w+(\s+\d+)?")
HMDB_FILE = re.compile(r"(.+)_test_split([123])\.txt")
HMDB_CODES = {"train": "1", "val": "2", "test": "2"}
MAX_PROBLEMS = 10
OnName = Callable[[], None]  # called for every name met in a search for videos
MAX_LINE = 1 << 15  # characters; longer lines belong to no list, and would take long to parse


class Problems:
    """The faulty lines of the files of a source; one error tells the first ten."""

    def __init__(self) -> None:
        self._first: list[str] = []
        self._count = 0

    def add(self, path: Path, number: int, line: str, reason: object) -> None:
        """Record a problem of a line."""
        self._count += 1
        if len(self._first) < MAX_PROBLEMS:
            shown = line if len(line) <= 120 else line[:117] + "..."
            self._first.append(f"{path}:{number}: {shown!r}: {reason}")

    def check(self) -> None:
        """Raise UserError if there was a problem."""
        more = [f"... and {self._count - MAX_PROBLEMS} more"] if self._count > MAX_PROBLEMS else []
        if self._first:
            raise UserError(*self._first, *more)


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file that are not blank, stripped, with their numbers from 1.

    They are read one by one, and no more than MAX_LINE of each: of 650,000 lines only the table may stay in memory.
    """
    if not path.is_file():  # opening a pipe would wait for its writer, and it could be read only once
        raise UserError(f"{path} is a pipe or a device, not a file: a list is read more than once")
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), ""), start=1):
                if len(line) > MAX_LINE or not line.isascii() or "\0" in line:
                    _check_text(path, number, line)
                line = line.strip()
                if line:
                    yield number, line
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _check_text(path: Path, number: int, line: str) -> None:
    if number == 1 and line.startswith(("\udcff\udcfe", "\udcfe\udcff")):
        raise UserError(f"{path} is written in UTF-16: save it in UTF-8")
    if "\0" in line:
        raise UserError(f"{path}:{number}: here is a zero byte, so this is no list, which is a text of `path label` lines")
    if foreign := next((character for character in line if "\udc80" <= character <= "\udcff"), None):
        byte = ord(foreign) - 0xDC00
        raise UserError(
            f"{path}:{number}: byte {byte:#04x} is not UTF-8: a list is a text of `path label` lines, saved in UTF-8"
        )
    if len(line) > MAX_LINE:
        raise UserError(f"{path}:{number}: no list has such long lines; it is a text of `path label` lines")


def is_kinetics(first_line: str) -> bool:
    """Return whether a list begins with the header of the official Kinetics files."""
    return set(KINETICS_COLUMNS) <= {field.strip().strip('"').lower() for field in first_line.split(",")}


def read_kinetics(path: Path, class_names: tuple[str, ...], root: str, split: str | None, on_name: OnName) -> VideoTable:
    """Read an official Kinetics list (columns youtube_id, time_start, time_end and perhaps label and split).

    Its videos are files `id_start_end`, the seconds with six digits or fewer, or `id` alone, anywhere under root.
    """

    def rows(problems: Problems) -> Iterator[_Row]:
        lines = numbered_lines(path)
        header = [field.strip().lower() for field in next(csv.reader([next(lines)[1]]))]
        columns = [header.index(name) for name in KINETICS_COLUMNS]
        label_column, split_column = (header.index(name) if name in header else None for name in ("label", "split"))
        for number, line in lines:
            fields = line.split(",") if '"' not in line else next(csv.reader([line]))
            try:
                if len(fields) != len(header):
                    raise ValueError(f"there are {len(fields)} columns where the header has {len(header)}")
                video, *times = (fields[column].strip() for column in columns)
                start, end = map(_seconds, times)
            except ValueError as error:
                problems.add(path, number, line, error)
                continue
            class_name = None if label_column is None else fields[label_column].strip()
            row_split = "" if split_column is None else fields[split_column].strip().lower()
            name, key = f"{video}_{start:06d}_{end:06d}", f"{video}_{start}_{end}"
            yield _Row((path, number, line), name, key, class_name, SPLIT_NAMES.get(row_split, row_split), video)

    return _match(rows, path, class_names, root, on_name, key=_kinetics_key, split=split)


def _seconds(text: str) -> int:
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is not a time in seconds") from None


_KINETICS_NAME = re.compile(r"(.{11})_(\d{1,6})_(\d{1,6})")


def _kinetics_key(name: str) -> str:
    match = _KINETICS_NAME.fullmatch(name)
    return f"{match[1]}_{int(match[2])}_{int(match[3])}" if match else name


def is_ucf101(path: Path, first_line: str) -> bool:
    """Return whether a list is one of UCF101's own: a test list without labels, or a training list with labels from 1."""
    return UCF_ROW.fullmatch(first_line) is not None and re.fullmatch(r"(train|test)list\d\d\.txt", path.name) is not None


def read_ucf101(path: Path, class_names: tuple[str, ...], root: str, on_name: OnName) -> VideoTable:
    """Read a trainlist or testlist of UCF101: the class is the folder of a video; ids are those of classInd.txt, from 0."""

    def rows(problems: Problems) -> Iterator[_Row]:
        for number, line in numbered_lines(path):
            if UCF_ROW.fullmatch(line):
                video = line.split()[0]
                yield _Row((path, number, line), video, stem(video), video.split("/")[0])
            else:
                reason = "this is not `Class/v_Class_g01_c01.avi`, with or without a label, as in UCF101's lists"
                problems.add(path, number, line, reason)

    ids = path.parent / "classInd.txt"
    return _match(rows, path, class_names or (load_labels(ids) if ids.is_file() else ()), root, on_name)


def is_ucf101_folder(folder: Path) -> bool:
    """Return whether a folder holds UCF101's lists."""
    return all(os.path.isfile(folder / name) for name in ("classInd.txt", "trainlist01.txt"))


def hmdb51_files(folder: Path) -> list[Path]:
    """List the `CLASS_test_splitN.txt` files of a folder."""
    return sorted(file for file in folder.glob("*_test_split?.txt") if HMDB_FILE.fullmatch(file.name))


def read_hmdb51(folder: Path, class_names: tuple[str, ...], root: str, split: str, fold: int, on_name: OnName) -> VideoTable:
    """Read the training (code 1) or test (code 2) videos of one of HMDB51's three splits, which have a file per class."""
    matches = ((file, HMDB_FILE.fullmatch(file.name)) for file in hmdb51_files(folder))
    classes = {file: match[1] for file, match in matches if match and match[2] == str(fold)}
    if not classes:
        raise UserError(f"{folder} has no files of split {fold} of HMDB51 (CLASS_test_split{fold}.txt)")

    def rows(problems: Problems) -> Iterator[_Row]:
        for file, class_name in classes.items():
            for number, line in numbered_lines(file):
                video, _, code = line.rpartition(" ")
                video = video.strip()
                if not video or code not in ("0", "1", "2"):
                    reason = "this is not `VIDEO CODE`, the code 0 (unused), 1 (training) or 2 (test)"
                    problems.add(file, number, line, reason)
                elif code == HMDB_CODES[split]:
                    yield _Row((file, number, line), f"{class_name}/{video}", stem(video), class_name)

    table = _match(rows, folder, class_names, root, on_name)
    return replace(table, source=f"{folder} ({split}, split {fold})")


def read_something(path: Path, class_names: tuple[str, ...], root: str, on_name: OnName) -> VideoTable:
    """Read a list of Something-Something v2: JSON entries with an id and, but for the test list, a template (the class)."""
    beside = sorted(file for file in path.parent.glob("*labels*.json") if file != path)

    def shorten(entry: dict) -> tuple[str, str | None] | None:  # at once: 200,000 dictionaries take 100 MB
        # thousands of entries share a template, and so can share one string
        class_name = sys.intern(str(entry["template"]).replace("[", "").replace("]", "")) if "template" in entry else None
        return (str(entry["id"]), class_name) if "id" in entry else None

    def rows(problems: Problems) -> Iterator[_Row]:
        entries = parse_json(read_text(path), str(path), object_hook=shorten)
        if not isinstance(entries, list) or not all(isinstance(entry, tuple) for entry in entries):
            raise no_json_list(path)
        for number, (video, class_name) in enumerate(entries, start=1):
            yield _Row((path, number, f"entry {number}: id {video}"), video, video, class_name)

    return _match(rows, path, class_names or (load_labels(beside[0]) if beside else ()), root, on_name)


def no_json_list(path: Path) -> UserError:
    """Return the error for JSON that is no list."""
    return UserError(
        f"{path}: this JSON is no list of videos; of JSON lists only those of Something-Something v2, whose entries have id "
        f"and template, are read; write others as `path label` lines"
    )


def read_class_folders(folder: Path, class_names: tuple[str, ...], on_name: OnName) -> VideoTable:
    """Read folders of videos, or of folders of frames, one per class; sorted by name they are the classes."""
    entries = [entry for entry in folder.iterdir() if not is_hidden(entry.name)]
    names = sorted(entry.name for entry in entries if entry.is_dir())
    if not names:
        instead = _instead(folder, entries)
        raise UserError(f"{folder} has no class folders; it should hold one folder of videos per class{instead}")
    splits = [name for name in names if SPLIT_NAMES.get(name.lower(), name.lower()) in SPLITS]
    called_so = [word for name in names for word in set(re.split(r"[\W_]+", name.lower())) & SPLITS]  # train_videos, ...
    if len(splits) in (len(names), 2, 3) or (len(called_so) == len(names) and len(set(called_so)) > 1):
        splits = splits or names
        first = next((name for name in splits if "train" in name.lower()), splits[0])
        raise UserError(f"{folder} holds splits, not classes ({', '.join(splits)}): give {folder / first}")
    class_names = class_names or tuple(names)
    ids, packer, labels, left_out, deep = ClassIds(class_names), PathPacker(), array("i"), Counter[str](), True
    for name in names:
        index = ids.get(name)
        if index is None:
            raise UserError(f"class folder {folder / name} is not one of the {len(class_names)} class names")
        others = Counter[str]()
        videos = sorted(scan_videos(folder / name, others, on_name))
        if not videos:
            raise UserError(_without_video(folder / name, others))
        left_out += others
        deep = deep and all("/" in video for video in videos)
        for video in videos:
            packer.append(f"{name}/{video}")
            labels.append(index)
    left_out.update(entry.suffix.lower() or entry.name for entry in entries if not entry.is_dir())
    paths, label_ids, notes = packer.pack(), torch.tensor(labels, dtype=torch.int32), []
    if kinds := counted(left_out):
        notes.append(f"{folder}: {kinds} are left out, as they are called like no video or are in no class folder")
    if splits:
        notes.append(f"{folder}: {splits[0]} is called like a split, and taken for a class as the other folders are")
    if deep:
        above, within, _ = paths[0].split("/", 2)
        notes.append(
            f"{folder}: all videos lie a folder deeper than their class folders, such as {paths[0]}: its class is {above}; "
            f"if it should be {within}, give {folder / above}"
        )
    return VideoTable(str(folder), str(folder), paths, label_ids, class_names, notes=tuple(notes))


def _instead(folder: Path, entries: list[Path]) -> str:
    """Suggest what may have been meant by a folder without class folders."""
    if lists := sorted(entry for entry in entries if entry.suffix.lower() in (".txt", ".csv", ".json")):
        return f": is {lists[0]} its list?"
    videos = any(entry.suffix.lower() in VIDEO_SUFFIXES for entry in entries)
    return f": it holds videos itself; if it is one class of several, give {folder.absolute().parent}" if videos else ""


def _without_video(folder: Path, others: Counter[str]) -> str:
    only = f": it holds {kinds}" if (kinds := counted(others)) else ""
    frames = "; frames of a video are a folder within that of their class" if FRAME_SUFFIXES & others.keys() else ""
    return f"class folder {folder} has no video{only}{frames}"


class _Row(NamedTuple):
    """A row of an official list.

    place: file, line number and line; name: of the video, for messages; key: to find its file by; split: train, val or
    test, if the list says so; other_key: to find its file by if key finds none and no other row has this other key.
    """

    place: tuple[Path, int, str]
    name: str
    key: str
    class_name: str | None
    split: str = ""
    other_key: str = ""


class _Keys(NamedTuple):
    """Hashes, int64 [N], of the keys of all rows, and of their other keys if there are any."""

    first: np.ndarray
    other: np.ndarray | None


def _match(
    rows: Callable[[Problems], Iterator[_Row]],
    source: Path,
    class_names: tuple[str, ...],
    root: str,
    on_name: OnName,
    *,
    key: Callable[[str], str] = str,
    split: str | None = None,
) -> VideoTable:
    """Match the rows of an official list with their files under root.

    Args:
        rows: yields the rows and records the wrong ones; called a second time for the names of missing videos, which need
            not be in memory until then.
        key: maps the stem of a file to the key of its row.
        split: the rows to take, if the list has more than one split.
    """
    keys, labels, class_names, split = _read_rows(rows, source, class_names, split)
    index = FileIndex(root, key, on_name)

    def class_of(row: int) -> str:
        return class_names[labels[row]] if labels[row] >= 0 else ""

    found, num_ambiguous = index.find(keys.first, class_of)
    if (found < 0).any() and keys.other is not None:
        others = np.flatnonzero(found < 0)
        others = others[~np.isin(keys.other[others], _repeated(keys.other))]
        found[others], more = index.find(keys.other[others], lambda row: class_of(others[row]))
        num_ambiguous += more
    there = found >= 0
    packer = PathPacker()
    if not there.all():
        listed = (row for row in rows(Problems()) if split in (None, row.split))
        for row, is_there in zip(listed, there.tolist(), strict=True):
            if not is_there:
                packer.append(row.name)
    missing = packer.pack()
    if not there.any():
        raise UserError(
            f"{source}: none of its {len(found)} videos is under {root} ({len(index.paths)} videos are; the first listed is "
            f"{missing[0]}): give the folder of the videos (data.root, or --root)"
        )
    paths = index.paths.take(found[there])
    label_ids = torch.from_numpy(labels[there])
    return VideoTable(str(source), root, paths, label_ids, class_names, missing, labels[~there], num_ambiguous)


def _read_rows(
    rows: Callable[[Problems], Iterator[_Row]], source: Path, class_names: tuple[str, ...], split: str | None
) -> tuple[_Keys, np.ndarray, tuple[str, ...], str | None]:
    """Read the keys and labels of the rows, the class names, and the split to take: None if the list has only one."""
    problems, labels, first, other = Problems(), LabelReader(class_names), array("q"), array("q")
    row_splits = array("b")
    splits: dict[str, int] = {}
    for row in rows(problems):
        try:
            labels.append(-1 if row.class_name is None else labels.place(row.class_name))
        except ValueError as error:
            problems.add(*row.place, error)
            continue
        first.append(hash(row.key))
        if row.other_key:
            other.append(hash(row.other_key))
        row_splits.append(splits.setdefault(row.split, len(splits)))
    problems.check()
    if not first:
        raise UserError(f"{source} lists no video")
    try:
        ids, class_names = labels.finish()
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    keys = _Keys(np.frombuffer(first, np.int64), np.frombuffer(other, np.int64) if other else None)
    if split is None or len(splits) == 1:
        return keys, ids, class_names, None
    if split not in splits:
        raise UserError(f"{source} has no videos of the split {split!r}; it has {', '.join(sorted(splits))}")
    chosen = np.frombuffer(row_splits, np.int8) == splits[split]
    keys = _Keys(keys.first[chosen], None if keys.other is None else keys.other[chosen])
    return keys, ids[chosen], class_names, split


def _repeated(hashes: np.ndarray) -> np.ndarray:
    ordered = np.sort(hashes)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
