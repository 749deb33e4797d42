"""Videos read once from beginning to end: the same frames at the same times as by index, from anything that can be read."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from videornn.data import stream as stream_module
from videornn.data.decoding import open_video
from videornn.data.stream import VideoStream, is_live
from videornn.errors import DecodeError


@contextmanager
def served(content: bytes, *, sent: int | None = None) -> Iterator[tuple[str, list[str]]]:
    """URL of a file on loopback, of which only so many bytes are sent, and the requests that came."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:sent])

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/video", requests
    finally:
        server.shutdown()
        server.server_close()


def read(source: Path | str, wanted=None) -> tuple[list[float], list[np.ndarray], VideoStream]:
    with VideoStream(str(source)) as stream:
        frames = [(frame.time, frame.picture().copy()) for frame in stream.frames(wanted)]
    return [seconds for seconds, _ in frames], [picture for _, picture in frames], stream


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.mp4", {"bf": "3"}), ("a.mkv", {"bf": "3"}), ("a.avi", {}), ("b.avi", {"bf": "2"}), ("a.ts", {"bf": "2"})],
)
def test_frames_come_in_the_order_of_the_screen_at_their_times(
    make_video, read_frame_numbers, tmp_path: Path, name: str, options: dict[str, str]
) -> None:
    times, pictures, stream = read(make_video(tmp_path / name, 40, **options))
    assert read_frame_numbers([torch.from_numpy(picture) for picture in pictures]) == list(range(40))
    np.testing.assert_allclose(times, np.arange(40) / 25, atol=0.0011)  # Matroska counts milliseconds
    assert stream.end == pytest.approx(40 / 25, abs=0.002) and stream.num_damaged == 0


def test_a_variable_frame_rate_keeps_its_times(make_video, tmp_path: Path) -> None:
    shown = [0, 1, 2, 9, 10, 30, 31, 32]
    times, _, _ = read(make_video(tmp_path / "vfr.mp4", len(shown), times=shown))
    np.testing.assert_allclose(times, np.array(shown) / 25, atol=1e-6)


def test_frames_that_nobody_wants_are_not_decoded_and_the_others_are_the_same(make_video, tmp_path: Path) -> None:
    path = make_video(tmp_path / "b.mp4", 80, bf="3", **{"b-pyramid": "none", "b_strategy": "0"})
    times, pictures, _ = read(path)
    wanted_times = [0.02 + 0.32 * k for k in range(10)]  # in the middle of every eighth frame
    some_times, some, _ = read(path, lambda start, end: any(start <= t < end for t in wanted_times))
    assert len(some) < 60
    there = {round(t, 4): picture for t, picture in zip(some_times, some, strict=True)}
    for k in range(10):
        assert np.array_equal(there[round(8 * k / 25, 4)], pictures[8 * k])
    assert set(there) <= {round(t, 4) for t in times}


def test_damaged_packets_are_left_out_and_counted(make_video, tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi", 60, codec="mjpeg", strict="-1")
    content = bytearray(path.read_bytes())
    places = [place for place in range(len(content) - 2) if content[place : place + 2] == b"\xff\xd8"]
    for place in places[20:23]:
        content[place : place + 600] = bytes(600)
    path.write_bytes(content)
    _, pictures, stream = read(path)
    assert stream.num_damaged == 3 and len(pictures) == 57


def test_a_clock_that_starts_again_goes_on(make_video, tmp_path: Path) -> None:
    content = make_video(tmp_path / "a.ts", 50).read_bytes()
    (tmp_path / "twice.ts").write_bytes(2 * content)
    times, _, stream = read(tmp_path / "twice.ts")
    assert len(times) == 100 and (np.diff(times) > 0).all()
    assert stream.end == pytest.approx(4.0, abs=0.1)


def test_a_folder_of_frames_is_a_stream_too(make_video, tmp_path: Path) -> None:
    from PIL import Image

    for index in range(5):
        Image.new("RGB", (40, 30), (50 * index, 0, 0)).save(tmp_path / f"{index}.png")
    times, pictures, stream = read(tmp_path)
    assert [picture[0, 0, 0] for picture in pictures] == [0, 50, 100, 150, 200]
    np.testing.assert_allclose(times, np.arange(5) / 30)
    assert stream.fps == Fraction(30)


def test_a_url_is_read_as_it_comes_and_a_lost_connection_is_a_sentence(make_video, tmp_path: Path) -> None:
    content = make_video(tmp_path / "a.ts", 75).read_bytes()
    with served(content) as (url, requests):
        assert is_live(url)
        times, _, _ = read(url)
        assert len(times) == 75 and requests
    with served(content, sent=len(content) // 2) as (url, _), VideoStream(url) as stream:
        seen = []
        with pytest.raises(DecodeError, match=r"video: the connection was lost after 1\.\d s"):
            seen.extend(frame.time for frame in stream.frames())
        assert 20 < len(seen) < 55
    with pytest.raises(DecodeError, match="cannot be opened"):
        VideoStream(url)  # nobody answers any more


def test_a_local_file_never_opens_the_network(make_video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = make_video(tmp_path / "a.ts", 25).read_bytes()
    playlist = tmp_path / "list.m3u8"
    with served(content) as (url, requests):
        playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\n{url}.ts\n#EXT-X-ENDLIST\n")
        for opens in (VideoStream, open_video):
            with pytest.raises(DecodeError):
                list(opens(str(playlist)).frames()) if opens is VideoStream else opens(str(playlist))
        assert not requests
        # the same list is read where the network is allowed: the request above could have been made
        everything = {"protocol_whitelist": "file,http,tcp", "allowed_extensions": "ALL", "extension_picky": "0"}
        monkeypatch.setattr(stream_module, "LOCAL_ONLY", everything)
        assert len(read(playlist)[0]) == 25 and requests


@pytest.mark.parametrize("folder", ["plain", "odd"])
def test_real_videos_give_the_frames_and_times_that_they_give_by_index(shared_data: Path, folder: str) -> None:
    for path in sorted((shared_data / "clips" / folder).iterdir()):
        if path.stat().st_size > 400_000:
            continue  # the larger ones are of the same kinds
        times, pictures, stream = read(path)
        with open_video(path) as video:
            expected = video.frames_at(torch.arange(video.num_frames)).numpy()
            np.testing.assert_allclose(times, video.times, atol=1e-6, err_msg=path.name)
        assert len(pictures) == len(expected) and stream.num_damaged == 0, path.name
        assert all(np.array_equal(one, two) for one, two in zip(pictures, expected, strict=True)), path.name
