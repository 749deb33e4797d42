"""Lists with the mistakes that people make: a sentence names the mistake and the way out, or a remark what is odd."""

import os
import random
from pathlib import Path

import pytest
from helpers import CONFIG

from videornn.config import load_config
from videornn.data.annotations.load import check_files, load_labels, load_videos
from videornn.data.annotations.make_lists import make_lists
from videornn.data.annotations.plain import format_line
from videornn.errors import UserError
from videornn.models.weights import read_weights
from videornn.training.preflight import load_training_data, remarks


def _list(folder: Path, text: str) -> str:
    (folder / "list.txt").write_text(text)
    return str(folder / "list.txt")


def _refusal(folder: Path, text: str) -> str:
    with pytest.raises(UserError) as error:
        load_videos(_list(folder, text))
    return str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "clip,category\na.mp4,wave\nb.mp4,walk\n",
        "clip\tcategory\na.mp4\twave\nb.mp4\twalk\n",
        "clip category\na.mp4 wave\n",
        "Video Clip,Kind of Action\na.mp4,wave hand\nb.mp4,walk\n",
        ",clip,category\n0,a.mp4,1\n1,b.mp4,0\n",
        '"clip","category"\n"a.mp4","wave"\n',
        "clip,category\nframes_1,0\nframes_2,1\n",
        "path\na.mp4\nb.mp4\n",
        "there,are,words\nthere,wave\n",  # the folder `there` is there
    ],
)
def test_a_header_of_unknown_words_is_no_video(tmp_path: Path, text: str) -> None:
    (tmp_path / "there").mkdir()
    assert "list.txt:1: " in (message := _refusal(tmp_path, text)) and "call its columns path and label" in message


@pytest.mark.parametrize(
    "text",
    [
        "frames_1 3\na.mp4 1\n",
        "frames_1,3\na.mp4,1\n",
        "there wave\na.mp4 walk\n",
        '"frames"\na.mp4\n',
        "a wave\nb walk\n",
        "a 1\n",
    ],
)
def test_a_folder_of_frames_before_files_is_no_header(tmp_path: Path, text: str) -> None:
    (tmp_path / "there").mkdir()
    assert len(load_videos(_list(tmp_path, text))) == text.count("\n")


@pytest.mark.parametrize("columns", ["start,end", "start_time,end_time", "start_frame,end_frame", "t_begin,t_stop"])
def test_columns_that_make_parts_of_videos_are_refused(tmp_path: Path, columns: str) -> None:
    message = _refusal(tmp_path, f"path,{columns},label\na.mp4,3,5,0\na.mp4,5,9,1\n")
    assert columns.replace(",", " and ") in message and "only whole videos can be used" in message


@pytest.mark.parametrize(
    "text", ["a.mp4;0\nb c.mp4;1\n", "path;label\na.mp4;wave\n", '"a b.mp4"; 0\n', "a.mp4;wave a hand\n"]
)
def test_a_semicolon_between_path_and_label_is_named(tmp_path: Path, text: str) -> None:
    assert "there is a `;` between path and label" in _refusal(tmp_path, text)


def test_quotes_are_named(tmp_path: Path) -> None:
    assert "list.txt:1: '\"a b.mp4 0': the `\"` before the path has no other one" in _refusal(tmp_path, '"a b.mp4 0\n')
    assert "list.txt:2: " in (message := _refusal(tmp_path, "a.mp4 0\n'a b.mp4' 0\n")) and 'is quoted with ", not' in message
    assert load_videos(_list(tmp_path, "'tis.mp4 0\n")).path(0) == f"{tmp_path}/'tis.mp4"


def test_a_list_of_which_no_video_is_there_is_refused_before_the_first_step(tmp_path: Path) -> None:
    for text, way_out in [
        (
            "a.mp4 0\nb.mp4 1\n",
            r"none of its 2 videos is there; the first would be .*/a\.mp4: .*relative to \(data\.root, or",
        ),
        ("clips\\a.mp4 0\nclips\\b.mp4 1\n", r"write its paths with / where they have \\, as on Windows"),
        ("/nowhere/of/mine/a.mp4 0\n", "absolute, of another place or another machine"),
        ("0,there.mp4,walk\n1,here.mp4,run\n", "its lines do not begin with the path: give it a header"),
        ("there walk\nhere run\n", r"give its paths their suffix, \.mp4"),
    ]:
        (tmp_path / "there.mp4").touch()
        with pytest.raises(UserError, match=way_out):
            load_training_data(load_config(CONFIG, [f"data.train={_list(tmp_path, text)}", "data.val=null"]))
        with pytest.raises(UserError, match=way_out):
            make_lists(_list(tmp_path, text), tmp_path / "out")
    (tmp_path / "last.mp4").touch()
    check_files(load_videos(_list(tmp_path, "".join(f"{i}.mp4 0\n" for i in range(1001)) + "last.mp4 0\nno.mp4 0\n")))


@pytest.mark.parametrize("text", ["walk a.mp4\nrun b.mp4\n", "walk,a.mp4\n", "a.mp4\nb.mp4\n"])
def test_lists_without_a_label_after_the_path_say_what_was_taken_for_one(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=f"a list has after the paths, such as {text.splitlines()[0]!r}"):
        load_training_data(load_config(CONFIG, [f"data.train={_list(tmp_path, text)}", "data.val=null"]))


def test_labels_from_1_are_remarked(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    source = _list(tmp_path, "a.mp4 1\nb.mp4 2\n")
    config = load_config(CONFIG, [f"data.train={source}", "data.val=null"])
    sentences = remarks(config, load_training_data(config)[0], 8)
    assert any("class 0; labels begin at 0, and those of the list at 1" in sentence for sentence in sentences)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _list(tmp_path, "~/clips/a.mp4 0\n~b.mp4 1\n")
    (tmp_path / "clips").mkdir()
    table = load_videos("~/list.txt")
    assert [table.path(row) for row in range(2)] == [f"{tmp_path}/clips/a.mp4", f"{tmp_path}/~b.mp4"]
    assert load_videos("~/list.txt", root="~/clips").path(1) == f"{tmp_path}/clips/~b.mp4"
    with pytest.raises(UserError, match=f"{tmp_path}/net.pth"):
        read_weights("~/net.pth")  # model.init
    assert format_line("~/a.mp4", 0) == "./~/a.mp4 0"  # of a folder that is called so


def test_spellings_of_one_class_and_videos_of_several_are_remarked(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    text = "a.mp4 Wave\nb.mp4 wave\nc.mp4 WAVE\na.mp4 walk\nd.mp4 air_drum\nc.mp4 WAVE\nc.mp4 wave\nc.mp4 walk\n"
    config = load_config(CONFIG, [f"data.train={_list(tmp_path, text)}", f"data.val={tmp_path}/list.txt"])
    data, _ = load_training_data(config)
    assert data.class_names == ("WAVE", "Wave", "air_drum", "walk", "wave")
    sentences = remarks(config, data, 8)
    assert sum("the classes WAVE, Wave, wave differ in spelling alone" in sentence for sentence in sentences) == 1
    assert any("2 videos are there under more than one label, the first a.mp4" in sentence for sentence in sentences)
    sound = load_videos(_list(tmp_path, "a.mp4 Wave\nb.mp4 walk\na.mp4 Wave\n"))
    assert sound.remarks() == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.mp4 0\nb.mp4 1\n".encode("utf-16"), "list.txt is written in UTF-16: save it in UTF-8"),
        ("a.mp4 0\né.mp4 1\n".encode("latin-1"), "list.txt:2: byte 0xe9 is not UTF-8: "),
        (b"a.mp4 0\nb\0.mp4 1\n", "list.txt:2: here is a zero byte"),
        (b"a.mp4 0\n" + b"1 " * 20_000, "list.txt:2: no list has such long lines"),
        (b"\x89PNG\r\n", "list.txt:1: byte 0x89 is not UTF-8"),
        (b'{"path": "a.mp4", "label": 0}\n{"path": "b.mp4", "label": 1}\n', "list.txt: this JSON is no list of videos"),
        (b'[\n  {"path": "a.mp4", "label": 0}\n]\n', "list.txt: this JSON is no list of videos"),
    ],
)
def test_a_file_that_is_no_list_is_told_why_and_in_which_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError) as error:
        load_videos(str(tmp_path / "list.txt"))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_sources_that_cannot_be_lists_are_refused_before_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "json.json").write_text("[" * 100_000)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "clip.MTS").touch()
    for name, message in [
        ("json.json", "nested too deep"),
        ("pipe", "is a pipe or a device"),
        ("clip.MTS", r"clip\.MTS is a video: give a file of `path label` lines"),
    ]:
        with pytest.raises(UserError, match=message):
            load_videos(str(tmp_path / name))


@pytest.mark.parametrize("text", ["label,path\n0,\n", "id,path,label\n1,,0\n", "path,label\n,0\n"])
def test_a_row_without_a_path_is_named(tmp_path: Path, text: str) -> None:
    assert "list.txt:2: " in (message := _refusal(tmp_path, text)) and ("no path" in message or "no label" in message)


def test_whatever_a_file_holds_it_is_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    generator = random.Random(0)
    words = [
        *'a7  ,,;\t"{[]:\\é\ufeff\n\n\n\r\x0b\u2028',
        ".mp4",
        ".ts",
        "-1",
        "0",
        "path",
        "label",
        "class_name",
        "id",
        "~/",
    ]
    refused = 0
    for _ in range(400):
        (tmp_path / "list.txt").write_text("".join(generator.choices(words, k=generator.randrange(1, 25))), newline="")
        for read in (load_videos, load_labels):
            try:
                read(str(tmp_path / "list.txt"))
            except UserError:
                refused += 1
    assert 100 < refused < 700
