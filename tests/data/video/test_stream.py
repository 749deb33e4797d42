"""Videos read once from beginning to end: the same frames at the same times as by index, from anything that can be read."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import served

from videornn.data.video import stream as stream_module
from videornn.data.video.decoders import open_video
from videornn.data.video.stream import VideoStream, is_live, is_pipe
from videornn.errors import DecodeError
from videornn.inference.output import output_names
from videornn.system.urls import without_secrets


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
        assert len(read(f"file://{playlist}")[0]) == 25 and requests


@contextmanager
def in_background(action: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    yield
    thread.join()


@contextmanager
def standard_input(descriptor: int) -> Iterator[None]:
    kept = os.dup(0)
    os.dup2(descriptor, 0)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)


def unix_server(place: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen()
    return listener


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "CONNECT_SECONDS", 1.0)


def wait_for_listener(port: int) -> None:
    """Until somebody has bound a UDP port: what is sent before is lost."""
    table = Path("/proc/net/udp")
    if not table.exists():
        time.sleep(0.3)
        return
    end = time.monotonic() + 300
    while f":{port:04X} " not in table.read_text() and time.monotonic() < end:
        time.sleep(0.02)


def test_udp_that_starts_in_the_middle_loses_packets_and_stops_without_a_word(
    make_video, read_frame_numbers, tmp_path: Path, impatient: None
) -> None:
    content = make_video(tmp_path / "a.ts", 75, bf="2", g="25").read_bytes()
    datagrams = [content[place : place + 7 * 188] for place in range(0, len(content), 7 * 188)]
    first, lost = len(datagrams) // 5, range(len(datagrams) // 2, len(datagrams) // 2 + 3)
    port = free_port(socket.SOCK_DGRAM)

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for number, datagram in enumerate(datagrams):
                if number >= first and number not in lost:
                    sender.sendto(datagram, ("127.0.0.1", port))
                    time.sleep(0.01)

    seen: list[float] = []
    numbers: list[int] = []
    with (
        in_background(lambda: (wait_for_listener(port), send())),
        VideoStream(f"udp://127.0.0.1:{port}") as stream,
        pytest.raises(DecodeError, match=r"the connection was lost after \d\.\d s \(no video came for 1 s\)"),
    ):
        for frame in stream.frames():
            seen.append(frame.time)
            numbers += read_frame_numbers([torch.from_numpy(frame.picture())])
    assert 25 < len(seen) < 75 and (np.diff(seen) > 0).all()
    assert numbers[-1] > 70 and seen[-1] == pytest.approx((numbers[-1] - numbers[0]) / 25, abs=0.05)


def test_udp_that_comes_faster_than_it_is_read_goes_on(make_video, tmp_path: Path, impatient: None) -> None:
    content = make_video(tmp_path / "a.ts", 75, g="10").read_bytes()
    port = free_port(socket.SOCK_DGRAM)

    def send() -> None:
        wait_for_listener(port)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for place in range(0, len(content), 188):
                sender.sendto(content[place : place + 188], ("127.0.0.1", port))
                time.sleep(2 * 188 / len(content))

    seen: list[float] = []
    with (
        in_background(send),
        VideoStream(f"udp://127.0.0.1:{port}?fifo_size=60") as stream,  # packets of 188 bytes
        pytest.raises(DecodeError, match=r"no video came for 1 s"),
    ):
        for frame in stream.frames():
            seen.append(frame.time)
            time.sleep(1.2 if len(seen) == 3 else 0.0)
    assert 5 < len(seen) < 75 and seen[-1] > 2


def test_a_sender_that_connects_is_waited_for(make_video, tmp_path: Path) -> None:
    content = make_video(tmp_path / "a.ts", 50).read_bytes()
    port = free_port(socket.SOCK_STREAM)

    def send() -> None:
        for _ in range(15_000):  # five minutes
            try:
                with socket.create_connection(("127.0.0.1", port)) as connection:
                    connection.sendall(content)
                return
            except OSError:
                time.sleep(0.02)

    with in_background(send):
        assert len(read(f"tcp://127.0.0.1:{port}?listen")[0]) == 50


def test_a_server_that_says_nothing_is_given_up(impatient: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        for scheme in ("rtsp", "http", "tcp"):
            start = time.monotonic()
            with pytest.raises(DecodeError, match=r"cannot be opened \(no video came for 1 s\)"):
                VideoStream(f"{scheme}://127.0.0.1:{server.getsockname()[1]}/live")
            assert time.monotonic() - start < 100


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes of this kind")
@pytest.mark.parametrize("name", ["a.ts", "a.mkv"])
def test_a_named_pipe_is_read_as_it_comes(make_video, tmp_path: Path, name: str) -> None:
    content = make_video(tmp_path / name, 50, bf="2").read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert is_live(str(pipe)) and is_pipe(str(pipe))
    with in_background(lambda: pipe.write_bytes(content)):
        assert len(read(pipe)[0]) == 50


def test_standard_input_is_a_pipe_or_a_file(make_video, tmp_path: Path) -> None:
    stream = make_video(tmp_path / "a.ts", 50).read_bytes()
    index_last = make_video(tmp_path / "a.mp4", 50)

    def fed(content: bytes) -> list[float]:
        ours, theirs = os.pipe()

        def write() -> None:
            try:
                with open(theirs, "wb") as file:
                    file.write(content)
            except BrokenPipeError:
                pass

        with standard_input(ours), in_background(write):
            os.close(ours)
            try:
                return read("-")[0]
            finally:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # nobody reads the rest

    assert len(fed(stream)) == 50
    content = index_last.read_bytes()
    index = content.index(b"moov") - 4
    far = content[:index] + struct.pack(">I4s", 2**20, b"free") + bytes(2**20 - 8) + content[index:]
    with pytest.raises(DecodeError, match=r"^standard input: cannot be read from a pipe \(an MP4 file with its index"):
        fed(far)
    with open(index_last, "rb") as file, standard_input(file.fileno()):
        assert len(read("-")[0]) == 50  # a file can be read back and forth
    assert output_names(["-"]) == ["stdin"]


def test_a_terminal_and_a_device_that_is_no_camera_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.name == "posix":
        with pytest.raises(DecodeError, match=r"/dev/null: cannot be opened \(.*it is no camera\)"):
            VideoStream("/dev/null")
    monkeypatch.setattr(os, "isatty", lambda descriptor: True)
    with pytest.raises(DecodeError, match="standard input is a terminal"):
        VideoStream("-")


def test_secrets_of_a_url_are_neither_shown_nor_written() -> None:
    urls = {
        "rtsp://user:s3cret@127.0.0.1:{}/live": "rtsp://***@127.0.0.1:{}/live",
        "rtsp://user:s3@cret@127.0.0.1:{}/live": "rtsp://***@127.0.0.1:{}/live",
        "http://127.0.0.1:{}/v?user=me&Password=s3cret&n=1": "http://127.0.0.1:{}/v?user=me&Password=***&n=1",
        "http://127.0.0.1:{}/user@home.ts": "http://127.0.0.1:{}/user@home.ts",
    }
    port = free_port(socket.SOCK_STREAM)
    for url, shown in urls.items():
        assert without_secrets(url.format(port)) == shown.format(port)
        with pytest.raises(DecodeError, match="cannot be opened") as caught:
            VideoStream(url.format(port))
        assert str(caught.value).startswith(shown.format(port) + ": ")
    names = output_names([f"rtsp://user:s3cret{number}@host{number}/live" for number in range(2)])
    assert names == ["host0_live", "host1_live"]
    assert without_secrets("folder/key=1.mp4") == "folder/key=1.mp4"  # a file's name is no secret


@pytest.mark.parametrize("server", ["http", "tcp", "pipe", "unix"])
@pytest.mark.parametrize("kind", ["m3u8", "m3u8 of file://", "ffconcat", "ffconcat of file://"])
def test_what_comes_from_elsewhere_never_opens_a_local_file(
    make_video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str, kind: str
) -> None:
    path = make_video(tmp_path / "private.ts", 25)
    place = f"file://{path}" if "file://" in kind else path
    if kind.startswith("m3u8"):
        text = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\n{place}\n#EXT-X-ENDLIST\n"
    else:
        text = f"ffconcat version 1.0\nfile '{place}'\n"
    if server == "http":
        with served(text.encode()) as (url, _), pytest.raises(DecodeError):
            read(f"{url}.m3u8" if kind.startswith("m3u8") else url)
        return
    if server == "pipe":
        ours, theirs = os.pipe()
        os.write(theirs, text.encode())
        os.close(theirs)
        with standard_input(ours), pytest.raises(DecodeError):
            read("-")
        os.close(ours)
        return
    place = str(tmp_path / "socket")
    with unix_server(place) if server == "unix" else socket.create_server(("127.0.0.1", 0)) as listener:

        def send() -> None:
            with listener.accept()[0] as connection:
                connection.sendall(text.encode())

        with in_background(send), pytest.raises(DecodeError):
            name = f"a.{kind.split()[0]}"
            read(f"unix://{place}" if server == "unix" else f"tcp://127.0.0.1:{listener.getsockname()[1]}/{name}")


def test_a_live_playlist_of_a_server_is_read(make_video, tmp_path: Path) -> None:
    content = make_video(tmp_path / "a.ts", 50).read_bytes()
    with served(content) as (segment, _):
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\n{segment}.ts\n#EXT-X-ENDLIST\n"
        with served(playlist.encode()) as (url, _):
            assert len(read(f"{url}.m3u8")[0]) == 50


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
