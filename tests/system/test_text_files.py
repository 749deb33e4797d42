"""Files of text, whatever lies in their place."""

import csv
import os
from contextlib import suppress
from pathlib import Path

import pytest

from videornn.errors import UserError
from videornn.system.files import append_table, write_table
from videornn.system.text_files import NoFile, cell_of, json_lines, parse_json, read_bytes, read_json, read_rows, read_text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def _error(read, *arguments: object) -> str:
    with pytest.raises(UserError) as error:
        read(*arguments)
    return str(error.value)


def test_only_a_file_is_opened(path: Path) -> None:
    with pytest.raises(NoFile, match="file does not exist"):
        read_bytes(path)
    path.mkdir()
    assert _error(read_bytes, path) == f"{path} is a folder, not a file"
    path.rmdir()
    os.mkfifo(path)
    assert _error(read_bytes, path) == f"{path} is a pipe or a device, not a file"
    assert _error(read_bytes, "/dev/zero") == "/dev/zero is a pipe or a device, not a file"


def test_no_more_is_read_than_a_file_can_have(path: Path) -> None:
    path.write_bytes(b"12345")
    assert read_bytes(path, max_bytes=5) == b"12345"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a terabyte that takes no room
    assert "too large for what it should be (1,099,511.6 MB, of at most 0.0 MB)" in _error(
        lambda: read_bytes(path, max_bytes=5)
    )
    # a file of the system has no size before it is read
    assert "too large" in _error(lambda: read_bytes("/proc/self/maps", max_bytes=5))


def test_text_is_utf_8(path: Path) -> None:
    path.write_bytes("\ufeffgrößer\n".encode())
    assert read_text(path) == "größer\n"
    for content, problem in [
        ("größer".encode("utf-16-be"), "is no text: it has a zero byte in line 1"),
        ("größer".encode("utf-16"), "is written in UTF-16: save it in UTF-8"),
        ("a\ngrößer".encode("latin-1"), ":2: byte 0xf6 is not UTF-8: save the file in UTF-8"),
        (b"a\nb\0", "is no text: it has a zero byte in line 2"),
    ]:
        path.write_bytes(content)
        assert problem in _error(read_text, path) and str(path) in _error(read_text, path)
    path.write_bytes(b"caf\xe9")
    assert read_text(path, errors="surrogateescape") == "caf\udce9"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "file is not valid JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("", "file is not valid JSON: Expecting value: line 1 column 1 (char 0)"),
        ("[" * 200_000, "file is not valid JSON: it is nested too deep"),
        ("9" * 5000, "file is not valid JSON: it has a number with thousands of digits"),
    ],
)
def test_what_is_no_json_is_one_sentence(path: Path, text: str, problem: str) -> None:
    path.write_text(text)
    assert problem in _error(read_json, path)


def test_bytes_that_are_no_text_are_no_json() -> None:
    assert _error(parse_json, b'{"a": "\xff"}', "line 3") == "line 3 is not valid JSON: it is no text in UTF-8"


def test_of_lines_that_a_run_adds_the_last_may_be_cut_short_and_no_other_be_wrong(path: Path) -> None:
    def read() -> list[int]:
        return [record["step"] for _, record in json_lines(path, lambda record: isinstance(record.get("step"), int))]

    good = b'{"step": 1}\n{"step": 2}\n'
    for torn in (b"", b'{"ste', b'{"step": 3}', b"\0\0\0\n", b'{"step": "3"}\n', b"[3]\n", b"\xff\n"):
        path.write_bytes(good + torn)
        assert read() == [1, 2]
        if torn.endswith(b"\n"):
            path.write_bytes(good + torn + good)
            message = _error(read)
            assert message.startswith(f"{path}:3 is n") and message.endswith("; take the line out, or move the file away")


def test_a_table_has_its_columns_and_every_row_all_of_them(path: Path) -> None:
    path.write_bytes(b'path,reason\r\n"a,b","x\ny"\r\n\r\ncaf\xe9\r\n1,2,3\r\n')
    assert read_rows(path, ("path",)) == [
        {"path": "a,b", "reason": "x\ny"},
        {"path": "caf\udce9", "reason": ""},
        {"path": "1", "reason": "2"},
    ]
    assert _error(read_rows, path, ("path", "score")) == f"{path} is no table with a column 'score'"
    path.write_bytes(b"")
    assert _error(read_rows, path, ("path",)) == f"{path} is no table with a column 'path'"
    path.write_text("path\n" + "a" * 200_000)
    assert f"{path}:2: this is no CSV (field larger than field limit" in _error(read_rows, path, ("path",))


TEXTS = [
    "=cmd|' /C calc'!A0",
    "+1 more.mp4",
    "-a.mp4",
    "@home",
    "\tblank",
    "\rback",
    "'quoted'",
    "''",
    "'=1",
    "''-x",
    "-",
    "-1_000 b",
]
PLAIN = ["", "a=b", "clip-1.mp4", "'", "'quoted'", "''", "-3.5", "-inf", "nan", "+1"]


def test_no_cell_is_a_formula_and_all_come_back(tmp_path: Path) -> None:
    rows = [[name, 3, -3.5, f"{-3.5:.4f}"] for name in (*TEXTS, *PLAIN)]
    write_table(tmp_path / "a.csv", ["name", "count", "-x", "number"], rows)
    append_table(tmp_path / "b.csv", ["name", "count", "-x", "number"], rows[:5])
    append_table(tmp_path / "b.csv", ["name", "count", "-x", "number"], rows[5:])
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    with open(tmp_path / "a.csv", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    for cell in cells:
        with suppress(ValueError):
            float(cell)
            continue
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert "-3.5" in cells and "-3.5000" in cells and "'-x" in cells  # numbers are numbers
    read = read_rows(tmp_path / "a.csv", ("name", "-x"))
    assert [row["name"] for row in read] == [*TEXTS, *PLAIN]
    assert {(row["count"], row["-x"], row["number"]) for row in read} == {("3", "-3.5", "-3.5000")}
    assert [cell_of(text) for text in PLAIN] == PLAIN and cell_of(-1) == -1
