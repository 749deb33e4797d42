"""Read text files given to commands: regular files of plausible size, in UTF-8, or one sentence why not."""

from __future__ import annotations

import csv
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from videornn.errors import UserError

MAX_BYTES = 1 << 30  # a row of 300 bytes for three million videos, or for as many steps
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
FORMULA = re.compile("'*[=+\\-@\t\r]")  # what spreadsheets compute, or would without the apostrophe


class NoFile(UserError):
    """Raised if there is no file at a path."""


def read_bytes(path: str | Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a file, in whose place there may be something else.

    Raises:
        NoFile: there is none.
        UserError: it is a folder, a pipe or a device, or too large for its kind.
        OSError: it may not be read; the command line turns this into one sentence.
    """
    try:
        status = os.stat(path)  # first, because opening a pipe waits for its writer
    except FileNotFoundError:
        raise NoFile(f"{path} does not exist") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is {'a folder' if stat.S_ISDIR(status.st_mode) else 'a pipe or a device'}, not a file")
    with open(path, "rb") as file:
        # files of the system claim to have no size
        content = file.read(max_bytes + 1) if status.st_size <= max_bytes else b""
    if max(status.st_size, len(content)) > max_bytes:
        size = f"{max(status.st_size, len(content)) / 1e6:,.1f} MB"
        raise UserError(f"{path} is too large for what it should be ({size}, of at most {max_bytes / 1e6:,.1f} MB)")
    return content


def read_text(path: str | Path, *, max_bytes: int = MAX_BYTES, errors: str = "strict") -> str:
    """Read the text of a file, without the byte order mark that some editors put first.

    Args:
        errors: surrogateescape if a file holds names of other files, which need not be UTF-8.

    Raises:
        UserError: as read_bytes, and if it is no text in UTF-8.
        OSError: as read_bytes.
    """
    content = read_bytes(path, max_bytes=max_bytes)
    if content.startswith(UTF16_MARKS):
        raise UserError(f"{path} is written in UTF-16: save it in UTF-8")
    if b"\0" in content:
        raise UserError(f"{path} is no text: it has a zero byte in line {_line_of(content, content.index(0))}")
    try:
        return content.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        line = _line_of(content, error.start)
        raise UserError(f"{path}:{line}: byte {content[error.start]:#04x} is not UTF-8: save the file in UTF-8") from None


def read_json(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """Read the value in a JSON file; raises UserError as read_text, and if it is no JSON, and OSError as read_bytes."""
    return parse_json(read_text(path, max_bytes=max_bytes), str(path))


def parse_json(text: str | bytes, place: str, object_hook: Callable[[dict], Any] | None = None) -> Any:
    """Parse a JSON text; raises UserError, which begins with its place, if it is none.

    Args:
        object_hook: turns every object into the value that replaces it.
    """
    try:
        return json.loads(text, object_hook=object_hook)
    except RecursionError:
        raise UserError(f"{place} is not valid JSON: it is nested too deep") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{place} is not valid JSON: {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{place} is not valid JSON: it is no text in UTF-8") from None
    except ValueError:  # whole numbers with thousands of digits, too
        raise UserError(f"{place} is not valid JSON: it has a number with thousands of digits") from None


def json_lines(path: str | Path, is_sound: Callable[[dict[str, Any]], bool]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield the lines of a file to which a run adds objects, one per line, with the objects.

    An incomplete last line, left by a kill, a full disk or a power cut, is skipped.

    Args:
        is_sound: returns whether an object is as it should be.

    Raises:
        UserError: as read_bytes, and if a line before the last is no such object.
        OSError: as read_bytes.
    """
    lines = read_bytes(path).splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line, f"{path}:{number}")
            if not isinstance(record, dict) or not line.endswith(b"\n") or not is_sound(record):
                raise UserError(f"{path}:{number} is no record as it was written")
        except UserError as error:
            if number == len(lines):
                return
            raise UserError(f"{error}; take the line out, or move the file away") from error
        yield line, record


def read_rows(path: str | Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Read the rows of a CSV file with a header, by column; missing cells are "", and surplus ones are left out.

    Args:
        columns: columns that the file must have.

    Raises:
        UserError: as read_text, and if it is no such table.
        OSError: as read_bytes.
    """
    rows = read_cells(path)
    header = next(rows, [])
    if lacking := [name for name in columns if name not in header]:
        raise UserError(f"{path} is no table with a column {lacking[0]!r}")
    return [dict.fromkeys(header, "") | dict(zip(header, row, strict=False)) for row in rows if row]


def read_cells(path: str | Path) -> Iterator[list[str]]:
    """Yield the texts of each row of a CSV file, its header too; an empty line is an empty row.

    Raises:
        UserError: as read_text, and where it is no CSV.
        OSError: as read_bytes.
    """
    reader = csv.reader(StringIO(read_text(path, errors="surrogateescape"), newline=""))
    try:
        for row in reader:
            yield [text_of_cell(cell) for cell in row]
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: this is no CSV ({error})") from None


def cell_of(value: object) -> object:
    """Return a cell that spreadsheets take for text: an apostrophe is put before anything that they would compute.

    Numbers stay as they are. text_of_cell removes the apostrophe.
    """
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) and not _is_number(value) else value


def text_of_cell(cell: str) -> str:
    """Return the text that cell_of was given."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.strip() == text


def _line_of(content: bytes, place: int) -> int:
    return content.count(b"\n", 0, place) + 1
