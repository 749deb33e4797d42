"""A video read once, from its beginning to its end, in constant memory: a file, the stream of a URL, a camera."""

from __future__ import annotations

import bisect
import os
import re
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import NamedTuple

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from videornn.data.decoding import FrameFolder, check_file
from videornn.data.pyav_video import LOCAL_ONLY, shown_stream, to_picture
from videornn.errors import DecodeError

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
LOOKAHEAD = 32  # packets; the next frame on the screen is never further away (H.264 and HEVC reorder 16)
MAX_PAUSE_SECONDS = 60.0  # between two frames; beyond it the clock of the source has jumped
CONNECT_SECONDS = 10.0  # that a live source may take to answer, or send nothing

Wanted = Callable[[float, float], bool]


class TimedFrame(NamedTuple):
    """A frame that appears at time (seconds from the first one); picture() converts it: RGB uint8 [H, W, 3], turned."""

    time: float
    picture: Callable[[], np.ndarray]


def is_live(source: str) -> bool:
    """Whether a source is read as it comes, and may never end: a URL, a camera (/dev/video0), a pipe."""
    if URL.match(source):
        return True
    try:
        mode = os.stat(source).st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


class VideoStream:
    """The frames of a source in the order in which they are shown.

    Packets that cannot be decoded are left out and counted. Times are those of the file, counted from its first frame; where
    it has none, or its clock jumps, they go on at the average rate.

    Attributes:
        fps: the rate that the source announces.
        duration: seconds that it announces; None for live sources, and where a file does not say.
        end: seconds from the first frame to the end of the last one read so far.
        num_damaged: packets that could not be decoded so far, and 1 for an end that could not be read.

    Raises:
        DecodeError: the source is missing, is no video, or does not answer.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.live = is_live(source)
        self.end = 0.0
        self.num_damaged = 0
        self._container: av.container.InputContainer | None = None
        self._folder = FrameFolder(source) if os.path.isdir(source) else None
        if self._folder is not None:
            self.fps, self.duration = self._folder.fps, self._folder.duration
            return
        if not self.live:
            check_file(source)
        try:
            self._open()
        except (av.FFmpegError, OSError, UnicodeError) as error:
            self.close()
            raise DecodeError(f"{source}: cannot be {'opened' if self.live else 'decoded'} ({_reason(error)})") from error
        except DecodeError:
            self.close()
            raise

    def _open(self) -> None:
        options = {"metadata_errors": "ignore"}
        if self.live:
            options["timeout"] = CONNECT_SECONDS
            if self.source.lower().startswith("rtsp"):
                options["options"] = {"rtsp_transport": "tcp"}  # whole frames, and through routers
            elif os.path.exists(self.source) and stat.S_ISCHR(os.stat(self.source).st_mode):
                options["format"] = "v4l2"
        else:
            options["options"] = LOCAL_ONLY
        self._container = av.open(self.source, **options)
        self._stream = shown_stream(self._container)
        if self._stream is None:
            raise DecodeError(f"{self.source}: has no video stream")
        self._codec = self._stream.codec_context
        if self._codec is None:
            raise DecodeError(f"{self.source}: its video is in a format that FFmpeg does not know")
        self._codec.thread_type = "AUTO"
        self._codec.open(strict=False)  # before skip_frame is set: dav1d would keep to it for ever
        self._converter = VideoReformatter()
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = rate if rate and 0.01 < rate < 1000 else Fraction(25)
        length = self._container.duration
        self.duration = None if self.live or not length or length < 0 else length / av.time_base
        self._clock = _Clock(1 / float(self.fps))
        # AVI counts packets: where frames are reordered its timestamps are made up, and no frame may be left out
        self._counts = self._container.format.name == "avi" and bool(self._codec.has_b_frames)

    @property
    def first_seconds(self) -> float:
        """When the source's own clock showed the first frame; 0 before it is read."""
        return 0.0 if self._folder is not None else self._clock.first or 0.0

    def frames(self, wanted: Wanted | None = None) -> Iterator[TimedFrame]:
        """All frames, once; those that nobody needs may be missing.

        Args:
            wanted: whether somebody needs the frame that is on the screen from one second to another. Of the others, those
                that no frame refers to are not even decoded.

        Raises:
            DecodeError: no frame can be decoded, or a live source is lost; frames may have come before.
        """
        if self._folder is not None:
            yield from self._pictures_of_folder()
            return
        for frame in self._decoded(wanted):
            timestamp = None if frame.pts is None or self._counts else float(frame.pts * self._stream.time_base)
            seconds = self._clock.time(timestamp)
            self.end = seconds + 1 / float(self.fps)
            yield TimedFrame(seconds, partial(to_picture, frame, self._converter))
        if self._clock.first is None:
            raise DecodeError(f"{self.source}: has no frame that can be decoded")

    def _pictures_of_folder(self) -> Iterator[TimedFrame]:
        for index, seconds in enumerate(self._folder.times.tolist()):
            self.end = seconds + 1 / float(self.fps)
            yield TimedFrame(seconds, partial(self._picture_of_folder, index))

    def _picture_of_folder(self, index: int) -> np.ndarray:
        return self._folder.frames_at(torch.tensor([index]))[0].numpy()

    def _decoded(self, wanted: Wanted | None) -> Iterator[av.VideoFrame]:
        for packet, skipped in self._with_skips(wanted):
            self._codec.skip_frame = "NONREF" if skipped else "DEFAULT"
            try:
                yield from self._codec.decode(packet)
            except av.FFmpegError:
                self.num_damaged += 1
        try:
            yield from self._codec.decode(None)  # those that wait for their turn on the screen
        except av.FFmpegError:
            self.num_damaged += 1

    def _with_skips(self, wanted: Wanted | None) -> Iterator[tuple[av.Packet, bool]]:
        """Every packet, and whether its frame may be left out."""
        if wanted is None or self.live or self._counts:
            yield from ((packet, False) for packet in self._packets())
            return
        waiting: deque[av.Packet] = deque()
        known: list[int] = []  # timestamps of the packets around, sorted

        def skipped(packet: av.Packet) -> bool:
            # without a time for every packet, or after a jump, nothing is left out
            if packet.pts is None or self._clock.first is None or self._clock.jumped:
                return False
            after = bisect.bisect_right(known, packet.pts)
            if after == len(known):
                return False
            start, end = (float(pts * self._stream.time_base) - self._clock.first for pts in (packet.pts, known[after]))
            return not wanted(start, end)

        for packet in self._packets():
            waiting.append(packet)
            if packet.pts is not None and not packet.is_discard:  # an edit list hides some
                bisect.insort(known, packet.pts)
            if len(known) > 3 * LOOKAHEAD:
                del known[:LOOKAHEAD]
            if len(waiting) > LOOKAHEAD:
                yield waiting[0], skipped(waiting[0])
                waiting.popleft()
        for packet in waiting:
            yield packet, skipped(packet)

    def _packets(self) -> Iterator[av.Packet]:
        while True:
            try:
                yield from (packet for packet in self._container.demux(self._stream) if packet.size)
                return
            except av.BlockingIOError:  # a camera without a new picture
                time.sleep(0.005)
            except (av.FFmpegError, OSError, IndexError) as error:  # IndexError: a stream that was not announced
                if self.live:
                    raise DecodeError(
                        f"{self.source}: the connection was lost after {self.end:.1f} s ({_reason(error)})"
                    ) from error
                self.num_damaged += 1
                return

    def __enter__(self) -> VideoStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the source."""
        if self._container is not None:
            self._container.close()


class _Clock:
    """Seconds from the first frame, growing from frame to frame, from timestamps that may be missing or jump."""

    def __init__(self, frame_seconds: float) -> None:
        self._frame_seconds = frame_seconds
        self._last: float | None = None
        self.first: float | None = None  # timestamp of the first frame
        self.jumped = False

    def time(self, timestamp: float | None) -> float:
        """When the next frame appears; its timestamp in seconds is None where there is none."""
        if self._last is None:
            self.first, self._last = timestamp or 0.0, 0.0
            return 0.0
        expected = self._last + self._frame_seconds
        seconds = expected if timestamp is None else timestamp - self.first
        if not self._last - 1 < seconds < self._last + MAX_PAUSE_SECONDS:
            self.first, self.jumped = timestamp - expected, True
            seconds = expected
        self._last = seconds if seconds > self._last else expected
        return self._last


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
