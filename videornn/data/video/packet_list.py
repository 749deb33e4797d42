"""Learn from the packets of a video, without decoding, which are frames, in which order, and at which times."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from fractions import Fraction

import av
import numpy as np

from videornn.data.video.clock import MISSING, average_rate, longest_step, read_clock
from videornn.data.video.containers import frame_rate, time_base
from videornn.data.video.h264_fields import FieldPairs
from videornn.errors import DecodeError

KEY, HIDDEN, SECOND_FIELD = 1, 2, 4
NOTHING_MOVED_BYTES = 8  # of MPEG-4
NO_TIMESTAMPS = 0x80  # AVFMT_NOTIMESTAMPS: a bare stream, as from a camera's encoder
COUNT_STEPS = ("avi", "ivf")  # formats whose header counts steps of time, whether they have a frame or not


class PacketList:
    """The packets of a video file, read once; packets are numbered in the order of the file.

    It takes 17 bytes a packet, and 32 a frame.

    Attributes:
        num_packets: how many there are.
        num_chunks: the same, in AVI also counting chunks without data, each of which repeats the frame before.
        keys: int64, the packets with which a decoder can begin.
        shown: int64 [F], the packets that are frames, in the order in which they are shown; None if only a decoder can tell.
        ticks: int64 [F], when each frame appears, counted from the first, in steps of tick seconds; None if unknown, so that
            frames must be counted.
        times: float64 [F], the same in seconds.
        fps: the average rate of the frames; if frames are counted, the one that the file announces.
        last_seconds: how long the last frame is on screen; None if frames are counted.
        duration: total seconds; None if frames are counted.

    Raises:
        DecodeError: the file declares more packets than it can hold.
    """

    def __init__(
        self, name: str, container: av.container.InputContainer, stream: av.VideoStream, packets: Iterable[av.Packet]
    ) -> None:
        # tables of MP4 can declare any number in a few bytes; the header of AVI can be wrong
        if "mp4" in container.format.name and stream.frames > container.size > 0:
            raise DecodeError(f"{name}: declares {stream.frames} frames in {container.size} bytes")
        self.tick = time_base(stream)
        self.fps = frame_rate(stream) or Fraction(25)
        self.shown: np.ndarray | None = None
        self.ticks: np.ndarray | None = None
        self.times: np.ndarray | None = None
        self.last_seconds: float | None = None
        self.duration: float | None = None
        codec = stream.codec_context
        pairs = FieldPairs(codec.extradata) if codec.name == "h264" else None
        pairs = pairs if pairs and pairs.possible else None
        all_pts, all_dts, flags, smallest = array("q"), array("q"), bytearray(), 2**31
        for packet in packets:
            pts, dts, size = packet.pts, packet.dts, packet.size
            all_pts.append(MISSING if pts is None else pts)
            all_dts.append(MISSING if dts is None else dts)
            # an edit list hides packets that must be decoded all the same
            flag = KEY * packet.is_keyframe | HIDDEN * packet.is_discard
            flags.append(SECOND_FIELD if pairs and pairs.completes(bytes(packet)) else flag)
            if size < smallest:
                smallest = size
        self.num_packets = len(flags)
        self._pts, self._dts, self._flags = np.array(all_pts), np.array(all_dts), np.array(flags, np.uint8)
        self.keys = np.flatnonzero(self._flags & KEY)
        is_avi = container.format.name == "avi"
        self.num_chunks = self.num_packets
        if container.format.name in COUNT_STEPS:
            self.num_chunks = max(self.num_packets, int(self._dts.max(initial=-1)) + 1)
        # MPEG-4 in AVI: a packet of a few bytes says that nothing moved, or stands for a B frame in the packet before
        has_small = smallest <= NOTHING_MOVED_BYTES
        has_made_up = codec.has_b_frames and (is_avi or int(container.format.flags) & NO_TIMESTAMPS)
        clock = None
        if not (has_made_up or (is_avi and has_small)):
            is_key, is_shown = self._flags & KEY != 0, self._flags & (HIDDEN | SECOND_FIELD) == 0
            longest = longest_step(container)
            clock = read_clock(self._pts, self._dts, is_key, is_shown, tick=self.tick, longest=longest, announced=self.fps)
        # B frames that are said to be shown in the order of decoding: the file tells when frames appear, but not which
        only_decoded = codec.has_b_frames and self.num_packets > 1 and (self._pts == self._dts).all()
        if clock is not None and not only_decoded:
            self._set_frames(*clock)
            return
        self.keys = self.keys[:0]  # such files mark frames as key frames that are not
        if clock is not None:
            self._set_frames(None, clock[1])
        elif is_avi and not has_small and (np.diff(self._dts) > 1).any():  # frames were dropped, so others stay longer
            self._set_frames(None, np.sort(self._dts))

    def _set_frames(self, shown: np.ndarray | None, ticks: np.ndarray) -> None:
        self.shown, self.ticks = shown, ticks - ticks[0]
        self.times = self.ticks * float(self.tick)
        usual = 1 / self.fps
        if len(ticks) > 1:
            gaps = np.sort(np.diff(ticks))
            self.fps = average_rate(len(ticks), int(self.ticks[-1]) * self.tick)
            # if gaps differ only by the rounding of ticks, the average is more exact
            usual = 1 / self.fps if gaps[-1] - gaps[0] <= 1 else int(gaps[len(gaps) // 2]) * self.tick
        self.last_seconds = float(usual)
        self.duration = float((len(ticks) - 1) / self.fps + usual)

    def learn(self, shown: np.ndarray, announced: Fraction) -> None:
        """Take over from a decoder which packets are frames, in the order in which they are shown."""
        if self.times is not None and len(shown) != len(self.times):
            self.ticks = self.times = self.duration = self.last_seconds = None
            self.fps = announced
        self.shown = shown

    @property
    def begins_late(self) -> bool:
        """Whether there are frames before the first one that a decoder can begin with; they may not be decodable."""
        if self.shown is None or len(self.keys) == 0:
            return self.shown is not None
        return self.shown[0] != self.keys[0] and (self.keys[0] > 0 or self.keys[0] in self.shown)

    def leave_out_lead(self, decoded: Iterable[int | None]) -> int:
        """Leave out the frames before the first key frame that are not among the first decoded ones; return their number.

        Args:
            decoded: the packets of the frames that a decoder yields from the first packet on; only its beginning is read.
        """
        assert self.shown is not None and self.ticks is not None
        places, seen = self.places(), set()
        first_key = places[self.keys[0]] if len(self.keys) else 0
        for number in decoded:
            if number is not None and places[number] >= 0:
                seen.add(int(places[number]))
            if seen and (0 in seen or max(seen) >= first_key):
                break
        is_kept = np.ones(len(self.shown), bool)
        is_kept[: max(seen, default=0)] = False
        is_kept[list(seen)] = True
        self._set_frames(self.shown[is_kept], self.ticks[is_kept])
        return int((~is_kept).sum())

    def places(self) -> np.ndarray:
        """Return int64 [num_packets]: the frame of each packet, -1 if it is none."""
        assert self.shown is not None
        places = np.full(self.num_packets, -1)
        places[self.shown] = np.arange(len(self.shown))
        return places

    def begins_frame(self, number: int) -> bool:
        """Return whether a packet begins a frame, rather than being the second field of one."""
        return not self._flags[number] & SECOND_FIELD

    def end_of(self, number: int) -> int:
        """Return the number after the last packet of a frame."""
        end = number + 1
        return end if end == self.num_packets or self.begins_frame(end) else end + 1

    def source_seconds(self, index: int) -> float:
        """Return the time on the file's own clock at which a frame appears."""
        assert self.shown is not None
        return float(self._pts[self.shown[index]] * float(self.tick))

    @property
    def first_seconds(self) -> float:
        """Time on the file's own clock at the beginning; 0 if it has none."""
        stamped = self._dts[self._dts != MISSING]
        return float(stamped[0] * float(self.tick)) if len(stamped) else 0.0
