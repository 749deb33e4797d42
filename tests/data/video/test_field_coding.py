"""H.264 in fields, as camcorders and broadcasters make it: two packets are one frame, whatever the container."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from field_coded import write_field_coded

from videornn.data.prepare.reencode import Encoding, reencode
from videornn.data.prepare.verify import inspect_video
from videornn.data.video.decoders import open_video
from videornn.data.video.h264_fields import FieldPairs
from videornn.data.video.stream import VideoStream

NUM_FRAMES = 25


@pytest.mark.parametrize("suffix", [".h264", ".ts", ".mp4", ".mkv"])
@pytest.mark.parametrize("pictures", [{}, {"frames": 3}, {"in_one_packet": True}])
def test_two_fields_are_one_frame_for_all_readers(
    read_frame_numbers, tmp_path: Path, suffix: str, pictures: dict[str, int]
) -> None:
    path = write_field_coded(tmp_path / f"fields{suffix}", NUM_FRAMES, **pictures)
    times = np.arange(NUM_FRAMES) / 25
    with open_video(path) as video:
        assert (video.num_frames, video.fps, video.duration) == (NUM_FRAMES, 25, 1.0)
        np.testing.assert_allclose(video.times, times, atol=1e-6)
        for asked in ([24], [0, 9, 10, 23], list(range(NUM_FRAMES))):
            assert read_frame_numbers(video.frames_at(torch.tensor(asked))) == asked
    with VideoStream(str(path)) as stream:
        seen = [(frame.time, torch.from_numpy(frame.picture().copy())) for frame in stream.frames()]
    assert read_frame_numbers([picture for _, picture in seen]) == list(range(NUM_FRAMES)) and stream.num_damaged == 0
    np.testing.assert_allclose([at for at, _ in seen], times, atol=1e-6)
    report = inspect_video(str(path), full=True)
    assert (report.status, report.num_frames, report.fps) == ("ok", NUM_FRAMES, 25.0), report
    reencode(str(path), tmp_path / "out.mp4", Encoding(crf=10))
    with open_video(tmp_path / "out.mp4") as video:
        assert read_frame_numbers(video.frames_at(torch.arange(NUM_FRAMES))) == list(range(NUM_FRAMES))
        assert video.num_frames == NUM_FRAMES and video.fps == 25


@pytest.mark.parametrize("suffix", [".ts", ".mp4"])
def test_only_streams_that_may_have_fields_are_looked_into(make_video, tmp_path: Path, suffix: str) -> None:
    def pairs_of(path: Path) -> tuple[FieldPairs, list[bool]]:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            pairs = FieldPairs(stream.codec_context.extradata)
            packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
        return pairs, [pairs.completes(data) for data in packets] if pairs.possible else []

    assert not pairs_of(make_video(tmp_path / f"frames{suffix}", 20, bf="2"))[0].possible
    # pictures coded as frames whose blocks may be of fields; the header names matrices of scales
    options = {"x264-params": "tff=1:cqm=jvt:bframes=2"}
    pairs, completes = pairs_of(make_video(tmp_path / f"interlaced{suffix}", 20, **options))
    assert pairs.possible and completes == [False] * 20
    pairs, completes = pairs_of(write_field_coded(tmp_path / f"fields{suffix}", 20, frames=4))
    assert pairs.possible and completes == [
        number for index in range(20) for number in ([False] if index % 4 == 0 else [False, True])
    ]


def test_a_header_or_packet_that_is_cut_off_tells_nothing(tmp_path: Path) -> None:
    with av.open(str(write_field_coded(tmp_path / "fields.mp4", 4))) as container:
        stream = container.streams.video[0]
        extradata = stream.codec_context.extradata
        packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
    assert FieldPairs(extradata).possible
    for length in range(13):
        assert not FieldPairs(extradata[:length]).possible
    for length in range(30):  # before its slice begins
        pairs = FieldPairs(extradata)
        assert not pairs.completes(packets[0][:length])
        assert not pairs.completes(packets[1])
