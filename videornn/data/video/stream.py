"""A video read once, from its beginning to its end, in constant memory: a file, the stream of a URL, a camera, a pipe."""

from __future__ import annotations

import errno
import io
import os
import stat
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from videornn.data.video.clock import RunningClock, longest_step
from videornn.data.video.containers import (
    LOCAL_ONLY,
    frame_rate,
    open_container,
    open_file,
    pixel_aspect,
    shown_stream,
    time_base,
)
from videornn.data.video.decoders import check_file
from videornn.data.video.frame_folder import FrameFolder
from videornn.data.video.packet_list import PacketList
from videornn.data.video.pictures import MAX_FRAME_PIXELS, bound_frames, to_picture, turn_of
from videornn.errors import DecodeError
from videornn.system.urls import is_url, without_secrets

CONNECT_SECONDS = 10.0  # that a live source may take to answer, or stay silent; a pipe may take any time
SLOWEST_DISK = 2e7  # bytes per second
STDIN = "-"
# remote content can be a playlist: it must not name files of this machine, and one from a pipe nothing at all
NOT_LOCAL = {"protocol_blacklist": "file,fd,pipe,unix"}
BEHIND_SOCKET = {"protocol_blacklist": "file,fd,pipe"}
NETWORK = NOT_LOCAL | {
    "rtsp_transport": "tcp",  # whole frames, and through routers
    "overrun_nonfatal": "1",  # UDP that comes faster than it is read loses some data, but does not end
}
NOTHING_ELSE = {"protocol_whitelist": "crypto"}

Wanted = Callable[[float, float], bool]


def listing_seconds(source: str) -> float:
    """Return the longest time that reading the packets of a source may take before its first frame comes."""
    return 0.0 if is_live(source) or not os.path.isfile(source) else os.path.getsize(source) / SLOWEST_DISK


class TimedFrame(NamedTuple):
    """A frame that appears at time (seconds from the first one); picture() converts it: RGB uint8 [H, W, 3], turned."""

    time: float
    picture: Callable[[], np.ndarray]


def is_live(source: str) -> bool:
    """Return whether a source is read as it comes, and may never end: a URL, a camera (/dev/video0), a pipe, '-'."""
    return is_url(source) or is_pipe(source) or _is_camera(source)


def is_pipe(source: str) -> bool:
    """Return whether a source is standard input ('-') or a pipe, even one open in this process only, like <(command)."""
    return source == STDIN or stat.S_ISFIFO(_mode(source))


class VideoStream:
    """The frames of a source in the order in which they are shown.

    Packets that cannot be decoded are left out and counted. Times are counted from the first frame, as in clock.py. The
    packets of a file are read once in advance, so that its rate and times are the same as by index.

    Attributes:
        fps: the average rate of a file, else the one that the source announces.
        duration: seconds; None for live sources, and if a file without timestamps does not say.
        first_seconds: the source's own clock at the first frame, as counted back from the last frame read so far.
        pixel_aspect: width / height of a pixel of the pictures as players show it, from the first frame on.
        end: seconds from the first frame to the end of the last one read so far.
        num_damaged: packets that could not be decoded so far, plus 1 for an end that could not be read.

    Raises:
        DecodeError: the source is missing, is no video, or does not answer; its frames are larger than max_pixels.
    """

    def __init__(self, source: str, *, max_pixels: int = MAX_FRAME_PIXELS) -> None:
        self.source = source
        self._max_pixels = max_pixels
        self.live = is_live(source)
        self.end = 0.0
        self.num_damaged = 0
        self.duration: float | None = None
        self.first_seconds = 0.0
        self.pixel_aspect = Fraction(1)
        self._name = "standard input" if source == STDIN else without_secrets(source)
        self._container: av.container.InputContainer | None = None
        self._pipe: io.FileIO | None = None
        self._folder = FrameFolder(source, max_pixels=max_pixels) if os.path.isdir(source) else None
        if self._folder is not None:
            self.fps, self.duration = self._folder.fps, self._folder.duration
            return
        if not self.live:
            check_file(source)
        self._waiting_since = time.monotonic()
        try:
            container = self._open()
            if not self.live:
                self._list_packets(container)
        except (av.FFmpegError, OSError, UnicodeError) as error:
            self.close()
            raise self._failed("cannot be opened" if self.live else "cannot be decoded", error) from error
        except BaseException:  # Ctrl-C too: the writer of a pipe must learn that nobody reads it
            self.close()
            raise

    def _open(self) -> av.container.InputContainer:
        self._container = self._opened_live() if self.live else open_file(self.source)
        stream = shown_stream(self._container)
        if stream is None:
            raise DecodeError(f"{self._name}: has no video stream")
        self._stream = stream
        self._codec = stream.codec_context
        if self._codec is None:
            raise DecodeError(f"{self._name}: its video is in a format that FFmpeg does not know")
        bound_frames(self._name, self._codec, self._max_pixels)
        self._codec.thread_type = "AUTO"
        self._codec.open(strict=False)  # before skip_frame is set, which dav1d would obey for ever
        self._converter = VideoReformatter()
        self.fps = frame_rate(self._stream) or Fraction(25)
        self._last_seconds = 1 / float(self.fps)  # of the last frame on screen
        return self._container

    def _list_packets(self, container: av.container.InputContainer) -> None:
        """Read a file's clock before its frames, because what it announces can be wrong."""
        length = container.duration
        self._list = PacketList(self._name, container, self._stream, self._packets())
        self._reopen()
        if self._list.begins_late:
            self._list.leave_out_lead(frame.pts for frame in self._decoded(self._numbered(None)))
            self._reopen()
        if self._list.times is not None:
            self.duration = self._list.duration
        else:
            self.duration = length / av.time_base if length and length > 0 else None
        self.fps = self._list.fps
        self._last_seconds = self._list.last_seconds or 1 / float(self.fps)

    def _reopen(self) -> None:
        self.num_damaged = 0  # the end will be read again
        self.close()
        self._open()

    def _opened_live(self) -> av.container.InputContainer:
        if is_pipe(self.source):
            return open_container(self._opened_pipe(), container_options=NOTHING_ELSE)
        scheme = self.source.partition(":")[0].lower()
        if scheme == "file" and not _is_camera(self.source):
            return open_container(self.source, container_options=LOCAL_ONLY)
        options: dict[str, Any] = {"timeout": CONNECT_SECONDS}
        if _is_camera(self.source):
            options["format"] = "v4l2"
        else:
            options["container_options"] = BEHIND_SOCKET if scheme == "unix" else NETWORK
        return open_container(self.source, **options)

    def _opened_pipe(self) -> io.FileIO | _Forward:
        """Open the pipe as a Python file: while FFmpeg itself waits for a pipe, Ctrl-C has no effect."""
        if self.source == STDIN and os.isatty(0):
            raise DecodeError("standard input is a terminal: send a video to it, as in cat video.mp4 | videornn infer ... -")
        self._pipe = io.FileIO(0 if self.source == STDIN else self.source, closefd=self.source != STDIN)
        return self._pipe if self._pipe.seekable() else _Forward(self._pipe)

    def frames(self, wanted: Wanted | None = None) -> Iterator[TimedFrame]:
        """Yield all frames, once; unneeded ones may be missing.

        Args:
            wanted: returns whether a frame on screen from one second to another is needed. Others are not even decoded if
                no frame refers to them.

        Raises:
            DecodeError: no frame can be decoded, or a live source is lost; frames may have come before.
        """
        if self._folder is not None:
            yield from self._pictures_of_folder(self._folder)
            return
        timed = self._running() if self.live else self._counted() if self._list.shown is None else self._listed(wanted)
        for seconds, self.first_seconds, frame in timed:
            if not self.end:
                self.pixel_aspect = turn_of(frame).of_pixel(pixel_aspect(self._stream))
            self.end = seconds + self._last_seconds
            yield TimedFrame(seconds, partial(to_picture, frame, self._converter))
        if not self.end:
            raise DecodeError(f"{self._name}: has no frame that can be decoded")

    def _running(self) -> Iterator[tuple[float, float, av.VideoFrame]]:
        """Yield (seconds, the source's own clock at the first frame, frame), as they come."""
        assert self._container is not None
        clock, tick = RunningClock(1 / float(self.fps), longest_step(self._container)), time_base(self._stream)
        for frame in self._decoded(self._packets()):
            seconds = clock.time(None if frame.pts is None else float(frame.pts * tick))
            assert clock.zero is not None
            yield seconds, clock.zero, frame

    def _counted(self) -> Iterator[tuple[float, float, av.VideoFrame]]:
        """Yield the same from a file whose packets do not tell which frame they are."""
        times = () if self._list.times is None else self._list.times
        for index, frame in enumerate(self._decoded(self._packets())):
            seconds = float(times[index]) if index < len(times) else index / float(self.fps)
            yield seconds, self._list.first_seconds, frame

    def _listed(self, wanted: Wanted | None) -> Iterator[tuple[float, float, av.VideoFrame]]:
        """Yield the same from a file that says when its frames appear."""
        places, times, last = self._list.places(), self._list.times, -1
        assert times is not None
        for frame in self._decoded(self._numbered(wanted)):
            place = -1 if frame.pts is None else int(places[frame.pts])
            if place == 0:
                self.num_damaged = 0  # what comes before the first frame is left out
            if place > last:
                last = place
                seconds = float(times[place])
                yield seconds, self._list.source_seconds(place) - seconds, frame

    def _pictures_of_folder(self, folder: FrameFolder) -> Iterator[TimedFrame]:
        for index, seconds in enumerate(folder.times.tolist()):
            self.end = seconds + 1 / float(self.fps)
            yield TimedFrame(seconds, partial(_picture_of_folder, folder, index))

    def _decoded(self, packets: Iterator[av.Packet]) -> Iterator[av.VideoFrame]:
        lost = None
        try:
            for packet in packets:
                yield from self._decoded_packet(packet)
        except DecodeError as error:
            lost = error
        yield from self._decoded_packet(None)  # frames that wait for their turn on screen
        if lost is not None:
            raise lost

    def _decoded_packet(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        try:
            return self._codec.decode(packet)
        except av.FFmpegError:
            self.num_damaged += 1
            return []

    def _numbered(self, wanted: Wanted | None) -> Iterator[av.Packet]:
        """Yield every packet, with its number as its timestamp, and tell the decoder which frames it may skip."""
        places, times = self._list.places(), self._list.times
        assert times is not None
        numbers = range(self._list.num_packets)  # a file that is still being written can have grown
        for number, packet in zip(numbers, self._packets(), strict=False):
            packet.pts = number
            if wanted is not None and self._list.begins_frame(number):
                place = places[number]
                is_needed = not 0 <= place < len(times) - 1 or wanted(float(times[place]), float(times[place + 1]))
                self._codec.skip_frame = "DEFAULT" if is_needed else "NONREF"
            yield packet

    def _packets(self) -> Iterator[av.Packet]:
        assert self._container is not None
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
    """A pipe for FFmpeg without the method seek, which FFmpeg would try to use."""

    def __init__(self, pipe: io.FileIO) -> None:
        self.read = pipe.read


def _picture_of_folder(folder: FrameFolder, index: int) -> np.ndarray:
    return folder.frames_at(torch.tensor([index]))[0].numpy()


def _is_camera(source: str) -> bool:
    return stat.S_ISCHR(_mode(source))


def _mode(source: str) -> int:
    """Return the type of a file as stat tells it; 0 if there is none."""
    try:
        return os.stat(source).st_mode
    except (OSError, ValueError):
        return 0
