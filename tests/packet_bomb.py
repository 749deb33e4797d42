"""Writes an MP4 file that declares millions of samples of one byte in a few kilobytes: all chunks lie at the same place."""

from __future__ import annotations

import struct
from pathlib import Path

SAMPLES_PER_CHUNK = 1000


def _box(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I", 8 + len(content)) + kind + content


def _full_box(kind: bytes, *numbers: int) -> bytes:
    return _box(kind, struct.pack(f">{len(numbers) + 1}I", 0, *numbers))


def write_packet_bomb(path: Path, num_samples: int) -> Path:
    """One track of so many Motion JPEG pictures, 25 a second."""
    matrix = (65536, 0, 0, 0, 65536, 0, 0, 0, 0x40000000)
    num_chunks = num_samples // SAMPLES_PER_CHUNK
    head = _box(b"ftyp", b"isom", bytes(4), b"isom") + _box(b"mdat", bytes(SAMPLES_PER_CHUNK))
    data_begins = len(head) - SAMPLES_PER_CHUNK
    entry = (
        bytes(6)
        + struct.pack(">H16xHHIIIH", 1, 64, 48, 0x480000, 0x480000, 0, 1)
        + bytes(32)
        + struct.pack(">HH", 24, 65535)
    )
    table = _box(
        b"stbl",
        _box(b"stsd", struct.pack(">II", 0, 1), _box(b"jpeg", entry)),
        _full_box(b"stts", 1, num_samples, 1),
        _full_box(b"stsc", 1, 1, SAMPLES_PER_CHUNK, 1),
        _full_box(b"stsz", 1, num_samples),
        _full_box(b"stco", num_chunks, *[data_begins] * num_chunks),
    )
    where = _box(b"dinf", _box(b"dref", struct.pack(">II", 0, 1), _box(b"url ", struct.pack(">I", 1))))
    handler = _box(b"hdlr", bytes(8), b"vide", bytes(13))
    media = _box(
        b"mdia",
        _full_box(b"mdhd", 0, 0, 25, num_samples, 0x55C40000),
        handler,
        _box(b"minf", _box(b"vmhd", bytes(12)), where, table),
    )
    track = _full_box(b"tkhd", 0, 0, 1, 0, num_samples, 0, 0, 0, 0, *matrix, 64 << 16, 48 << 16)
    movie = _full_box(b"mvhd", 0, 0, 25, num_samples, 65536, 0x1000000, 0, 0, *matrix, *[0] * 6, 2)
    path.write_bytes(head + _box(b"moov", movie, _box(b"trak", track, media)))
    return path
