"""Files that are whole but odd: begun between key frames, with dropped frames, trimmed, or with two videos."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition

from videornn.data.prepare.reencode import Encoding, reencode
from videornn.data.prepare.verify import inspect_video
from videornn.data.video.decoders import open_video
from videornn.data.video.stream import VideoStream


def told_by_all(path: Path, read_frame_numbers) -> tuple[list[int], np.ndarray, str]:
    """(which frames, when, what is odd), the same by index, in order, by verify and by prepare."""
    with open_video(path) as video:
        numbers = read_frame_numbers(video.frames_at(torch.arange(video.num_frames)))
        times, end = video.times, video.duration
        remark = "; ".join(video.remarks)
    with VideoStream(str(path)) as stream:
        seen = [(frame.time, torch.from_numpy(frame.picture().copy())) for frame in stream.frames()]
    assert read_frame_numbers([picture for _, picture in seen]) == numbers
    np.testing.assert_allclose([at for at, _ in seen], times, atol=1e-6)
    assert stream.end == pytest.approx(end, abs=1e-6) and stream.num_damaged == 0
    report = inspect_video(str(path), full=True)
    assert (report.status, report.reason, report.num_frames) == ("ok", remark, len(numbers)), report
    out = path.with_name("prepared.mp4")
    reencode(str(path), out, Encoding(crf=10))
    with open_video(out) as video:
        assert read_frame_numbers(video.frames_at(torch.arange(video.num_frames))) == numbers
        np.testing.assert_allclose(video.times, times, atol=1e-6)
    return numbers, times, remark


def copied(path: Path, *sources: Path, first: int = 0, default: int | None = None) -> Path:
    """The videos of sources in one file, without the first packets of each."""
    inputs = [av.open(str(source)) for source in sources]
    with av.open(str(path), "w") as container:
        streams = [container.add_stream_from_template(each.streams.video[0], opaque=True) for each in inputs]
        for number, stream in enumerate(streams):
            if default is not None:
                stream.disposition = Disposition.default.value if number == default else 0
        for each, stream in zip(inputs, streams, strict=True):
            for number, packet in enumerate(each.demux(video=0)):
                if packet.size and number >= first:
                    packet.stream = stream
                    container.mux(packet)
    for each in inputs:
        each.close()
    return path


GOPS = {
    "libx264": {"g": "19", "bf": "2", "sc_threshold": "0"},
    "libvpx": {"g": "19", "crf": "4", "b": "4000000"},
    "mpeg2video": {"g": "19", "bf": "2", "sc_threshold": "1000000000"},
}


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("libx264", ".ts"), ("libx264", ".mkv"), ("libx264", ".mp4"), ("mpeg2video", ".ts"), ("libvpx", ".webm")],
)
def test_a_recording_that_begins_between_key_frames_begins_at_the_first_that_decodes(
    make_video, read_frame_numbers, tmp_path: Path, codec: str, suffix: str
) -> None:
    whole = make_video(tmp_path / f"whole{suffix}", 69, codec=codec, **GOPS[codec])
    numbers, times, remark = told_by_all(copied(tmp_path / f"late{suffix}", whole, first=5), read_frame_numbers)
    first = numbers[0]
    assert 19 <= first <= 21 and numbers == list(range(first, 69))
    np.testing.assert_allclose(times, np.arange(69 - first) / 25, atol=0.0011)
    assert remark.startswith("begins between key frames: its first 1") and remark.endswith("frames cannot be decoded")
    assert told_by_all(whole, read_frame_numbers)[2] == ""


LEFT = [*range(20), *range(30, 50)]  # of 50 frames, 10 of which were dropped


@pytest.mark.parametrize(("codec", "options"), [("mpeg4", {}), ("mpeg4", {"bf": "2"}), ("mjpeg", {"strict": "-1"})])
def test_an_avi_with_dropped_frames_is_whole_and_keeps_its_times(
    make_video, read_frame_numbers, tmp_path: Path, codec: str, options: dict[str, str]
) -> None:
    path = make_video(tmp_path / "dropped.avi", 40, codec=codec, times=LEFT, **options)
    numbers, times, remark = told_by_all(path, read_frame_numbers)
    assert numbers == list(range(40)) and remark == ""
    # where frames are reordered, an AVI says when they are decoded, not which of them is shown then
    late = int("bf" in options)
    np.testing.assert_allclose(times, np.array([*range(20 + late), *range(30 + late, 50)]) / 25)
    with open_video(path) as video:
        assert video.duration == pytest.approx(2.0)
    content = path.read_bytes()
    path.write_bytes(content[: [place.start() for place in re.finditer(b"00dc", content)][30]])
    assert inspect_video(str(path)).status == "truncated"


def test_an_avi_whose_last_frames_were_dropped_is_whole(make_video, read_frame_numbers, tmp_path: Path) -> None:
    path = make_video(tmp_path / "tail.avi", 40)
    content = bytearray(path.read_bytes())
    length = content.index(b"strh") + 8 + 32
    assert content[length : length + 4] == struct.pack("<I", 40)
    content[length : length + 4] = struct.pack("<I", 60)
    path.write_bytes(content)
    assert told_by_all(path, read_frame_numbers)[0] == list(range(40))
    path.write_bytes(content[: len(content) * 2 // 3])
    report = inspect_video(str(path))
    assert report.status == "truncated" and report.reason.endswith("of the 60 frames that its header tells of")


def test_an_mp4_that_an_edit_list_trims_is_whole(make_video, read_frame_numbers, tmp_path: Path) -> None:
    path = make_video(tmp_path / "trimmed.mp4", 60, g="10", bf="0")
    content = bytearray(path.read_bytes())
    entry = content.index(b"elst") + 12
    content[entry : entry + 8] = struct.pack(">Ii", 800, 35 * 512)  # milliseconds, from the 35th of frames of 512 ticks on
    path.write_bytes(content)
    numbers, times, remark = told_by_all(path, read_frame_numbers)
    assert numbers == list(range(35, 55)) and remark == ""
    np.testing.assert_allclose(times, np.arange(20) / 25)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_of_two_videos_the_default_one_is_read_or_else_the_first(
    make_video, read_frame_numbers, tmp_path: Path, suffix: str
) -> None:
    small, large = make_video(tmp_path / "a.mp4", 20), make_video(tmp_path / "b.mp4", 30, size=(320, 240))
    both = copied(tmp_path / f"both{suffix}", small, large)
    numbers, _, remark = told_by_all(both, read_frame_numbers)
    assert len(numbers) == 20 and remark == "has 2 video streams, of which number 0 is read"
    if suffix != ".ts":  # which has no default
        chosen = copied(tmp_path / f"chosen{suffix}", small, large, default=1)
        numbers, _, remark = told_by_all(chosen, read_frame_numbers)
        assert len(numbers) == 30 and remark == "has 2 video streams, of which number 1 is read"


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("held.ogv", "libtheora", {"qscale": "10"}),
        ("held.ivf", "libvpx", {"crf": "4", "b": "4000000"}),
        ("held.flv", "flv", {}),
        ("bare.m1v", "mpeg1video", {"bf": "2", "qmin": "2", "qmax": "2"}),
        ("bare.m2v", "mpeg2video", {"bf": "2"}),
    ],
)
def test_each_format_keeps_the_times_that_it_can_keep(
    make_video, read_frame_numbers, tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    is_held = name.startswith("held")
    shown = [*range(10), *range(410, 420)] if is_held else list(range(20))
    path = make_video(tmp_path / name, 20, codec=codec, times=shown, **options)
    numbers, times, remark = told_by_all(path, read_frame_numbers)
    assert numbers == list(range(20)) and remark == ""
    np.testing.assert_allclose(times, np.array(shown) / 25, atol=0.0011)


def test_keys_that_are_none_cost_time_and_no_picture(tmp_path: Path) -> None:
    """FFmpeg marks every packet of H.263 in AVI as a key frame: all frames after the first came out grey."""
    path, noise = tmp_path / "h263.avi", np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h263p", rate=25, options={"g": "12"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(30):
            frame = av.VideoFrame.from_ndarray(np.roll(noise, index, axis=1), format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with VideoStream(str(path)) as stream:
        pictures = torch.stack([torch.from_numpy(frame.picture().copy()) for frame in stream.frames()])
    for indices in ([20, 3, 11, 20], list(range(30))):
        with open_video(path) as video:
            assert torch.equal(video.frames_at(torch.tensor(indices)), pictures[indices])


def test_b_frames_that_are_said_to_be_shown_as_they_are_decoded_come_in_their_order(
    make_video, read_frame_numbers, tmp_path: Path
) -> None:
    """As in MXF of older FFmpegs: by index they came as they lie in the file, in order a third of them was lost."""
    source, path = make_video(tmp_path / "b.mp4", 30, g="12", bf="2"), tmp_path / "unordered.mp4"
    times = np.arange(30) / 25 + 0.1 * (np.arange(30) >= 20)
    with av.open(str(source)) as given, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(given.streams.video[0], opaque=True)
        packets = (packet for packet in given.demux(video=0) if packet.size)
        for packet, time in zip(packets, times, strict=True):
            packet.pts = packet.dts = round(time / packet.time_base)
            packet.stream = stream
            container.mux(packet)
    numbers, found, _ = told_by_all(path, read_frame_numbers)
    assert numbers == list(range(30))
    np.testing.assert_allclose(found, times, atol=1e-6)
