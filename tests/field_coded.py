"""Writes H.264 of interlaced pictures bit by bit: each is coded as a frame, or as two fields in a packet each."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import av

WIDTH, HEIGHT = 64, 64
GOP = 10
FIELDS_PER_SECOND = 50


def _number(value: int) -> str:
    """An Exp-Golomb code."""
    digits = f"{value + 1:b}"
    return "0" * (len(digits) - 1) + digits


def _unit(kind: int, bits: str, *, is_reference: bool = True) -> bytes:
    bits += "1"
    content = int(bits + "0" * (-len(bits) % 8), 2).to_bytes((len(bits) + 7) // 8, "big")
    return b"\0\0\0\1" + bytes([is_reference << 5 | kind]) + re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", content)


def _headers() -> bytes:
    sizes = _number(WIDTH // 16 - 1) + _number(HEIGHT // 32 - 1)
    timing = "0000" + "1" + f"{1:032b}{FIELDS_PER_SECOND:032b}" + "1"
    # main profile; numbers of frames in 4 bits, times in 8; pictures may be fields
    sequence = (
        f"{77:08b}{0:08b}{30:08b}" + "1" + "1" + "1" + _number(4) + _number(1) + "0" + sizes + "001" + "0" + "1" + timing
    )
    picture = "1" + "1" + "00" + "1" + "1" + "1" + "0" + "00" + "1" + "1" + "1" + "000"
    return _unit(7, sequence + "0000") + _unit(8, picture)


def _slice(index: int, luma: int, field: int | None) -> bytes:
    """A picture, or its top field (0) or bottom field (1), of one grey, in macroblocks of raw samples."""
    place = index % GOP
    is_key = place == 0 and field != 1
    header = "1" + _number(7) + "1" + f"{place:04b}" + ("0" if field is None else f"1{field}")
    header += _number(index // GOP % 2) if is_key else ""
    header += f"{2 * place + (field or 0):08b}" + ("00" if is_key else "0") + "1"
    samples = f"{luma:08b}" * 256 + f"{128:08b}" * 128
    for _ in range(WIDTH // 16 * HEIGHT // (16 if field is None else 32)):
        header += _number(25)
        header += "0" * (-len(header) % 8) + samples
    return _unit(5 if is_key else 1, header)


def write_field_coded(path: Path, num_frames: int, *, frames: int = 0, in_one_packet: bool = False) -> Path:
    """A video whose picture i has brightness 16 + 3 i, 25 a second; all are two fields but every `frames`-th.

    A file that ends in .h264 is the bare stream.
    """
    packets: list[tuple[int, int, bytes]] = []  # when, and for how long, in fields
    for index in range(num_frames):
        luma = 16 + round((16 + 3 * index) * 219 / 255)
        is_frame = frames > 0 and index % frames == 0
        parts = [_slice(index, luma, field) for field in ([None] if is_frame else [0, 1])]
        parts[0] = (_headers() if index % GOP == 0 else b"") + parts[0]
        parts = [b"".join(parts)] if in_one_packet else parts
        for number, part in enumerate(parts):
            packets.append((2 * index + number, 2 // len(parts), _unit(9, "000", is_reference=False) + part))
    stream_path = path.with_suffix(".h264")
    stream_path.write_bytes(b"".join(data for _, _, data in packets))
    if path == stream_path:
        return path
    with av.open(str(stream_path)) as bare, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(bare.streams.video[0], opaque=True)
        for place, duration, data in packets:
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, FIELDS_PER_SECOND)
            packet.pts, packet.dts, packet.duration = place, place, duration
            packet.is_keyframe = place % (2 * GOP) == 0
            container.mux(packet)
    return path
