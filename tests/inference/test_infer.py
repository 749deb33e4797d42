"""`videornn infer` as people use it: long videos, streams, overlays, interruptions, wrong options."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import av
import pytest
from helpers import ROOT, served
from PIL import Image

from videornn import load_predictor
from videornn.cli import infer_job
from videornn.cli.infer_screen import Screen
from videornn.errors import DecodeError
from videornn.inference import output as predictions
from videornn.inference.output import output_names
from videornn.inference.timeline import Segment
from videornn.system.workers import START_METHOD, GeneratorWorker


@pytest.fixture(scope="module")
def checkpoint(tiny_run: Path) -> Path:
    return tiny_run / "checkpoints/best.pt"


def test_a_long_video_becomes_a_timeline(videornn, checkpoint: Path, make_video, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        make_video(tmp_path / folder / "clip.mp4", 75, fps=30)
    code, out, err = videornn(
        *("infer", checkpoint, tmp_path / "a/clip.mp4", tmp_path / "b", "--window", 1, "--threshold", 0),
        *("--json", tmp_path / "r.json", "--csv", tmp_path / "r.csv", "--out", tmp_path / "out"),
    )
    assert code == 0, err
    first, second = json.loads((tmp_path / "r.json").read_text())
    assert first["seconds"] == 2.5 and [w["start"] for w in first["windows"]] == [0.0, 0.5, 1.0, 1.5]
    assert [len(w["predictions"]) for w in first["windows"]] == [5] * 4
    assert first["segments"][0]["start"] == 0 and first["segments"][-1]["end"] == 2.5
    assert {k: v for k, v in first.items() if k != "path"} == {k: v for k, v in second.items() if k != "path"}
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{folder}_clip_timeline.{suffix}" for folder in "ab" for suffix in ("csv", "png")]
    rows = list(csv.DictReader((tmp_path / "out/a_clip_timeline.csv").open()))
    assert [row["label"] for row in rows] == [segment["label"] for segment in first["segments"]]
    assert Image.open(tmp_path / "out/a_clip_timeline.png").size[0] > 1000
    table = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert len(table) == len(first["segments"]) + len(second["segments"]) == len(out.splitlines())
    assert out.startswith(f"{tmp_path}/a/clip.mp4     0:00.0 - ")


def test_json_on_standard_output_is_all_that_is_there(videornn, checkpoint: Path, make_video, tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", 40)
    for options in ([], ["--window", "1"]):
        code, out, _ = videornn("infer", checkpoint, tmp_path / "a.mp4", "--json", "-", *options)
        assert code == 0 and json.loads(out)[0]["path"] == str(tmp_path / "a.mp4")


@pytest.mark.slow
def test_overlays_are_written_with_and_without_windows(videornn, checkpoint: Path, make_video, tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", 40)
    for number, options in enumerate(([], ["--window", 1])):
        out = tmp_path / f"out{number}"
        code, _, err = videornn("infer", checkpoint, tmp_path / "a.mp4", "--overlay", out, *options)
        assert code == 0, err
        with av.open(str(out / "a_overlay.mp4")) as container:
            assert sum(1 for _ in container.decode(video=0)) == 40
        assert [path.name for path in out.iterdir()] == ["a_overlay.mp4"]


def test_a_url_prints_a_line_per_window_and_a_lost_connection_keeps_what_came(
    videornn, checkpoint: Path, make_video, tmp_path: Path
) -> None:
    content = make_video(tmp_path / "a.ts", 75).read_bytes()
    with served(content) as (url, _):
        code, out, err = videornn("infer", checkpoint, url, "--json", tmp_path / "r.json", "--out", tmp_path)
        assert code == 0, err
        (row,) = json.loads((tmp_path / "r.json").read_text())
        lines = out.splitlines()
        # one clip of 4 frames, 4/30 s apart, is 0.53 s; a window every half of it; then the segments
        assert len(row["windows"]) in (9, 10) and len(lines) == len(row["windows"]) + len(row["segments"])
        assert all(line.startswith(url) for line in lines) and (tmp_path / "video_timeline.png").exists()
    with served(content, sent=len(content) // 2) as (url, _):
        code, out, err = videornn("infer", checkpoint, url, "--json", tmp_path / "r.json")
        (row,) = json.loads((tmp_path / "r.json").read_text())
        assert code == 2 and "the connection was lost after" in row["error"] and row["windows"] and row["segments"]
        assert err == f"videornn: {row['error']}\nvideornn: 1 of 1 videos failed\n"


def test_a_broken_video_has_its_row_in_every_file_and_the_others_are_done(
    videornn, checkpoint: Path, make_video, tmp_path: Path
) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v/a.mp4").write_text("text")
    make_video(tmp_path / "v/b.mp4", 30)
    options = ["--window", 1, "--out", tmp_path / "out", "--overlay", tmp_path / "out", "--csv", tmp_path / "r.csv"]
    code, out, err = videornn("infer", checkpoint, tmp_path / "v", *options)
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert code == 2 and "a.mp4: cannot be decoded" in rows[0]["error"] and rows[1]["error"] == ""
    assert "1 of 2 videos failed" in err and "b.mp4" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "b_overlay.mp4",
        "b_timeline.csv",
        "b_timeline.png",
    ]


FAILING_FFMPEG = """
import os, signal, time, av

open_file = av.open

def fail_on(file, mode="r", **options):
    name = os.path.basename(file)
    if "crash" in name and ("overlay" not in name or mode == "w"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hang" in name:
        time.sleep(600)
    return open_file(file, mode, **options)

av.open = fail_on
"""


@pytest.fixture
def failing_ffmpeg(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In worker processes, FFmpeg crashes when it opens a file with "crash" in its name, and hangs with "hang"."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(FAILING_FFMPEG)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    # the server of workers has the environment of its start
    stop_server = forkserver._forkserver._stop if START_METHOD == "forkserver" else lambda: None
    stop_server()
    yield
    stop_server()


@pytest.mark.slow
@pytest.mark.usefixtures("failing_ffmpeg")
def test_a_video_that_crashes_ffmpeg_costs_no_more_than_its_row(
    videornn, checkpoint: Path, make_video, tmp_path: Path
) -> None:
    for name in ("a_crash", "b", "c_overlay_crash"):
        make_video(tmp_path / f"v/{name}.mp4", 40)
    options = ["--window", 1, "--overlay", tmp_path / "out", "--json", tmp_path / "r.json"]
    code, _, err = videornn("infer", checkpoint, tmp_path / "v", *options)
    first, second, third = json.loads((tmp_path / "r.json").read_text())
    assert code == 2 and "2 of 3 videos failed" in err and "Traceback" not in err
    assert first["error"].endswith("a_crash.mp4: the process that read it ended (SIGSEGV)") and "segments" not in first
    assert "error" not in second and second["segments"]
    assert "its overlay cannot be written" in third["error"] and third["segments"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b_overlay.mp4"]  # and no half of another


@pytest.mark.usefixtures("failing_ffmpeg")
@pytest.mark.slow
def test_a_video_that_hangs_ffmpeg_is_given_up(checkpoint: Path, make_video, tmp_path: Path) -> None:
    predictor = load_predictor(checkpoint, overrides=["data.timeout=2"])
    with GeneratorWorker(60) as worker:
        with pytest.raises(DecodeError, match=r"hang.mp4: took longer than 2 s"):
            list(predictor.windows(make_video(tmp_path / "hang.mp4", 40), worker=worker))
        path = make_video(tmp_path / "a.mp4", 40)
        guarded = list(load_predictor(checkpoint).windows(path, worker=worker))
    for one, other in zip(guarded, predictor.windows(path), strict=True):
        assert (one.start, one.end) == (other.start, other.end)
        assert one.scores.equal(other.scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stride", "1"], "--stride 1.0 is for sliding windows: give --window S too"),
        (["--out", "{tmp}/x"], "is for sliding windows: give --window S too"),
        (["--threshold", "0.5"], "--threshold 0.5 is for sliding windows"),
        (["--window", "1", "--threshold", "1.5"], "--threshold 1.5: a score lies in 0..1"),
        (["--window", "0"], "--window 0: give seconds above 0"),
        (["--window", "nan"], "--window nan: give seconds above 0"),
        (["--window", "1", "--smooth", "-1"], "--smooth -1: give seconds"),
        pytest.param(
            ["--window", "0.1"],
            "a window of 0.1 s is shorter than a clip of the network, which spans 0.533 s",
            marks=pytest.mark.slow,  # it is known once the video is open
        ),
        (["--window", "1", "--out", "{tmp}/file"], "--out {tmp}/file: is a file; give the name of a folder"),
        (["--overlay", "{tmp}/file/x"], "--overlay {tmp}/file/x: the folder cannot be made ("),
        (["--json", "{tmp}"], "--json {tmp}: is a folder"),
        (["--csv", "{tmp}"], "--csv {tmp}: is a folder"),
    ],
)
def test_wrong_options_are_one_sentence_before_any_video_is_read(
    videornn, checkpoint: Path, make_video, tmp_path: Path, options: list[str], message: str
) -> None:
    (tmp_path / "file").touch()
    make_video(tmp_path / "a.mp4", 40)
    code, out, err = videornn("infer", checkpoint, tmp_path / "a.mp4", *[o.format(tmp=tmp_path) for o in options])
    assert code == 2 and message.format(tmp=tmp_path) in err and len(err.splitlines()) == 1, err
    assert err.startswith("videornn: ") and not out


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_among_many_files_leaves_what_is_done(
    checkpoint: Path, make_video, tmp_path: Path, number: signal.Signals
) -> None:
    make_video(tmp_path / "v/a.mp4", 40)
    for copy in range(300):
        (tmp_path / f"v/b{copy:03d}.mp4").symlink_to(tmp_path / "v/a.mp4")
    command = [sys.executable, "-m", "videornn", "infer", checkpoint, tmp_path / "v", "--json", tmp_path / "r.json"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    lines = [process.stdout.readline() for _ in range(4)]
    process.send_signal(number)
    process.send_signal(number)  # in haste: nothing is lost
    _, err = process.communicate(timeout=300)
    rows = json.loads((tmp_path / "r.json").read_text())
    assert process.returncode == 128 + number and "Traceback" not in err, err
    done = int(re.search(r"interrupted; (\d+) of 301 videos are done", err).group(1))
    assert done in (len(rows), len(rows) - 1)  # the last one may have got no further than its row
    assert 4 <= len(rows) < 301 and all("predictions" in row for row in rows) and lines[0].startswith(rows[0]["path"])


def test_a_run_that_is_killed_leaves_what_it_has_saved(
    videornn, checkpoint: Path, make_video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        make_video(tmp_path / f"v/{name}.mp4", 40)
    saved = []
    monkeypatch.setattr(predictions, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(predictions, "write_json", lambda _, results: saved.append([row["path"] for row in results]))
    options = ["--json", tmp_path / "r.json", "--csv", tmp_path / "r.csv"]
    code, _, err = videornn("infer", checkpoint, tmp_path / "v", *options)
    names = [[Path(path).name for path in paths] for paths in saved]
    assert code == 0 and names[0] == ["a.mp4"] and names[-1] == ["a.mp4", "b.mp4", "c.mp4"], err
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 16  # whole each time, not added to


@pytest.mark.slow
def test_ctrl_c_ends_a_stream_with_what_was_found(checkpoint: Path, make_video, tmp_path: Path) -> None:
    import http.server
    import threading

    content = make_video(tmp_path / "a.ts", 60).read_bytes()
    ends = threading.Event()

    class Endless(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                while not ends.is_set():
                    self.wfile.write(content)
                    time.sleep(0.1)
            except OSError:
                pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/camera"
    command = [sys.executable, "-m", "videornn", "infer", checkpoint, url, "--json", tmp_path / "r.json"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    lines = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    ends.set()
    server.shutdown()
    (row,) = json.loads((tmp_path / "r.json").read_text())
    assert process.returncode == 0 and "Traceback" not in err, err
    assert all(line.startswith(url) for line in lines) and len(row["windows"]) >= 3 and row["segments"]


def test_results_of_different_files_have_different_names() -> None:
    def names(*paths: str) -> list[str]:
        found = output_names(paths)
        assert len({name.casefold() for name in found}) == len(paths)
        return found

    assert names("x/a.mp4", "y/b.avi") == ["a", "b"]
    assert names("/v/x/a.mp4", "/v/y/a.mp4", "/v/c.mp4") == ["x_a", "y_a", "c"]
    assert names("/v/a.mp4", "/v/a.avi")[0] == "v_a"
    names("/v/a.mp4", "/v/a.mp4", "/v/A.mp4", "/v/a_2.mp4")
    long = names(*(f"/v/{folder}/{250 * 'x'}.mp4" for folder in ("a", "b")), f"/v/{80 * '走'}.mp4")
    assert max(len(f"{name}_timeline.csv".encode()) for name in long) < 255
    assert names("http://host/live/cam.m3u8?key=1", "rtsp://host:554/x") == ["cam.m3u8", "x"]
    assert names("/dev/video0", "/v/strange name: 1.mp4") == ["video0", "strange_name_1"]


@pytest.mark.parametrize("width", [60, 80, 130])
def test_the_table_fits_a_terminal_of_any_width(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal has it
    monkeypatch.setenv("COLUMNS", str(width))
    path, names = (
        "a/long/folder/of/" + 8 * "some words " + "\n.mp4",
        ("run", "carry a thing that has a very long name indeed"),
    )
    screen = Screen([path], names, quiet=False)
    screen.segments(path, [Segment(0.0, 83.5, "run", 0.913), Segment(3600.0, 3700.0, names[1], 1.0)])
    screen.ranking(path, [(names[1], 0.75), ("run", 0.25)])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert all(part in text for part in ["0:00.0 - 1:23.5", "1:00:00.0 - 1:01:40.0", " 91.3 %", "100.0 %", " 75.0 %"])
    long = [line for line in lines if "carry" in line]
    assert len(long) == 2 and " 75.0 %" in long[1]  # names of classes are cut: scores stand beside their own
    (shown,) = {line[: max(width - 60, width // 5)] for line in lines if line.startswith("…")}
    assert shown.endswith("\\n.mp4")  # names of videos are cut at their beginning
    screen = Screen(["x/set/a.mp4", "x/set/more/b.mp4"], names, quiet=False)
    screen.ranking("x/set/more/b.mp4", [("run", 1.0)])
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "more/b.mp4" in text and "set" not in text  # what all have in common is left out


def test_a_stream_that_runs_away_from_its_results_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 101.0, 104.0, 114.1, 130.0])
    monkeypatch.setattr(infer_job.time, "monotonic", lambda: next(clock))
    delay = infer_job._Delay()
    # behind by 0 (the first is what the others are compared with), 0, 2, 11.1, 26 seconds
    assert [delay.is_news(seconds) for seconds in (1.0, 2.0, 3.0, 4.0, 5.0)] == [False, False, False, True, False]
