"""Places for results are tried before any work; every command says the same of one that will not do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers import ROOT

from videornn.errors import UserError
from videornn.system.files import append_table, check_output_file, make_folder, replacing, write_text


def _says(check, path: Path) -> str:
    with pytest.raises(UserError) as caught:
        check(path, "--here")
    sentence = str(caught.value)
    assert sentence.startswith(f"--here {path}: ")
    return sentence.removeprefix(f"--here {path}: ")


def test_a_place_that_will_do_is_left_as_it_is_but_for_the_folder(tmp_path: Path) -> None:
    make_folder(tmp_path / "a/b")
    make_folder(tmp_path / "a/b")
    check_output_file(tmp_path / "a/page.html")
    (tmp_path / "old.csv").write_text("kept")
    check_output_file(tmp_path / "old.csv")
    make_folder(None)
    check_output_file(None)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "old.csv"]
    assert (tmp_path / "old.csv").read_text() == "kept"


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert _says(make_folder, tmp_path / "file") == "is a file; give the name of a folder"
    assert _says(make_folder, tmp_path / "file/x") == "the folder cannot be made (Not a directory); choose another one"
    assert _says(check_output_file, tmp_path) == "is a folder; give the name of a file"
    assert _says(check_output_file, tmp_path / "no/x.csv") == f"there is no folder {tmp_path}/no"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a folder in which not even root can write, on Linux")
def test_no_file_takes_the_place_of_a_device_or_a_pipe(tmp_path: Path) -> None:
    """infer --csv /dev/null by root put a file there, for the whole machine."""
    pipe, output, null = tmp_path / "pipe", tmp_path / "stdout", tmp_path / "null"
    os.mkfifo(pipe)
    output.symlink_to("/proc/self/fd/1")
    null.symlink_to("/dev/null")
    for path in (pipe, output, null):
        before = path.lstat()
        assert _says(check_output_file, path) == "is a device or a pipe; give the name of a file"
        for write in (write_text, lambda path, text: append_table(path, [text], [])):
            with pytest.raises(UserError, match=f"{path.name}: is a device or a pipe"):
                write(path, "text")
        assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert len(list(tmp_path.iterdir())) == 3
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").touch()
    check_output_file(tmp_path / "link")


def test_a_folder_in_which_nothing_can_be_written_is_found_out_by_trying() -> None:
    folder = Path("/proc/self")
    assert _says(make_folder, folder).startswith("nothing can be written in /proc/self (")
    assert _says(check_output_file, folder / "x.csv").startswith("nothing can be written in /proc/self (")
    assert _says(make_folder, folder / "x").startswith("the folder cannot be made (")


def test_an_error_of_writing_has_the_name_of_the_file(tmp_path: Path, room_for_files) -> None:
    path = tmp_path / "a.txt"
    with room_for_files(10), pytest.raises(OSError, match="File too large") as caught:
        write_text(path, "x" * 100)
    assert caught.value.filename == str(path) and list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError) as caught:  # not the temporary name
        write_text(tmp_path / "no/a.txt", "")
    assert caught.value.filename == str(tmp_path / "no/a.txt")
    with pytest.raises(PermissionError) as caught, replacing(path):
        raise PermissionError(1, "not permitted", "another.txt")
    assert caught.value.filename == "another.txt"


def test_a_full_disk_is_one_sentence_of_any_command(videornn, tmp_path: Path, room_for_files) -> None:
    with room_for_files(10):
        code, _, err = videornn("data", "synthetic", tmp_path / "out")
    place = tmp_path / "out/synthetic.partial.json"
    assert (code, err) == (2, f"videornn: {place}: file too large; make room, then give the same command again\n")


def test_every_job_that_makes_its_own_folder_refuses_a_file_in_its_place(
    videornn, motion_set: Path, tiny_settings: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("kept")
    config = ROOT / "configs/quickstart.yaml"
    for arguments, option in (
        (["train", config, *tiny_settings, "--out", tmp_path / "file"], "--out"),
        (["data", "synthetic", tmp_path / "file"], "OUT"),
        (["data", "list", motion_set / "videos/test", "--out", tmp_path / "file"], "--out"),
    ):
        code, _, err = videornn(*arguments)
        assert (code, err) == (2, f"videornn: {option} {tmp_path}/file: is a file; give the name of a folder\n")
    assert (tmp_path / "file").read_text() == "kept"
