"""What versions of PyAV call differently; a file is read, whatever it is called, and no file that it names."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from videornn.data.prepare.verify import inspect_video, open_whole, whole_frames
from videornn.data.video.containers import frame_rate, time_base
from videornn.data.video.decoders import open_video
from videornn.data.video.stream import VideoStream
from videornn.data.video.write import redraw_movie
from videornn.errors import DecodeError


class Rational:
    """A rate as PyAV 19 has it: no Fraction, and 0/1 instead of None."""

    def __init__(self, numerator: int, denominator: int) -> None:
        self.numerator, self.denominator = numerator, denominator

    def __bool__(self) -> bool:
        return self.numerator != 0 and self.denominator != 0


@pytest.mark.parametrize("nothing", [None, Rational(0, 1), Rational(1, 0)])
@pytest.mark.parametrize("number", [Fraction, Rational])
def test_rates_are_exact_whatever_type_they_come_in(number: type, nothing: object) -> None:
    ntsc = number(30000, 1001)
    stream = SimpleNamespace(average_rate=nothing, guessed_rate=ntsc, time_base=number(1, 90000))
    assert type(frame_rate(stream)) is Fraction and frame_rate(stream) == Fraction(30000, 1001)
    assert type(time_base(stream)) is Fraction and time_base(stream) == Fraction(1, 90000)
    assert frame_rate(SimpleNamespace(average_rate=ntsc, guessed_rate=nothing)) == Fraction(30000, 1001)
    assert frame_rate(SimpleNamespace(average_rate=nothing, guessed_rate=nothing)) is None


def _by_index(path: str, decoder: str = "pyav") -> int:
    with open_video(path, decoder) as video:
        return len(video.frames_at(torch.arange(video.num_frames)))


def _by_time(path: str) -> int:
    with VideoStream(path) as stream:
        return sum(1 for _ in stream.frames())


def _redrawn(path: str) -> int:
    return sum(1 for _ in redraw_movie(path, Path("12:30 redrawn.mp4"), lambda picture, seconds: picture))


def _verified(path: str) -> int:
    report = inspect_video(path, full=True)
    if report.status != "ok":
        raise DecodeError(report.reason)
    return report.num_frames


READERS: dict[str, Callable[[str], int]] = {
    "by index": _by_index,
    "by time": _by_time,
    "redrawn": _redrawn,
    "verified": _verified,
    "prepared": lambda path: sum(1 for _ in whole_frames(open_whole(path))),
    "by decord": lambda path: _by_index(path, "decord"),
}
if find_spec("decord") is None:
    del READERS["by decord"]
NAMES = [
    "12:30 clip.mp4",
    "file:z.mp4",
    "concat:a.mp4|b.mp4",
    "subfile,,start,0,end,9,,:a.mp4",
    "-i.mp4",
    "p%03d.mp4",
    "a:/b.mp4",
]


@pytest.mark.parametrize("reader", READERS)
def test_no_name_of_a_file_is_taken_for_a_protocol_or_a_pattern(
    reader: str, make_video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = make_video(tmp_path / "a.mp4", 6).read_bytes()
    for name in NAMES:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)
        assert READERS[reader](name) == 6, name


def test_a_url_that_is_the_path_of_a_file_is_the_file(make_video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "http:/127.0.0.1/a.mp4", 6)
    assert _by_time("http://127.0.0.1/a.mp4") == 6


PLAYLISTS = {
    "ffconcat.mp4": "ffconcat version 1.0\nfile private.ts\n",
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\nprivate.ts\n#EXT-X-ENDLIST\n",
    "session.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5000 RTP/AVP 96\n",
    "p%d.png": None,  # a pattern of names
}


@pytest.mark.parametrize("reader", READERS)
def test_no_file_opens_those_that_it_names(reader: str, make_video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "private.ts", 6)
    for number in range(1, 3):
        (tmp_path / f"p{number}.png").write_bytes(b"not looked at")
    for name, text in PLAYLISTS.items():
        if text is not None:
            Path(name).write_text(text)
        with pytest.raises(DecodeError, match="no video in itself" if text else "no such file"):
            READERS[reader](name)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.mpg", "a.ts", "a.mov", "a.flv", "a.wmv", "a.webm", "a.nut"])
def test_all_formats_that_hold_their_own_frames_are_read(name: str, make_video, tmp_path: Path) -> None:
    codec = {"mpg": "mpeg2video", "flv": "flv", "wmv": "wmv2", "webm": "libvpx", "nut": "mpeg4"}.get(name[2:])
    assert _by_index(str(make_video(tmp_path / name, 6, codec=codec))) == 6


def test_a_picture_is_a_video_of_one_frame(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a.jpg", "a.png", "a.webp", "a.bmp"):
        Image.new("RGB", (64, 48)).save(tmp_path / name)
        assert _by_index(str(tmp_path / name)) == 1
