"""Pair packets of interlaced H.264 (cameras, broadcasters), where a packet can hold a single field of a frame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

HIGH_PROFILES = frozenset([100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135])  # with colours in the header
SPS = 7
SLICES = frozenset([1, 2, 5])  # NAL unit types: a picture, the first partition of one, a key frame
UNIT_BYTES = 512  # more than is read of a unit


class FieldPairs:
    """A detector that tells, packet by packet, whether a packet completes the frame that the one before has begun.

    Args:
        extradata: the header of the stream: avcC, or NAL units in the format of the stream.
    """

    def __init__(self, extradata: bytes | None) -> None:
        header = extradata or b""
        self._length_size = (header[4] & 3) + 1 if header[:1] == b"\x01" and len(header) > 8 else 0
        # avcC: five bytes, the number of parameter sets, and each with its length in two bytes
        units = [header[8 : 8 + int.from_bytes(header[6:8], "big")]] if self._length_size else _between_start_codes(header)
        self._format = next((_slice_format(unit) for unit in units if unit[0] & 31 == SPS), None)
        self._half: tuple[int, bool] | None = None  # frame_num and parity of a field that waits for the other

    @property
    def possible(self) -> bool:
        """Whether the stream may have fields at all; most streams say that they have none."""
        return self._format is not None

    def completes(self, data: bytes) -> bool:
        """Return whether a packet is the second field of a frame."""
        fields = {self._field(unit) for unit in self._units(data) if unit[0] & 31 in SLICES}
        half, self._half = self._half, None
        field = fields.pop() if len(fields) == 1 else None
        if field is None:  # a frame, or both of its fields
            return False
        number, is_bottom = field
        if half == (number, not is_bottom):
            return True
        self._half = (number, is_bottom)
        return False

    def _units(self, data: bytes) -> Iterator[bytes]:
        """Yield the beginnings of the NAL units of a packet."""
        if not self._length_size:
            yield from _between_start_codes(data)
            return
        place, size = 0, self._length_size
        while place + size < len(data):
            start = place + size
            yield data[start : start + UNIT_BYTES]
            place = start + int.from_bytes(data[place:start], "big")

    def _field(self, unit: bytes) -> tuple[int, bool] | None:
        """Parse (frame_num, whether it is the bottom field) of a slice; None if it is of a whole frame."""
        assert self._format is not None  # else no field is possible
        try:
            bits = _Bits(unit[1:])
            for _ in range(3):  # first macroblock, slice type, parameter set
                bits.number()
            bits.take(self._format.skipped_bits)
            number = bits.take(self._format.frame_num_bits)
            return (number, bool(bits.take(1))) if bits.take(1) else None
        except ValueError:
            return None


class _SliceFormat(NamedTuple):
    """The format of a sequence's slices: bits in front of frame_num, and bits of it."""

    skipped_bits: int
    frame_num_bits: int


def _slice_format(sps: bytes) -> _SliceFormat | None:
    """Parse the format of slices; None if all pictures of the sequence are frames, or the header cannot be read."""
    bits = _Bits(sps[1:])
    try:
        profile, _ = bits.take(8), bits.take(16)
        bits.number()
        skipped = 0
        if profile in HIGH_PROFILES:
            chroma = bits.number()
            skipped = 2 * bits.take(1) if chroma == 3 else 0
            bits.number(), bits.number(), bits.take(1)  # bit depths, lossless
            if bits.take(1):
                for index in range(12 if chroma == 3 else 8):
                    bits.skip_scaling_list(16 if index < 6 else 64)
        frame_num_bits = bits.number() + 4
        order = bits.number()
        if order == 0:
            bits.number()
        elif order == 1:
            bits.take(1), bits.number(), bits.number()
            for _ in range(bits.number()):
                bits.number()
        bits.number(), bits.take(1), bits.number(), bits.number()  # references, gaps, width, height
        return None if bits.take(1) else _SliceFormat(skipped, frame_num_bits)
    except ValueError:
        return None


def _between_start_codes(data: bytes) -> Iterator[bytes]:
    """Yield the beginnings of NAL units between start codes; short ones as a whole."""
    place = data.find(b"\0\0\1")
    while 0 <= place < len(data) - 3:
        following = data.find(b"\0\0\1", place + 3)
        yield data[place + 3 : place + 3 + UNIT_BYTES if following < 0 else min(following, place + 3 + UNIT_BYTES)]
        place = following


class _Bits:
    """A reader of a NAL unit, bit by bit; raises ValueError at its end."""

    def __init__(self, unit: bytes) -> None:
        content = unit.replace(b"\0\0\3", b"\0\0")  # the 3 was inserted to keep data from looking like a start code
        self._left = 8 * len(content)
        self._content = int.from_bytes(content, "big")

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("the unit ends")
        return self._content >> self._left & ((1 << count) - 1)

    def number(self) -> int:
        """Read an Exp-Golomb code; a signed one is skipped in the same way."""
        length = 0
        while not self.take(1):
            length += 1
        return (1 << length) - 1 + self.take(length)

    def skip_scaling_list(self, size: int) -> None:
        last = following = 8
        if not self.take(1):
            return
        for _ in range(size):
            if following:
                code = self.number()
                following = (last + (code + 1) // 2 * (1 if code % 2 else -1)) % 256
            last = following or last
