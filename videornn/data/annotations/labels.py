"""Read class names from files, and find the id of a name that is spelt a little differently."""

from __future__ import annotations

import csv
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from videornn.errors import UserError
from videornn.system.text_files import NoFile, parse_json, read_text

ID_COLUMNS = ("id", "label_id", "class_id", "label", "index")
NAME_COLUMNS = ("name", "class_name", "class", "label_name", "label")
MAX_BYTES = 1 << 24  # a hundred thousand names
NumbersAre = Literal["names", "ids"]  # what numbers in the place of labels are, where a list says it


def load_labels(path: str | Path) -> tuple[str, ...]:
    """Load the class names, by id, of a label map.

    It may have one name a line, `id name` lines (ids from 0 or from 1), a header `id,name`, or be JSON: names to ids, ids
    to names, or a list of names.

    Raises:
        UserError: there is no such file, or its ids are not 0 to N-1 or 1 to N, each once.
    """
    path = Path(path).expanduser()
    try:
        return _parse(path, read_text(path, max_bytes=MAX_BYTES))
    except NoFile:
        raise UserError(f"labels {path} does not exist; it holds one class name a line, by id") from None


def format_labels(class_names: Sequence[str]) -> str:
    """Write a label map that load_labels reads as these names: one a line, numbered if necessary, or JSON."""
    lines = "".join(f"{name}\n" for name in class_names)
    numbered = "".join(f"{index} {name}\n" for index, name in enumerate(class_names))
    return next((text for text in (lines, numbered) if _means(text, class_names)), json.dumps(list(class_names), indent=0))


def _means(text: str, class_names: Sequence[str]) -> bool:
    try:
        return _parse(Path("labels.txt"), text.encode().decode("utf-8-sig")) == tuple(class_names)
    except (UnicodeError, UserError):
        return False


def _parse(path: Path, text: str) -> tuple[str, ...]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"labels {path} is empty; it holds one class name a line, by id")
    names = _json_names(path, text) if text.lstrip()[0] in "{[" else _table_names(path, lines) or _numbered(path, lines)
    twice = [name for name, count in Counter(names).items() if count > 1 or not name]
    if twice:
        raise UserError(
            f"labels {path}: the name {twice[0]!r} is there more than once or empty; every class has its own name"
        )
    return names


def class_key(name: str) -> str:
    """Return a form common to all spellings: `Air_Drumming`, `"air drumming"`; `[something]`; `class 3`, `03`, `3`."""
    for mark, blank in (("_", " "), ('"', ""), ("[", ""), ("]", "")):
        name = name.replace(mark, blank)
    key = " ".join(name.casefold().split())
    number = key.removeprefix("class ")
    return (number.lstrip("0") or "0") if _is_id(number) else key


def is_numbered(class_names: Sequence[str]) -> bool:
    """Return whether these are numbers in the place of names, as classes without names have."""
    return all(class_key(name) == str(index) for index, name in enumerate(class_names))


def are_numbers(class_names: Sequence[str]) -> bool:
    """Return whether all names are numbers, in any order."""
    return all(_is_id(class_key(name)) for name in class_names)


def same_classes(class_names: Sequence[str]) -> list[list[str]]:
    """Group the names that are one class but for their spelling; names without such a twin are left out."""
    alike: dict[str, list[str]] = {}
    for name in class_names:
        alike.setdefault(class_key(name), []).append(name)
    return [names for names in alike.values() if len(names) > 1]


class ClassIds:
    """A map from class names to ids; another spelling (class_key) counts where it fits one class only."""

    def __init__(self, class_names: Iterable[str]) -> None:
        self._exact = {name: index for index, name in enumerate(class_names)}
        self._similar: dict[str, int | None] = {}
        for name, index in self._exact.items():
            key = class_key(name)
            self._similar[key] = None if key in self._similar else index

    def get(self, name: str) -> int | None:
        """Return the id of a class name, or None."""
        index = self._exact.get(name)
        return self._similar.get(class_key(name)) if index is None else index


def find_labels(texts: Sequence[str], class_names: Sequence[str], numbers_are: NumbersAre | None = None) -> list[int | None]:
    """Find the ids of the labels of a list; a number is the class of that name, or the class with that id.

    All numbers of a list are read in the same way: the one that finds a class for each of them.

    Args:
        numbers_are: the way to take where both do, if the list says so.

    Returns:
        An id for every text, None where there is none.

    Raises:
        ValueError: both ways find a class for every number, and not the same.
    """
    ids = ClassIds(class_names)
    by_name = [ids.get(text) for text in texts]
    by_id = [_id(text, len(class_names)) if _is_id(text) else index for text, index in zip(texts, by_name, strict=True)]
    if None in by_name:
        return by_id
    if None in by_id or not all(map(_is_id, texts)):
        return by_name
    if by_name != by_id and numbers_are is None:
        text, name, index = next(row for row in zip(texts, by_name, by_id, strict=True) if row[1] != row[2])
        assert name is not None and index is not None
        raise ValueError(
            f"label {text} can be the class named {class_names[name]!r} or the class with id {index}, which is named "
            f"{class_names[index]!r}: say which by a first line `path class_name` or `path class_id`, with commas or tabs "
            f"if the list has them"
        )
    return by_id if numbers_are == "ids" else by_name


class LabelReader:
    """A collector of the labels of a list, row by row: ids, or names of classes.

    Args:
        class_names: names by id; if empty, the classes are the names found, sorted, or unnamed numbers.
        numbers_are: what numbers in the place of labels are, if the list says so.
    """

    def __init__(self, class_names: tuple[str, ...], numbers_are: NumbersAre | None = None) -> None:
        self._class_names = class_names
        self._class_ids = ClassIds(class_names)
        self._numbers_are = numbers_are
        self._places: dict[str, int] = {}  # of every distinct label text, in the order of appearance
        self._number = self._name = ""  # the first of each
        self._labels = array("i")

    def place(self, text: str) -> int:
        """Return the number of a label text, for append; raises ValueError that says what is wrong with it."""
        place = self._places.get(text)
        if place is None:
            self._check(text)
            place = self._places[text] = len(self._places)
        return place

    def append(self, place: int) -> None:
        """Add the label of the next row, as place() numbers it, or -1 for a row without a label."""
        self._labels.append(place)

    def finish(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return labels int32 [N] and class names by id, empty if unknown; raises ValueError if labels have two meanings."""
        texts, class_names = list(self._places), self._class_names
        if class_names:
            ids = find_labels(texts, class_names, self._numbers_are)
            if None in ids:
                raise ValueError(f"label {texts[ids.index(None)]} is no class id, and other labels are no class names")
        elif self._name:
            class_names = tuple(sorted(texts))
            ids = [*map(class_names.index, texts)]
        else:
            ids = [_id(text, 2**31) for text in texts]
        # one more entry, so that the label -1 of a row without one stays -1
        labels = np.frombuffer(self._labels, np.int32) if self._labels else np.empty(0, np.int32)
        return np.array([*ids, -1], np.int32)[labels], class_names

    def _check(self, text: str) -> None:
        number = _is_id(text)
        if self._class_names:
            count = len(self._class_names)
            if self._class_ids.get(text) is None and not number:
                raise ValueError(f"label {text!r} is neither a whole number from 0 on nor one of the {count} class names")
            if self._class_ids.get(text) is None and _id(text, count) is None:
                raise ValueError(
                    f"label {text} is out of range: there are {count} class names, so labels are 0 to {count - 1}"
                )
        elif number and self._name:
            raise ValueError(f"label {text!r} is a number where lines before it have class names such as {self._name!r}")
        elif number and _id(text, 2**31) is None:
            raise ValueError(f"label {text} is no class id")
        elif not number and (self._number or _is_number(text)):
            raise ValueError(f"label {text!r} is not a whole number from 0 on")
        if number:
            self._number = self._number or text
        else:
            self._name = self._name or text


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _id(text: str, count: int) -> int | None:
    """Return the number, if it is below count."""
    digits = text.lstrip("0") or "0"
    return int(digits) if len(digits) < 12 and int(digits) < count else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _json_names(path: Path, text: str) -> tuple[str, ...]:
    content = parse_json(text, f"labels {path}")
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return tuple(content)
    pairs = list(content.items()) if isinstance(content, dict) else []
    ids_of_names = [(_number(str(index)), name) for name, index in pairs if str(index).isdecimal()]
    names_of_ids = [(_number(index), name) for index, name in pairs if index.isdecimal() and isinstance(name, str)]
    maps = [rows for rows in (ids_of_names, names_of_ids) if len(rows) == len(pairs) > 0]
    if not maps:
        raise UserError(f"labels {path}: this JSON is no label map; it maps class names to ids, or is a list of names")
    maps = [rows for rows in maps if _misfit(rows) is None] or maps[:1]
    found = {_by_id(path, rows) for rows in maps}
    if len(found) > 1:
        raise UserError(f"labels {path}: which are the ids and which the names is not clear: make it a list of names, by id")
    return found.pop()


def _table_names(path: Path, lines: list[str]) -> tuple[str, ...] | None:
    """Read the names of a table whose header says which column is the id and which the name."""
    header = [field.strip().lower() for field in lines[0].split(",")]
    id_column = next((header.index(name) for name in ID_COLUMNS if name in header), None)
    others = [column for column in range(len(header)) if column != id_column]
    name_column = next((column for name in NAME_COLUMNS for column in others if header[column] == name), None)
    if id_column is None or name_column is None:
        return None
    try:
        rows = list(csv.reader(lines[1:]))
    except csv.Error as error:
        raise UserError(f"labels {path}: this is no CSV ({error})") from None
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header) or not row[id_column].strip().isdecimal():
            raise UserError(f"labels {path}:{number}: {','.join(row)!r} does not fit the header {','.join(header)!r}")
    return _by_id(path, [(_number(row[id_column].strip()), row[name_column]) for row in rows])


def _numbered(path: Path, lines: list[str]) -> tuple[str, ...]:
    """Read the names of `id name` lines, or take whole lines as names."""
    for separator in (None, ",", ":"):
        rows = [[part.strip() for part in line.split(separator, 1)] for line in lines]
        if all(len(row) == 2 and row[0].isdecimal() for row in rows):
            return _by_id(path, [(_number(index), name) for index, name in rows])
    return tuple(map(_unquoted, lines))


def _by_id(path: Path, rows: list[tuple[int, str]]) -> tuple[str, ...]:
    misfit = _misfit(rows)
    if misfit is not None:
        raise UserError(
            f"labels {path}: ids must be 0 to {len(rows) - 1} or 1 to {len(rows)}, each once; {misfit} does not fit (a name "
            f"that begins with a number needs its id before it, as in `0 10 m dash`)"
        )
    return tuple(_unquoted(name) for _, name in sorted(rows))


def _misfit(rows: list[tuple[int, str]]) -> int | None:
    """Find the first id that breaks the count from 0 or from 1."""
    ids = sorted(index for index, _ in rows)
    first = min(ids[0], 1) if ids else 0
    return next((index for place, index in enumerate(ids) if index != first + place), None)


def _number(digits: str) -> int:
    """Convert digits to a whole number; all numbers too long to be ids become the same one."""
    return int(digits) if len(digits) < 20 else 10**20


def _unquoted(name: str) -> str:
    """Remove the quotes that some label maps keep around names with blanks."""
    name = name.strip()
    return name[1:-1].strip() if len(name) > 1 and name[0] == name[-1] == '"' else name
