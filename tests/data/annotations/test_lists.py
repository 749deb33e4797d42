"""`videornn data list`: what it writes is read back identically, whatever the names; what it counts; what it refuses."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest

from videornn.cli import main
from videornn.data.annotations.labels import format_labels
from videornn.data.annotations.load import VideoTable, load_labels, load_videos
from videornn.data.annotations.make_lists import make_lists
from videornn.data.annotations.plain import format_line
from videornn.errors import UserError
from videornn.system.files import write_text


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def _rows(table: VideoTable) -> list[tuple[str, int]]:
    return [table[index] for index in range(len(table))]


AWKWARD = [
    *("plain.mp4", "two words.mp4", "a,b.mp4", "a.mp4,b.mp4", "a.mp4 b.mp4", " leading.mp4", "trailing.mp4 ", "a  b.mp4"),
    *("tab\there.mp4", '"quoted".mp4', 'in"side.mp4', '"', "clip 12", "clip 12 3", "12", "-5", "x.mp4 3", "#1.avi", "path"),
    *(
        "folder,5",
        "folder\t5",
        "é ü.mp4",
        "no\u00a0break.mp4",
        "video label",
        "{a}.mp4",
        "[b] c.mp4",
        "A/b c/d.MP4",
        "frames",
        "a;b.mp4",
        "a.mp4;3",
        "'single'",
        "'a b.mp4'",
        "back\\slash.mp4",
        "path class_id",
    ),
]


def test_lines_come_back_as_they_were_alone_and_together(tmp_path: Path) -> None:
    generator = random.Random(0)
    alphabet = ["a", "7", " ", " ", ",", '"', "\t", ".mp4", ".mp4 ", "-", "é", "#", "/", "label", ";", "'", "\\"]
    names = AWKWARD + ["".join(generator.choices(alphabet, k=generator.randrange(1, 9))) for _ in range(300)]
    names = [name for name in names if not name.startswith("/")]
    lists = [[name] for name in names] + [generator.sample(names, 5) for _ in range(100)] + [names]
    for paths in lists:
        for labels in ([generator.randrange(400) for _ in paths], [-1] * len(paths)):
            text = "".join(format_line(path, label) + "\n" for path, label in zip(paths, labels, strict=True))
            (tmp_path / "list.txt").write_text(text)
            table = load_videos(str(tmp_path / "list.txt"))
            assert list(table.paths) == paths, text
            assert table.labels.tolist() == labels, text
    for name in ("line\nbreak.mp4", "not \udcff UTF-8.mp4"):
        with pytest.raises(UserError, match="rename it"):
            format_line(name, 1)


AWKWARD_CLASSES = [
    ("a b", "c"),
    ("0", "1"),
    ("1 hand", "2 hands"),
    ("1 person",),
    ("10 m dash", "100 m sprint"),
    ("0 x", "1 y"),
    ("0, x", "1, y"),
    ("0: x",),
    ("[x]", "y"),
    ("[x",),
    ("{",),
    ("id,name", "0,x"),
    ("label,index", "a,0"),
    ("2 b", "3 c"),
    ("a,0",),
    ('"quoted"', 'in"side', '"'),
    ("blank ", " blank", "blank"),
    ("\ufeffmark", "é ü", "\u2028", "line\nbreak", "\x85", " "),
    ("not \udcff UTF-8",),
    ("wave", "Wave", "_", "[]"),
]


def test_label_maps_come_back_as_they_were(tmp_path: Path) -> None:
    generator = random.Random(0)
    alphabet = [
        "a",
        "0",
        "1",
        " ",
        " ",
        ",",
        ":",
        '"',
        "\t",
        "[",
        "{",
        "]",
        "é",
        "#",
        "\\",
        "\n",
        "\r",
        "id",
        "name",
        "\ufeff",
    ]
    drawn = [{"".join(generator.choices(alphabet, k=generator.randrange(1, 6))) for _ in range(5)} for _ in range(500)]
    for names in [*AWKWARD_CLASSES, *map(tuple, drawn)]:
        write_text(tmp_path / "labels.txt", format_labels(names))
        assert load_labels(tmp_path / "labels.txt") == names
    assert format_labels(("air drumming", "zumba")) == "air drumming\nzumba\n"
    assert format_labels(("10 m dash", "100 m sprint")) == "0 10 m dash\n1 100 m sprint\n"


def test_class_folders_are_divided_class_by_class_and_always_alike(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    sizes = {"bend": 20, "jump up": 7, "one": 1, "two": 2}
    _touch(videos, *[f"{name}/{name} {i:02d}.mp4" for name, size in sizes.items() for i in range(size)])
    report = make_lists(str(videos), tmp_path, val_share=0.2)
    assert [file.name for file in report.files] == ["train.txt", "val.txt", "labels.txt"]
    train, val, whole = (load_videos(str(source)) for source in (tmp_path / "train.txt", tmp_path / "val.txt", videos))
    assert np.bincount(val.labels, minlength=4).tolist() == [4, 1, 0, 1]
    assert sorted(_rows(train) + _rows(val)) == sorted(_rows(whole))
    assert train.class_names == val.class_names == whole.class_names == ("bend", "jump up", "one", "two")
    assert (tmp_path / "val.txt").read_text().startswith("videos/bend/bend ")  # the folder can move as a whole
    before = {path for path, _ in _rows(val)}
    make_lists(str(videos), tmp_path / "elsewhere", val_share=0.2)
    again = load_videos(str(tmp_path / "elsewhere/val.txt"))
    assert _rows(again) == _rows(val) and (tmp_path / "elsewhere/val.txt").read_text().startswith("/")
    _touch(videos, "bend/new.mp4")
    make_lists(str(videos), tmp_path / "more", val_share=0.2)
    assert len(before - {path for path, _ in _rows(load_videos(str(tmp_path / "more/val.txt")))}) <= 1


def test_kinetics_lists_say_what_is_missing_and_where(tmp_path: Path) -> None:
    rows = [("abseiling", "a"), ("abseiling", "b"), ("zumba", "c"), ("zumba", "d"), ("zumba", "e"), ("air drumming", "f")]
    text = "".join(f"{name},{video * 11},1,11,val,0\n" for name, video in rows)
    (tmp_path / "k.csv").write_text("label,youtube_id,time_start,time_end,split,is_cc\n" + text)
    _touch(tmp_path, *[f"val/{video * 11}_000001_000011.mp4" for video in "abcf"])
    report = make_lists(str(tmp_path / "k.csv"), tmp_path / "lists", root=str(tmp_path / "val"))
    assert report.class_names == ("abseiling", "air drumming", "zumba")
    assert (report.num_found.tolist(), report.num_missing.tolist()) == ([2, 1, 1], [0, 0, 2])
    table = report.table()
    assert [list(column.cells) for column in table.columns] == [
        ["zumba", "air drumming", "abseiling", "all 3 classes"],
        ["1", "1", "2", "4"],
        ["2", "0", "0", "2"],
    ]
    assert (tmp_path / "lists/k_missing.txt").read_text() == "ddddddddddd_000001_000011\neeeeeeeeeee_000001_000011\n"
    assert _rows(load_videos(str(tmp_path / "lists/k.txt"))) == _rows(load_videos(str(tmp_path / "k.csv")))
    assert load_labels(tmp_path / "lists/labels.txt") == report.class_names


def test_both_lists_of_official_splits_are_made_and_lists_without_labels_stay_without(tmp_path: Path) -> None:
    _touch(tmp_path, "clap/a.avi", "wave/b.avi", "wave/c.avi")
    (tmp_path / "clap_test_split1.txt").write_text("a.avi 1 \n")
    (tmp_path / "wave_test_split1.txt").write_text("b.avi 2 \nc.avi 1\nd.avi 2\n")
    report = make_lists(str(tmp_path), tmp_path)
    names = [file.name for file in report.files]
    assert names == ["train.txt", "test.txt", "test_missing.txt", "labels.txt"]
    assert (tmp_path / "train.txt").read_text() == "clap/a.avi 0\nwave/c.avi 1\n"
    assert (tmp_path / "test.txt").read_text() == "wave/b.avi 1\n"
    assert "(test, split 1): 1 of 2 listed videos" in report.remarks[0]
    (tmp_path / "paths.txt").write_text("clap/a.avi\nwave/gone.avi\nwave/b.avi\n")
    report = make_lists(str(tmp_path / "paths.txt"), tmp_path / "new")
    assert load_videos(str(tmp_path / "new/paths.txt")).labels.tolist() == [-1, -1]
    assert (report.total_found, report.total_missing) == (2, 1)
    assert list(report.table().columns[0].cells) == ["all, without labels"]


def test_the_table_shows_the_worst_classes_and_counts_the_rest(tmp_path: Path) -> None:
    _touch(tmp_path, *[f"videos/c{i:02d}/{j}.mp4" for i in range(40) for j in range(i + 1)])
    cells = [list(column.cells) for column in make_lists(str(tmp_path / "videos"), tmp_path).table().columns]
    assert cells[0] == [*(f"c{i:02d}" for i in range(15)), "... 25 more classes", "all 40 classes"]
    assert cells[1][-2:] == [str(sum(range(16, 41))), str(sum(range(1, 41)))]


def _videornn(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["videornn", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_command_prints_the_table_and_refuses_to_replace_other_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _touch(tmp_path, *[f"videos/{name}/{i}.mp4" for name in ("walk", "run") for i in range(4)])
    command = ("data", "list", tmp_path / "videos", "--out", tmp_path / "lists", "--val-share", 0.25)
    for _ in range(2):  # the same lists again are no conflict
        assert _videornn(monkeypatch, *command) == 0
        out = capsys.readouterr().out
        assert "walk" in out and "all 2 classes" in out and "lists/val.txt" in out
    (tmp_path / "lists/val.txt").write_text("mine.mp4 0\n")
    (tmp_path / "lists/train.txt").unlink()
    assert _videornn(monkeypatch, *command) == 2
    assert "val.txt exists with another content" in capsys.readouterr().err
    assert not (tmp_path / "lists/train.txt").exists()
    (tmp_path / "gone.txt").write_text("gone.mp4 0\n")
    for arguments, message in [
        (["nowhere"], "nowhere does not exist"),
        ([tmp_path / "videos", "--val-share", "1.5"], "between 0 and 1"),
        ([tmp_path / "gone.txt"], "none of its 1 videos is there"),
        ([tmp_path / "videos", "--labels", tmp_path / "none.txt"], "none.txt does not exist"),
    ]:
        assert _videornn(monkeypatch, "data", "list", *arguments, "--out", tmp_path / "x") == 2
        err = capsys.readouterr().err
        assert message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "x").exists()
