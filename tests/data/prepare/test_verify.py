"""Every kind of bad video gets its own word, and no video, however bad, takes the run with it."""

from __future__ import annotations

import csv
import os
import signal
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from commands import Command

from videornn.data.prepare import verify
from videornn.data.prepare.verify import VideoReport, inspect_video, verify_videos


def crash(path: str, *, full: bool, max_pixels: int) -> VideoReport:
    os._exit(1)


# Videos --------------------------------------------------------------------------------------------------


def _overwrite_packet(path: Path, number: int) -> None:
    """Put noise where the data of one packet of the video lies."""
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    position, size = packets[number]
    with open(path, "r+b") as file:
        file.seek(position + 4)
        file.write(np.random.default_rng(0).bytes(size - 4))


@pytest.fixture(scope="module")
def bad_videos(make_video, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bad")
    paths = {name: folder / f"{name}.mp4" for name in ("missing", "empty", "text")}
    paths["empty"].touch()
    paths["text"].write_text("this is text\n" * 100)
    for name, suffix, kept in (("cut_avi", ".avi", 0.5), ("cut_mkv", ".mkv", 0.6), ("no_index", ".mp4", 0.5)):
        paths[name] = make_video(folder / f"{name}{suffix}", 60, g="12")
        data = paths[name].read_bytes()
        paths[name].write_bytes(data[: int(kept * len(data))])
    for name, number in (("damaged_middle", 30), ("damaged_elsewhere", 17)):
        # every frame a key frame: the damage stays where it is
        paths[name] = make_video(folder / f"{name}.mp4", 60, g="1")
        _overwrite_packet(paths[name], number)
    paths["sound_only"] = folder / "sound_only.mp4"
    with av.open(str(paths["sound_only"]), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 8000, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return paths


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("missing", "missing", "no such file"),
        ("empty", "empty", "0 bytes"),
        ("text", "undecodable", "cannot be opened"),
        ("no_index", "truncated", "no list of its frames"),
        ("sound_only", "no_video", "no video stream"),
        ("cut_avi", "truncated", "of the 60 frames"),
        ("cut_mkv", "truncated", "of the 2.4 s"),
        ("damaged_middle", "damaged", ""),
    ],
)
def test_each_fault_has_its_word(bad_videos: dict[str, Path], name: str, status: str, reason: str) -> None:
    for full in (False, True):
        report = inspect_video(str(bad_videos[name]), full=full)
        assert report.status == status and reason in report.reason, report


def test_only_a_full_look_finds_damage_between_the_frames_looked_at(bad_videos: dict[str, Path]) -> None:
    path = str(bad_videos["damaged_elsewhere"])
    assert inspect_video(path).status == "ok"
    report = inspect_video(path, full=True)
    assert report.status == "damaged" and "frame 17 " in report.reason


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv", "a.webm"])
@pytest.mark.parametrize("full", [False, True])
def test_a_sound_video_is_described(make_video, tmp_path: Path, name: str, full: bool) -> None:
    path = tmp_path / name
    _write_vp9(path) if path.suffix == ".webm" else make_video(path, 37, fps=24, size=(96, 64))
    report = inspect_video(str(path), full=full)
    codec = {".avi": "mpeg4", ".webm": "vp9"}.get(path.suffix, "h264")
    assert (report.status, report.reason, report.num_frames) == ("ok", "", 37)
    assert (report.width, report.height, report.codec) == (96, 64, codec)
    assert report.fps == pytest.approx(24, abs=0.1)  # webm keeps milliseconds


def _write_vp9(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=24, options={"cpu-used": "8", "deadline": "realtime"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(37):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 5 * index, np.uint8), format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_real_clips_are_sound_and_broken_ones_are_not(shared_data: Path) -> None:
    for folder in ("plain", "odd"):
        for path in (shared_data / "clips" / folder).iterdir():
            report = inspect_video(str(path), full=True)
            assert report.status == "ok", report
    broken = {path.name: inspect_video(str(path), full=True).status for path in (shared_data / "clips/broken").iterdir()}
    assert broken.pop("one_frame.mp4") == "ok"
    assert broken["audio_only_SOX5yA1l24A.mp4"] == "no_video" and broken["empty.mp4"] == "empty"
    assert broken["trunc_half_v_SoccerJuggling.avi"] == "truncated"
    assert "ok" not in broken.values()


@pytest.mark.slow
def test_a_folder_of_videos_needs_no_classes_to_be_verified(make_video, tmp_path: Path, videornn) -> None:
    make_video(tmp_path / "a.mp4", 12)
    make_video(tmp_path / "more/b.mp4", 12)
    (tmp_path / "notes.txt").touch()
    code, out, _ = videornn("data", "verify", tmp_path, "--workers", 1)
    assert code == 0 and "1 .txt are left out" in out and "2 │ sound" in out


# The run -------------------------------------------------------------------------------------------------


def test_a_crash_is_a_row_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "inspect_video", crash)
    done = []
    (report,) = verify_videos(["a.mp4", "a.mp4"], on_progress=lambda *counts: done.append(counts))
    assert (report.path, report.status) == ("a.mp4", "crashed") and "exit code 1" in report.reason
    assert done == [(1, 1)]


@pytest.fixture
def listed(make_video, bad_videos: dict[str, Path], tmp_path: Path) -> Path:
    make_video(tmp_path / "good.mp4", 20)
    lines = ["good.mp4 0", *(f"{bad_videos[name]} 1" for name in ("missing", "cut_avi", "text"))]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "list.txt"


@pytest.mark.slow
def test_the_command_writes_a_report_and_says_so_by_its_exit_code(videornn, listed: Path) -> None:
    report = listed.parent / "report.csv"
    code, out, err = videornn("data", "verify", listed, "--workers", 2, "--out", report)
    assert code == 1, err
    rows = list(csv.DictReader(report.open(newline="")))
    assert list(rows[0]) == ["path", "status", "reason", "num_frames", "fps", "width", "height", "codec"]
    assert [row["status"] for row in rows] == ["ok", "missing", "truncated", "undecodable"]
    assert rows[0]["num_frames"] == "20" and rows[0]["fps"] == "25.0" and rows[1]["codec"] == ""
    assert "3 of 4 videos are not sound" in err and "cut_avi.avi: holds" in err and "videos 4/4" in err
    assert "truncated: cut short, so that frames" in out
    listed.write_text("good.mp4 0\n")
    assert videornn("data", "verify", listed, "--full", "--workers", 1)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.txt"], "nowhere.txt does not exist"),
        (["{list}", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["{list}", "--timeout", "-1"], "--timeout must be a positive number of seconds, got -1"),
        (["{list}", "--out", "no/such/report.csv"], "there is no folder no/such"),
    ],
)
def test_wrong_input_is_one_sentence(videornn, listed: Path, arguments: list[str], message: str) -> None:
    code, _, err = videornn("data", "verify", *(argument.format(list=listed) for argument in arguments))
    assert code == 2 and message in err and len(err.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_leaves_no_report(make_video, tmp_path: Path) -> None:
    make_video(tmp_path / "0.mp4", 20)
    for number in range(1, 1200):
        os.link(tmp_path / "0.mp4", tmp_path / f"{number}.mp4")
    (tmp_path / "list.txt").write_text("".join(f"{number}.mp4 0\n" for number in range(1200)))
    command = Command(tmp_path / "log", "data", "verify", tmp_path / "list.txt", "--out", tmp_path / "r.csv")
    command.wait_until_it_says("videos 120/1200")
    command.send_signal(signal.SIGINT)
    assert command.wait() == 130
    assert "no report was written" in command.said()
    assert not list(tmp_path.glob("*.csv*")) and not list(tmp_path.glob(".*"))


def test_a_stream_that_changes_its_size_is_as_large_as_it_begins(make_video, tmp_path: Path) -> None:
    """As prepare makes of it; the report had the size of the last frame."""
    path, parts = tmp_path / "joined.ts", [tmp_path / "a.ts", tmp_path / "b.ts"]
    for part, size in zip(parts, [(64, 48), (96, 80)], strict=True):
        make_video(part, 10, size=size)
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    report = inspect_video(str(path), full=True)
    assert (report.status, report.num_frames, report.width, report.height) == ("ok", 20, 64, 48)
