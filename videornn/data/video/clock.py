"""Find from the timestamps of a video's packets in which order its frames are shown, and when.

In a file with one clock (MP4, Matroska, AVI) a long gap is meant: a frame can stay for minutes. The clock of a stream
(MPEG-TS, a camera) restarts or jumps whenever its sender does, which means nothing: the next frame simply follows.
"""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

MISSING = -(2**63)  # stands for a missing timestamp
# seconds beyond which FFmpeg's own command takes a step of the clock for a fault: in streams, in files, backwards in both
LONGEST_GAP = 10.0
LONGEST_HOLD = 30 * 3600.0
SET_BACK = 0.1
CLOCK_JUMPS = 0x200 | 0x1  # AVFMT_TS_DISCONT: a format whose clock may jump; AVFMT_NOFILE: a camera, RTSP
ONLY_JUMPS_BACK = "ogg"  # one file can hold several in a row; each has its own clock, which begins at 0


def longest_step(container: av.container.InputContainer) -> float:
    """Return the longest that a frame can be on screen, in seconds; if the next one seems later, the clock has jumped."""
    jumps = int(container.format.flags) & CLOCK_JUMPS and container.format.name != ONLY_JUMPS_BACK
    return LONGEST_GAP if jumps else LONGEST_HOLD


def average_rate(num_frames: int, seconds: Fraction) -> Fraction:
    """Return frames per second, a simple fraction, of two or more frames whose last appears seconds after the first."""
    rate = (num_frames - 1) / seconds
    return rate.limit_denominator(1001) if rate >= 1 else 1 / (1 / rate).limit_denominator(1001)


def told_rate(rate: Fraction | float) -> float:
    """Round a rate for display: three decimal places, or four digits if it is below one."""
    return round(float(rate), 3) if rate >= 1 else float(f"{float(rate):.4g}")


def read_clock(
    pts: np.ndarray,
    dts: np.ndarray,
    is_key: np.ndarray,
    is_shown: np.ndarray,
    *,
    tick: Fraction,
    longest: float,
    announced: Fraction,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Find which packets are frames, in the order in which they are shown, and the ticks from the first frame to each.

    At a change of clock, a frame is on screen for as long as most others.

    Args:
        pts: int64 [N], when packets are shown, in the order of the file; MISSING if not given.
        dts: int64 [N], when they are decoded, increasing within one clock; MISSING if not given.
        is_key: bool [N], whether a decoder can begin with a packet.
        is_shown: bool [N], whether a packet is a frame of its own that is shown.
        tick: seconds per step of the timestamps.
        longest: the most seconds that a frame can be on screen.
        announced: frames per second, used if every frame has a clock of its own.

    Returns:
        int64 [F] packets and int64 [F] ticks; None if frames have no timestamp, or share one, so that no order is known.
    """
    shown = np.flatnonzero(is_shown)
    if len(shown) == 0 or (pts[shown] == MISSING).any():
        return None
    stamped = np.flatnonzero(dts != MISSING)
    steps = np.diff(dts[stamped])
    is_back = (steps < -SET_BACK / float(tick)) | ((steps <= 0) & is_key[stamped[1:]])
    clock = np.zeros(len(pts), np.int64)  # number of the clock of each packet
    clock[stamped[1:][is_back]] = 1
    clock = np.cumsum(clock)
    order = shown[np.lexsort((pts[shown], clock[shown]))]
    gaps = np.diff(pts[order])
    if ((gaps == 0) & (np.diff(clock[order]) == 0)).any():
        return None
    sound = (gaps > 0) & (gaps <= longest / float(tick))
    usual = np.sort(gaps[sound])[sound.sum() // 2] if sound.any() else max(round(1 / announced / tick), 1)
    ticks = np.concatenate([[0], np.cumsum(np.where(sound, gaps, usual))])
    return order, ticks


class RunningClock:
    """A clock for a stream that is read as it comes: seconds from its first frame, growing from frame to frame.

    Attributes:
        zero: the source's own clock, in seconds, as counted back to the first frame; None before that.
    """

    def __init__(self, frame_seconds: float, longest: float) -> None:
        self._frame_seconds = frame_seconds
        self._longest = longest
        self._last = 0.0
        self.zero: float | None = None

    def time(self, timestamp: float | None) -> float:
        """Return when the next frame appears on screen; its timestamp, in seconds, is None if it has none."""
        if self.zero is None:
            self.zero = timestamp or 0.0
            return 0.0
        expected = self._last + self._frame_seconds
        seconds = expected
        if timestamp is not None and -SET_BACK <= timestamp - self.zero - self._last <= self._longest:
            seconds = timestamp - self.zero
        elif timestamp is not None:
            self.zero = timestamp - expected
        self._last = seconds if seconds > self._last else expected
        return self._last
