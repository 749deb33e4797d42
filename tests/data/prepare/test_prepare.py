"""Prepared lists are read by training as they are, shards make what one run makes, and both survive kill -9."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from textures import write_textures

from videornn.data.annotations.load import load_videos
from videornn.data.prepare.prepare import prepare_videos
from videornn.data.prepare.reencode import Encoding, reencode
from videornn.data.video.decoders import open_video


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers take seconds to start; what they do is the same here."""
    from videornn.data.prepare import prepare
    from videornn.system.workers import run_parallel

    monkeypatch.setattr(prepare, "run_parallel", lambda work, jobs, **_: run_parallel(work, jobs, num_workers=0))


@pytest.fixture
def source_list(make_video, tmp_path: Path) -> Path:
    """Six sound videos (one twice in the list, two of one stem), a text, and a file that is not there."""
    folder = tmp_path / "in"
    for name in ("a/one.mp4", "a/one.avi", "a/two words.mkv", "b/three.mp4", "b/deep/four.mp4", "five.mp4"):
        make_video(folder / name, 20)
    (folder / "b/text.mp4").write_text("this is text")
    lines = ["a/one.mp4 0", "b/text.mp4 1", "a/one.avi 1", "a/two words.mkv 0", "b/gone.mp4 1", "b/three.mp4 1"]
    lines += ["b/deep/four.mp4 0", "five.mp4 1", "a/one.mp4 1"]
    (folder / "train.txt").write_text("".join(f"{line}\n" for line in lines))
    (folder / "labels.txt").write_text("walk\nrun\n")
    return folder / "train.txt"


LISTED = [
    "a/one.mp4 0",
    "a/one.avi.mp4 1",
    "a/two words.mp4 0",
    "b/three.mp4 1",
    "b/deep/four.mp4 0",
    "five.mp4 1",
    "a/one.mp4 1",
]


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_class_names_that_begin_with_numbers_come_back(one_process, make_video, tmp_path: Path) -> None:
    names = ("1 person", "10 m dash")
    for name in names:
        make_video(tmp_path / "in" / name / "a.mp4", 8)
    for _ in range(2):  # the second time they are there already
        prepared = prepare_videos(str(tmp_path / "in"), tmp_path / "out", Encoding(), num_measured=0)
    table = load_videos(str(prepared.list_file))
    assert table.class_names == names and table.labels.tolist() == [0, 1]


def test_the_list_is_read_by_training_as_it_is(one_process, source_list: Path, tmp_path: Path) -> None:
    prepared = prepare_videos(str(source_list), tmp_path / "out", Encoding(), num_measured=2)
    assert prepared.list_file == tmp_path / "out/train.txt"
    assert prepared.list_file.read_text().splitlines() == LISTED
    table = load_videos(str(prepared.list_file))
    assert table.class_names == ("walk", "run")
    assert all(open_video(table.path(index)).num_frames == 20 for index in range(len(table)))
    rows = list(csv.DictReader((tmp_path / "out/train.report.csv").open(newline="")))
    assert [row["status"] for row in rows] == ["ok", "undecodable", "ok", "ok", "missing", "ok", "ok", "ok"]
    assert rows[4]["reason"] == "no such file" and rows[4]["path"].endswith("b/gone.mp4")
    assert [row["mean_psnr"] != "" for row in rows] == [True] + 7 * [False]  # the other one measured is missing
    assert int(rows[0]["output_bytes"]) == (tmp_path / "out/a/one.mp4").stat().st_size
    record = json.loads((tmp_path / "out/prepare.json").read_text())
    assert record == {
        "format": 2,
        "short_side": 256,
        "temporal_stride": 8,
        "variant": "disposable",
        "crf": 22,
        "preset": "medium",
    }


def test_shards_make_together_what_one_run_makes(one_process, source_list: Path, tmp_path: Path) -> None:
    prepare_videos(str(source_list), tmp_path / "whole", Encoding(), num_measured=0)
    for number, (part, missing) in enumerate(((2, [1, 3]), (3, [1]), (1, []))):
        prepared = prepare_videos(str(source_list), tmp_path / "parts", Encoding(), shard=(part, 3), num_measured=0)
        assert prepared.missing_shards == missing
        assert (tmp_path / "parts/train.txt").exists() == (number == 2)
        assert len(prepared.rows) in (2, 3)
    whole, parts = _contents(tmp_path / "whole"), _contents(tmp_path / "parts")
    reports = {name for name in parts if "report" in name}
    assert reports == {f"train.report-{part}-of-3.csv" for part in (1, 2, 3)}
    assert {name: data for name, data in parts.items() if name not in reports} == {
        name: data for name, data in whole.items() if name != "train.report.csv"
    }


def test_what_is_done_is_not_done_again(one_process, source_list: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_videos(str(source_list), out, Encoding(), num_measured=0)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    report = (out / "train.report.csv").read_bytes()
    (out / "b/three.mp4").unlink()
    prepare_videos(str(source_list), out, Encoding(), num_measured=0)
    changed = {path.name for path, time_ns in times.items() if path.stat().st_mtime_ns != time_ns}
    assert changed == {"three.mp4"} and (out / "train.report.csv").read_bytes() == report


def test_a_source_may_go_once_its_file_is_made_and_is_taken_again_where_it_changes(
    one_process, make_video, tmp_path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/list.txt").write_text("a.mp4 0\n")
    source, target = make_video(tmp_path / "in/a.mp4", 20), tmp_path / "out/a.mp4"
    (row,) = prepare_videos(str(tmp_path / "in/list.txt"), tmp_path / "out", Encoding()).rows
    assert (row.status, row.num_frames) == ("ok", 20)
    source.unlink()
    (row,) = prepare_videos(str(tmp_path / "in/list.txt"), tmp_path / "out", Encoding()).rows
    assert (row.status, row.num_frames) == ("ok", 20)
    for ahead in (0, 10**12):  # of the clock here, in nanoseconds
        os.utime(make_video(source, 21 if ahead else 22), ns=(0, target.stat().st_mtime_ns + 10**6 + ahead))
        times = set()
        for _ in range(2):
            (row,) = prepare_videos(str(tmp_path / "in/list.txt"), tmp_path / "out", Encoding()).rows
            assert (row.status, row.num_frames) == ("ok", 21 if ahead else 22)
            times.add(target.stat().st_mtime_ns)
        assert len(times) == 1  # it was made once
    os.utime(make_video(source, 23), ns=(0, 0))  # with a time that says nothing, what is measured still finds it
    (row,) = prepare_videos(str(tmp_path / "in/list.txt"), tmp_path / "out", Encoding()).rows
    assert row.status == "undecodable" and "made of another video" in row.reason


def test_two_lists_share_a_folder(one_process, source_list: Path, tmp_path: Path) -> None:
    (source_list.parent / "val.txt").write_text("five.mp4 1\n")
    for name in ("train", "val"):
        prepare_videos(str(source_list.with_name(f"{name}.txt")), tmp_path / "out", Encoding(), num_measured=0)
    assert (tmp_path / "out/val.txt").read_text() == "five.mp4 1\n"
    assert len((tmp_path / "out/train.txt").read_text().splitlines()) == 7


def test_class_folders_keep_their_classes(one_process, make_video, tmp_path: Path) -> None:
    for name in ("run/a.avi", "walk/b.mp4"):
        make_video(tmp_path / "videos" / name, 10)
    prepared = prepare_videos(str(tmp_path / "videos"), tmp_path / "out", Encoding(), num_measured=0)
    assert prepared.list_file.read_text() == "run/a.mp4 0\nwalk/b.mp4 1\n"
    assert load_videos(str(prepared.list_file)).class_names == ("run", "walk")


def test_a_sound_folder_of_frames_is_told_from_what_is_no_video(one_process, make_video, tmp_path: Path) -> None:
    make_video(tmp_path / "in/wave/one.mp4", 10)
    (tmp_path / "in/wave/two").mkdir()
    for number in range(3):
        Image.new("RGB", (64, 48)).save(tmp_path / f"in/wave/two/{number}.png")
    prepared = prepare_videos(str(tmp_path / "in"), tmp_path / "out", Encoding())
    told = {Path(row.path).name: (row.status, row.reason) for row in prepared.rows}
    assert told["one.mp4"] == ("ok", "")
    assert told["two"] == ("no_video", "is a folder of frames, which need no preparing: train on it as it is")


@pytest.mark.slow
def test_killed_at_any_time_it_goes_on_to_the_same_files(tmp_path: Path) -> None:
    """kill -9 of the whole process group in the middle of a file."""
    (tmp_path / "in").mkdir()
    for index in range(6):
        write_textures(tmp_path / f"in/{index}.mp4", 60, size=(160, 128), g=str(20 + index))
    source = tmp_path / "in/list.txt"
    source.write_text("".join(f"{index}.mp4 0\n" for index in range(6)))
    command = [sys.executable, "-m", "videornn", "data", "prepare", str(source)]
    options = ["--preset", "veryslow", "--quality", "0", "--workers", "1"]
    out = tmp_path / "killed"
    process = subprocess.Popen([*command, str(out), *options], start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(out.glob("*.mp4"))) < 2:  # the third is under way
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "list.txt").exists() and not list(out.glob("*.csv"))
    for path in out.glob("*.mp4"):
        assert open_video(path).num_frames == 60
    finished = subprocess.run([*command, str(out), *options], capture_output=True, text=True)
    assert finished.returncode == 0 and "6 │ prepared" in finished.stdout, finished.stderr
    encoding = Encoding(preset="veryslow")
    for index in range(6):
        reencode(str(tmp_path / f"in/{index}.mp4"), tmp_path / f"alone{index}.mp4", encoding)
        assert (tmp_path / f"alone{index}.mp4").read_bytes() == (out / f"{index}.mp4").read_bytes()
    assert not list(out.glob(".*")), "what the killed processes left"


# The command ---------------------------------------------------------------------------------------------


def test_the_command_says_what_became_of_every_video(one_process, videornn, source_list: Path, tmp_path: Path) -> None:
    code, out, err = videornn("data", "prepare", source_list, tmp_path / "out", "--quality", 8, "--variant", "fastdecode")
    assert code == 1 and "2 of 8 videos could not be prepared" in err
    assert "text.mp4: cannot be opened" in err and "gone.mp4: no such file" in err and "videos 8/8" in err
    assert "quality of 6 videos" in out and "PSNR" in out and f"the list is {tmp_path}/out/train.txt" in out
    assert " MB (" in out
    code, out, _ = videornn("data", "prepare", source_list, tmp_path / "parts", "--shard", "3/4", "--quality", 0)
    assert code == 0 and "missing: [1, 2, 4]" in out  # the bad ones are in other parts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.txt", "{out}"], "nowhere.txt does not exist"),
        (["{list}", "{out}", "--shard", "0/4"], "--shard '0/4' is not i/n"),
        (["{list}", "{out}", "--shard", "5/4"], "--shard '5/4' is not i/n"),
        (["{list}", "{out}", "--shard", "2"], "--shard '2' is not i/n"),
        (["{list}", "{out}", "--crf", "60"], "--crf must be in 0 (lossless) to 51, got 60"),
        (["{list}", "{out}", "--temporal-stride", "0"], "--temporal-stride must be at least 1, got 0"),
        (["{list}", "{out}", "--short-side", "255"], "--short-side must be an even number from 16 on, got 255"),
        (["{list}", "{out}", "--quality", "-1"], "--quality must not be negative, got -1"),
        (["{list}", "{out}", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["{list}", "{in}"], "is where the source is"),
        (["{list}", "{list}"], "is a file; give the name of a folder"),
        (["{list}", "{out}", "--root", "{in}/a"], "as --root {in}/b is"),
        (["{in}", "{in}/out"], "where it would count as a class"),
        (["{list}", "{other}"], "crf 30 instead of 22"),
        (["{list}", "{classes}"], "has other classes than"),
    ],
)
def test_wrong_input_is_one_sentence(
    one_process, videornn, source_list: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    places = {"list": source_list, "in": source_list.parent, "out": tmp_path / "out"}
    places |= {"other": tmp_path / "other", "classes": tmp_path / "classes"}
    for name, file, text in (
        ("other", "prepare.json", json.dumps({"format": 2, "short_side": 256, "temporal_stride": 8, "crf": 30})),
        ("classes", "labels.txt", "run\nwalk\n"),
    ):
        places[name].mkdir()
        (places[name] / file).write_text(text)
    if "{in}/a" in arguments:
        source_list.write_text(f"{source_list.parent}/b/text.mp4 0\n")
    code, _, err = videornn("data", "prepare", *(argument.format(**places) for argument in arguments))
    assert code == 2 and message.format(**places) in err and len(err.splitlines()) == 1, err
