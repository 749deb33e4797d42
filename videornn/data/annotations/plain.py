"""Read and write lists of `path label` lines: with blanks, commas or tabs, quotes, a header, frame counts, or no labels."""

from __future__ import annotations

import csv
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from videornn.data.annotations.find import VIDEO_SUFFIXES
from videornn.data.annotations.labels import ClassIds, LabelReader, NumbersAre
from videornn.data.annotations.official import Problems, numbered_lines
from videornn.data.annotations.packed_paths import PathPacker
from videornn.data.annotations.table import VideoTable
from videornn.errors import UserError

PATH_COLUMNS = ("path", "video_path", "filepath", "file_path", "filename", "file_name", "video", "video_name", "file")
LABEL_COLUMNS = ("label", "class", "class_name", "label_name", "category", "action", "label_id", "class_id", "target")
NAME_COLUMNS, ID_COLUMNS = ("class_name", "label_name"), ("label_id", "class_id")  # of names, even numbers; of ids
NUM_SAMPLE_LINES = 50  # lines from which the layout of a list is found

_SUFFIX = rf"\.(?:{'|'.join(sorted(suffix[1:] for suffix in VIDEO_SUFFIXES))})"
_VIDEO = re.compile(rf".*{_SUFFIX}", re.IGNORECASE)
_SEPARATORS = {" ": r"\s+", ",": r"\s*,\s*", "\t": r"\s*\t\s*"}
# a path ends with its last suffix; one without a suffix is a folder of frames, and ends before the numbers
_WITH_SUFFIX = {mark: re.compile(rf"(.*{_SUFFIX}){blank}(.*)", re.IGNORECASE) for mark, blank in _SEPARATORS.items()}
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_SEMICOLON = re.compile(rf'(?:{_QUOTED.pattern}|[^"]*{_SUFFIX})\s*;(?!.*{_SUFFIX})', re.IGNORECASE)
_END_NUMBER = re.compile(r"(?:^|\s)-?\d+$")
# columns of lists of parts of videos
_PART = re.compile(r"(.*_)?(start|begin|end|stop|offset)(_.*)?")
_NUMBERS = {mark: re.compile(rf"(.*?)((?:{blank}-?\d+)+)") for mark, blank in _SEPARATORS.items()}


@dataclass(frozen=True)
class _Layout:
    """The layout of a list: the separator, the columns of the header, whether there are labels and frame counts."""

    separator: str
    header: tuple[str, ...] | None
    labelled: bool
    frame_counts: bool


def read_list(path: Path, class_names: tuple[str, ...], root: str) -> VideoTable:
    """Read a file of `path label` lines, or of paths alone; labels are ids, or names of classes.

    Whether the videos exist is not checked: for 650,000 that takes minutes, and a missing one shows as a bad video.
    """
    layout = _layout(path, root)
    split = _splitter(layout)
    numbers_are = _numbers_are(layout.header)
    packer, labels, problems, hashes = PathPacker(), LabelReader(class_names, numbers_are), Problems(), array("q")
    for number, line in islice(numbered_lines(path), int(layout.header is not None), None):
        try:
            video, label = split(line)
            if not video:
                raise ValueError("there is no path; every line is `path label`")
            place = -1 if label is None else labels.place(label)
        except ValueError as error:
            problems.add(path, number, line, error)
            continue
        packer.append(os.path.expanduser(video) if video.startswith("~/") else video)
        labels.append(place)
        hashes.append(hash(video))
    problems.check()
    try:
        ids, class_names = labels.finish()
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    several = _of_several_labels(np.frombuffer(hashes, np.int64), ids)
    del hashes
    paths = packer.pack()
    notes: tuple[str, ...] = ()
    if several:
        notes = (f"{path}: {len(several)} videos are there under more than one label, the first {paths[several[0]]}",)
    label_ids = torch.from_numpy(ids)
    return VideoTable(str(path), root, paths, label_ids, class_names, files_seen=False, numbers_are=numbers_are, notes=notes)


def _of_several_labels(hashes: np.ndarray, labels: np.ndarray) -> list[int]:
    """Find a row of every video that has more than one label, given hashes int64 [N] of the paths, in their order."""
    order = np.argsort(hashes, kind="stable").astype(np.int32)
    hashes, labels = hashes[order], labels[order]
    places = np.flatnonzero((hashes[1:] == hashes[:-1]) & (labels[1:] != labels[:-1]))
    _, first = np.unique(hashes[places], return_index=True)
    return sorted(order[places[first]].tolist())


def format_list(rows: Iterable[tuple[str, int]], class_names: Sequence[str]) -> Iterator[str]:
    """Yield the lines, with line ends, of a list that read_list reads as these paths and labels; raises as format_line.

    A header says that labels are ids where they could be taken for names, of the classes 0, 1, 10, 2 say.
    """
    ids = ClassIds(class_names)
    if any(ids.get(str(index)) not in (None, index) for index in range(len(class_names))):
        yield f"{PATH_COLUMNS[0]} {ID_COLUMNS[1]}\n"
    for path, label in rows:
        yield format_line(path, label) + "\n"


def format_line(path: str, label: int) -> str:
    """Return the line of a list that read_list reads as this path and label; label -1: the path alone.

    Raises:
        UserError: the path has a line break, or is not UTF-8; no list can hold it.
    """
    if "\n" in path or "\r" in path:
        raise UserError(f"{path!r} has a line break in its name: rename it")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{path!r} is no name in UTF-8, as lists are written in: rename it") from None
    if path.startswith("~/"):
        path = f"./{path}"  # in a list ~/ is the home folder
    # quotes are left out only where the line cannot be misread, even if it is the only one
    word = label >= 0 and re.fullmatch(r"""(?!'.*'$)[^\s,;"]+""", path)
    if not word and not (_VIDEO.fullmatch(path) and re.fullmatch(r'[^\s,;"]+( [^\s,;"]+)*', path)):
        path = '"' + path.replace('"', '""') + '"'
    return path if label < 0 else f"{path} {label}"


def _layout(path: Path, root: str) -> _Layout:
    sample = [line for _, line in islice(numbered_lines(path), NUM_SAMPLE_LINES)]
    if not sample:
        raise UserError(f"{path}: the list is empty; every line is `path label`")
    header, separator = _header(sample[0])
    body = sample[1:] if header else sample
    if not body:
        raise UserError(f"{path}: the list has a header and no lines; every line is `path label`")
    if all(map(_SEMICOLON.match, sample[1:] or sample)):
        raise UserError(f"{path}: there is a `;` between path and label: make it a comma, a tab or a blank")
    if parts := [name for name in header or () if _PART.fullmatch(name)]:
        raise UserError(
            f"{path}: {' and '.join(parts)} would make parts of videos of its lines, and only whole videos can be used: cut "
            f"the parts out (`ffmpeg -ss START -to END -i VIDEO PART.mp4`), or take those columns away"
        )
    if header is None:
        _check_first_line(path, sample, root)
    separator = separator or _separator(body)
    paths_alone = (len(_fields(line, separator)) == 1 and (_VIDEO.fullmatch(line) or line[0] == '"') for line in body)
    # `clip 12 3` is a folder of 12 frames, unless there is a folder `clip 12`
    counted = _NUMBERS[separator].fullmatch(body[0])
    named = counted and os.path.exists(os.path.join(root, body[0].rpartition(separator)[0].strip()))
    return _Layout(separator, header, not all(paths_alone), not named)


def _header(line: str) -> tuple[tuple[str, ...] | None, str | None]:
    """Return the columns of a header line and their separator, or None and None if it is a row."""
    for separator in (",", "\t", *([] if "," in line else " ")):
        row = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
        fields = tuple(field.strip().lower() for field in row)
        if len(fields) > 1 and set(fields) & set(PATH_COLUMNS) and set(fields) & set(LABEL_COLUMNS):
            return fields, separator
    return None, None


def _check_first_line(path: Path, lines: list[str], root: str) -> None:
    """Raise UserError if the first line is unlike the others: a header with unknown column names."""
    separator = _separator(lines[1:])
    (video, *label), *others = (_fields(line, separator) for line in lines)
    is_row = _VIDEO.match(lines[0]) or (_END_NUMBER.search(label[0]) if label else lines[0][0] == '"')
    if is_row or not others or os.path.exists(os.path.join(root, video)):
        return
    files = all(_VIDEO.fullmatch(row[0]) for row in others)
    numbers = all(_END_NUMBER.search(row[-1]) for row in others)
    if files or numbers or os.path.exists(os.path.join(root, others[0][0])):
        raise UserError(
            f"{path}:1: {lines[0]!r} is no row like those below it: if it is a header, call its columns path and label, or "
            f"take it away"
        )


def _separator(lines: list[str]) -> str:
    return next((mark for mark in ("\t", ",") if all(_separates(mark, line) for line in lines)), " ")


def _numbers_are(header: tuple[str, ...] | None) -> NumbersAre | None:
    """Return what a header says about labels that are numbers."""
    column = next(name for name in LABEL_COLUMNS if name in header) if header else ""
    return "ids" if column in ID_COLUMNS else "names" if column in NAME_COLUMNS else None


def _separates(mark: str, line: str) -> bool:
    fields = _fields(line, mark) if mark in line else []
    return len(fields) > 1 and (
        mark == "\t" or fields[1].lstrip("-").isdecimal() or " " not in line or bool(_VIDEO.fullmatch(fields[0]))
    )


def _fields(line: str, separator: str) -> list[str]:
    """Split a line into its path and, as one text, what follows it, if anything does."""
    if line[0] == '"':
        path, *others = (field for field in next(csv.reader([line], delimiter=separator, skipinitialspace=True)))
        rest = separator.join(field for field in others if field).strip()
    elif _VIDEO.fullmatch(line):
        return [line]
    elif match := _WITH_SUFFIX[separator].fullmatch(line) or _NUMBERS[separator].fullmatch(line):
        path, rest = match[1], match[2].strip(separator + " \t")
    else:
        path, _, rest = (part.strip() for part in line.rpartition(separator))
    return [path, rest] if path and rest else [path or rest]


def _splitter(layout: _Layout) -> Callable[[str], tuple[str, str | None]]:
    """Return a function that splits a line into path and label and raises ValueError that says what is wrong."""
    if layout.header is not None and (len(layout.header) > 2 or layout.header[0] not in PATH_COLUMNS):
        return _column_splitter(layout.header, layout.separator)

    def split(line: str) -> tuple[str, str | None]:
        video, _, label = line.rpartition(layout.separator)
        if layout.labelled and label.isdecimal() and video[-4:].lower() in VIDEO_SUFFIXES and video[0] != '"':
            return video, label  # the case of nearly every line
        if line[0] == '"' and not _QUOTED.match(line):
            raise ValueError('the `"` before the path has no other one after it')
        video, *rest = _fields(line, layout.separator)
        if line[0] == video[-1:] == "'" != video:
            raise ValueError("a path is quoted with \", not with '")
        if not layout.labelled:
            if rest:
                raise ValueError(f"there is something after the path, {rest[0]!r}, but nothing in the lines before")
            return video, None
        if not rest:
            raise ValueError("there is no label; every line is `path label`")
        return _pick_label(video, rest[0], layout)

    return split


def _pick_label(video: str, rest: str, layout: _Layout) -> tuple[str, str]:
    """Return path and label of a row, given all that follows the path."""
    numbers = [number for number in re.split(_SEPARATORS[layout.separator], rest) if number]
    if len(numbers) == 1 or not all(number.lstrip("-").isdecimal() for number in numbers):
        return video, rest.strip().removeprefix('"').removesuffix('"')
    is_file = _VIDEO.fullmatch(video) is not None
    if is_file and numbers[1:] == ["0", "-1"]:
        return video, numbers[0]  # DALI: label, first and last frame, here the whole video
    if not is_file and not layout.frame_counts:
        return layout.separator.join([video, *numbers[:-1]]), numbers[-1]
    if not is_file and len(numbers) == 2:
        return video, numbers[1]  # MMAction2: number of frames, label
    raise ValueError(
        f"{len(numbers)} numbers follow the path: a part of a video (offset, first and last frame) or several labels cannot "
        f"be used; every line is `path label`, or `folder num_frames label`"
    )


def _column_splitter(header: tuple[str, ...], separator: str) -> Callable[[str], tuple[str, str | None]]:
    video_column = next(header.index(name) for name in PATH_COLUMNS if name in header)
    label_column = next(header.index(name) for name in LABEL_COLUMNS if name in header)

    def split(line: str) -> tuple[str, str | None]:
        fields = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
        if len(fields) != len(header):
            raise ValueError(f"there are {len(fields)} columns where the header has {len(header)}")
        return fields[video_column].strip(), fields[label_column].strip()

    return split
