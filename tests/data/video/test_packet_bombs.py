"""Files of a few kilobytes that declare millions of packets: they cost neither the memory nor the time of their number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from packet_bomb import write_packet_bomb

from videornn.data.prepare.verify import inspect_video
from videornn.data.video import pyav
from videornn.data.video.decoders import open_video
from videornn.data.video.pyav import PACKET_BYTES
from videornn.data.video.stream import VideoStream
from videornn.errors import DecodeError

NUM_PACKETS = 20_000


@pytest.fixture
def many_packets(tmp_path: Path) -> Path:
    """As many packets as bytes, so that it could be a video."""
    path = write_packet_bomb(tmp_path / "many.mp4", NUM_PACKETS)
    with open(path, "ab") as file:
        file.write(NUM_PACKETS.to_bytes(4, "big") + b"free" + bytes(NUM_PACKETS - 8))
    return path


def test_more_packets_than_bytes_are_refused_at_once_by_all_readers(tmp_path: Path) -> None:
    path = write_packet_bomb(tmp_path / "bomb.mp4", 1_000_000)
    for opens in (open_video, lambda path: VideoStream(str(path))):
        with pytest.raises(DecodeError, match=r"bomb\.mp4: declares 1000000 frames in 5579 bytes$"):
            opens(path)
    report = inspect_video(str(path))
    assert (report.status, report.reason) == ("undecodable", "declares 1000000 frames in 5579 bytes")


def test_packets_are_kept_by_what_they_take_in_memory(many_packets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyav, "KEPT_BYTES", NUM_PACKETS // 2 * PACKET_BYTES)
    with open_video(many_packets) as video:
        assert video.num_frames == NUM_PACKETS and video._kept is None
    monkeypatch.setattr(pyav, "KEPT_BYTES", 2 * NUM_PACKETS * PACKET_BYTES)
    with open_video(many_packets) as video:
        assert len(video._kept) == NUM_PACKETS


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_packet_takes_no_more_than_is_counted(many_packets: Path) -> None:
    code = """if True:
        import os, sys, av

        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        with av.open(sys.argv[1]) as container:
            packets = container.demux(container.streams.video[0])
            kept = [next(packets) for _ in range(100)]
            before = resident()
            kept += packets
            print((resident() - before) / len(kept))
    """
    told = subprocess.run([sys.executable, "-c", code, many_packets], capture_output=True, text=True, check=True).stdout
    assert PACKET_BYTES / 2 < float(told) < PACKET_BYTES


def test_the_deadline_holds_while_packets_are_listed(many_packets: Path) -> None:
    with pytest.raises(DecodeError, match=r"many\.mp4: took longer than 0\.01 s"):
        open_video(many_packets, timeout=0.01)
