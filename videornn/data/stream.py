"""A video read once, from its beginning to its end, in constant memory: a file, the stream of a URL, a camera, a pipe."""

from __future__ import annotations

import bisect
import errno
import io
import os
import re
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from videornn.data.containers import LOCAL_ONLY, frame_rate, open_container, shown_stream
from videornn.data.decoding import FrameFolder, check_file
from videornn.data.pictures import to_picture
from videornn.errors import DecodeError

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
LOOKAHEAD = 32  # packets; the next frame on the screen is never further away (H.264 and HEVC reorder 16)
MAX_PAUSE_SECONDS = 60.0  # between two frames; beyond it the clock of the source has jumped
CONNECT_SECONDS = 10.0  # that a live source may take to answer, or send nothing; a pipe may take any time
STDIN = "-"
# what comes from elsewhere can be a playlist: it must not name what lies on this machine, nor a pipe any place at all
NOT_LOCAL = {"protocol_blacklist": "file,fd,pipe,unix"}
NETWORK = NOT_LOCAL | {
    "rtsp_transport": "tcp",  # whole frames, and through routers
    "overrun_nonfatal": "1",  # of UDP that comes faster than it is read, some is left out: it does not end for that
}
NOTHING_ELSE = {"protocol_whitelist": "crypto"}
USER = re.compile(r"(?<=://)[^/?#]*@")
SECRET = re.compile(r"((?:passphrase|password|passwd|pass|pwd|token|secret|key)=)[^&;/#\s]+", re.IGNORECASE)

Wanted = Callable[[float, float], bool]


class TimedFrame(NamedTuple):
    """A frame that appears at time (seconds from the first one); picture() converts it: RGB uint8 [H, W, 3], turned."""

    time: float
    picture: Callable[[], np.ndarray]


def is_live(source: str) -> bool:
    """Whether a source is read as it comes, and may never end: a URL, a camera (/dev/video0), a pipe, '-'."""
    return bool(URL.match(source)) or is_pipe(source) or _is_camera(source)


def is_pipe(source: str) -> bool:
    """Whether a source is standard input ('-') or a pipe, which may be open in this process alone, as <(command) is."""
    return source == STDIN or stat.S_ISFIFO(_mode(source))


def without_secrets(source: str) -> str:
    """A source as it may be shown and written: of a URL, neither user:password@ nor the value of password= or the like."""
    return SECRET.sub(r"\1***", USER.sub("***@", source)) if URL.match(source) else source


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
        self._name = "standard input" if source == STDIN else without_secrets(source)
        self._container: av.container.InputContainer | None = None
        self._pipe: io.FileIO | None = None
        self._folder = FrameFolder(source) if os.path.isdir(source) else None
        if self._folder is not None:
            self.fps, self.duration = self._folder.fps, self._folder.duration
            return
        if not self.live:
            check_file(source)
        self._waiting_since = time.monotonic()
        try:
            self._open()
        except (av.FFmpegError, OSError, UnicodeError) as error:
            self.close()
            raise self._failed("cannot be opened" if self.live else "cannot be decoded", error) from error
        except BaseException:  # Ctrl-C too: who writes to a pipe must learn that nobody reads it
            self.close()
            raise

    def _open(self) -> None:
        place: str | io.FileIO | _Forward = self.source
        options: dict[str, Any] = {}
        if is_pipe(self.source):
            place, options["container_options"] = self._opened_pipe(), NOTHING_ELSE
        elif not self.live or self.source.lower().startswith("file:"):
            options["container_options"] = LOCAL_ONLY
        else:
            options["timeout"] = CONNECT_SECONDS
            if _is_camera(self.source):
                options["format"] = "v4l2"
            elif not self.source.lower().startswith("unix:"):
                options["container_options"] = NETWORK
        self._container = open_container(place, **options)
        self._stream = shown_stream(self._container)
        if self._stream is None:
            raise DecodeError(f"{self._name}: has no video stream")
        self._codec = self._stream.codec_context
        if self._codec is None:
            raise DecodeError(f"{self._name}: its video is in a format that FFmpeg does not know")
        self._codec.thread_type = "AUTO"
        self._codec.open(strict=False)  # before skip_frame is set: dav1d would keep to it for ever
        self._converter = VideoReformatter()
        rate = frame_rate(self._stream)
        self.fps = rate if rate and 0.01 < rate < 1000 else Fraction(25)
        length = self._container.duration
        self.duration = None if self.live or not length or length < 0 else length / av.time_base
        self._clock = _Clock(1 / float(self.fps))
        # AVI counts packets: where frames are reordered its timestamps are made up, and no frame may be left out
        self._counts = self._container.format.name == "avi" and bool(self._codec.has_b_frames)

    def _opened_pipe(self) -> io.FileIO | _Forward:
        """The pipe as a file of Python: while FFmpeg itself waits for a pipe, Ctrl-C has no effect."""
        if self.source == STDIN and os.isatty(0):
            raise DecodeError("standard input is a terminal: send a video to it, as in cat video.mp4 | videornn infer ... -")
        self._pipe = io.FileIO(0 if self.source == STDIN else self.source, closefd=self.source != STDIN)
        return self._pipe if self._pipe.seekable() else _Forward(self._pipe)

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
            raise DecodeError(f"{self._name}: has no frame that can be decoded")

    def _pictures_of_folder(self) -> Iterator[TimedFrame]:
        for index, seconds in enumerate(self._folder.times.tolist()):
            self.end = seconds + 1 / float(self.fps)
            yield TimedFrame(seconds, partial(self._picture_of_folder, index))

    def _picture_of_folder(self, index: int) -> np.ndarray:
        return self._folder.frames_at(torch.tensor([index]))[0].numpy()

    def _decoded(self, wanted: Wanted | None) -> Iterator[av.VideoFrame]:
        lost = None
        try:
            for packet, skipped in self._with_skips(wanted):
                self._codec.skip_frame = "NONREF" if skipped else "DEFAULT"
                yield from self._decoded_packet(packet)
        except DecodeError as error:
            lost = error
        yield from self._decoded_packet(None)  # those that wait for their turn on the screen
        if lost is not None:
            raise lost

    def _decoded_packet(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        try:
            return self._codec.decode(packet)
        except av.FFmpegError:
            self.num_damaged += 1
            return []

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
        self._waiting_since = time.monotonic()
        while True:
            try:
                for packet in self._container.demux(self._stream):
                    if packet.size:
                        yield packet
                    self._waiting_since = time.monotonic()
                return
            except av.BlockingIOError as error:  # a camera without a new picture
                if self._is_silent():
                    raise self._failed(f"the connection was lost after {self.end:.1f} s", error) from error
                time.sleep(0.005)
            except (av.FFmpegError, OSError, IndexError) as error:  # IndexError: a stream that was not announced
                if self.live:
                    raise self._failed(f"the connection was lost after {self.end:.1f} s", error) from error
                self.num_damaged += 1
                return

    def _is_silent(self) -> bool:
        return self._pipe is None and time.monotonic() - self._waiting_since > CONNECT_SECONDS - 0.1

    def _failed(self, what: str, error: Exception) -> DecodeError:
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
        if self.live and (isinstance(error, av.ExitError) or self._is_silent()):  # RTSP says "invalid data" of silence
            reason = f"no video came for {CONNECT_SECONDS:g} s"
        elif self._pipe is not None and self._container is not None and "mp4" in self._container.format.name:
            what, reason = "cannot be read from a pipe", "an MP4 file with its index at the end: give the file, not a pipe"
        elif _is_camera(self.source) and getattr(error, "errno", None) in (errno.ENOTTY, errno.EINVAL, errno.ENXIO):
            reason += "; it is no camera"
        return DecodeError(f"{self._name}: {what} ({reason})")

    def __enter__(self) -> VideoStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the source."""
        if self._container is not None:
            self._container.close()
        if self._pipe is not None:
            self._pipe.close()


class _Forward:
    """A pipe for FFmpeg, which tries to seek wherever it finds the method."""

    def __init__(self, pipe: io.FileIO) -> None:
        self.read = pipe.read


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


def _is_camera(source: str) -> bool:
    return stat.S_ISCHR(_mode(source))


def _mode(source: str) -> int:
    """Type of a file as stat tells; 0 where there is none."""
    try:
        return os.stat(source).st_mode
    except (OSError, ValueError):
        return 0
