"""The PyAV back end: for a clip it decodes only the frames of the clip and those that these refer to."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import islice
from typing import Literal

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from videornn.data.video.base import Deadline, FrameVideo
from videornn.data.video.containers import frame_rate, open_file, pixel_aspect, shown_stream, video_streams
from videornn.data.video.packet_list import PacketList
from videornn.data.video.pictures import MAX_FRAME_PIXELS, bound_frames, to_picture
from videornn.errors import DecodeError

KEPT_BYTES = 2**25  # of packets kept in memory; those of a longer video are read again
PACKET_BYTES = 2**10  # memory of a packet besides its data
INTRA = 1  # a picture type; decoders that report none say 0


class PyAVVideo(FrameVideo):
    """A video file whose packets are listed once; a frame is then decoded from the last key frame before it.

    Every packet gets its number in the file as its timestamp before it is decoded, so that a decoded frame tells which
    packet it came from, whatever the container says about time. The container's own timestamps give the order in which
    frames are shown. AVI has none, and those that FFmpeg makes up are wrong if there are B frames: such a video is decoded
    once to learn the order.

    Args:
        timeout: seconds for opening, and again for every call of frames_at.
        max_pixels: width x height that a frame may have.

    Attributes:
        remarks: oddities of the file, in words.

    Raises:
        DecodeError: the file is missing, is no video, has no frame, or takes longer than the timeout.
    """

    def __init__(self, path: str, *, timeout: float = 60.0, max_pixels: int = MAX_FRAME_PIXELS) -> None:
        self.path = path
        self._timeout = timeout
        self._max_pixels = max_pixels
        self._deadline = Deadline(timeout)
        self._converter = VideoReformatter()  # one for all: setting it up takes longer than converting a small frame
        self._container: av.container.InputContainer | None = None
        self.remarks: list[str] = []
        try:
            container = self._open()
            if (num_videos := len(video_streams(container))) > 1:
                self.remarks.append(f"has {num_videos} video streams, of which number {self._stream.index} is read")
            self._list_packets(container)
        except DecodeError:
            self.close()
            raise
        except (av.FFmpegError, OSError, UnicodeError) as error:
            self.close()
            raise self._failed(error) from error

    def _open(self) -> av.container.InputContainer:
        self._kept: list[av.Packet] | None = []
        self._container = open_file(self.path)
        stream = shown_stream(self._container)
        if stream is None:
            raise DecodeError(f"{self.path}: has no video stream")
        self._stream = stream
        self._codec = stream.codec_context
        if self._codec is None:
            raise DecodeError(f"{self.path}: its video is in a format that FFmpeg does not know")
        bound_frames(self.path, self._codec, self._max_pixels)
        self._codec.thread_type = "NONE"  # loaders run one process per core; threads would only compete
        self._codec.open(strict=False)  # before skip_frame is set, which dav1d would obey for ever
        return self._container

    def _list_packets(self, container: av.container.InputContainer) -> None:
        """Find the key frames and the order in which packets are shown; keep the packets if they are few."""
        self._list = PacketList(self.path, container, self._stream, self._kept_packets())
        everything = range(self._list.num_packets)
        # a decoder of packed B frames loses count if it skips some
        self._discard: Literal["DEFAULT", "NONREF"] = "DEFAULT" if self._list.shown is None else "NONREF"
        if self._list.begins_late:
            if num_left_out := self._list.leave_out_lead(self._first_decoded()):
                self.remarks.append(f"begins between key frames: its first {num_left_out} frames cannot be decoded")
        elif self._list.shown is None:
            numbers = dict.fromkeys(number for number, _ in self._frames_of(everything, everything) if number is not None)
            self._list.learn(np.array(list(numbers), np.int64), frame_rate(self._stream) or Fraction(25))
        assert self._list.shown is not None  # it was there, or has been learnt
        self._shown, self.fps = self._list.shown, self._list.fps
        self.num_frames = len(self._shown)
        if self.num_frames == 0:
            raise DecodeError(f"{self.path}: has no frame that can be decoded")
        self._place = self._list.places()
        self.times = np.arange(self.num_frames) / float(self.fps) if self._list.times is None else self._list.times

    def _first_decoded(self) -> Iterator[int | None]:
        """Yield the packets of the first frames, passing over what cannot be decoded."""
        self._codec.flush_buffers()
        for number, packet in enumerate(self._packets_from(0)):
            self._deadline.check(self.path)
            packet.pts = number
            with suppress(av.FFmpegError):
                yield from (frame.pts for frame in self._codec.decode(packet))

    def _kept_packets(self) -> Iterator[av.Packet]:
        """Yield the packets, keeping them while they are few."""
        left = KEPT_BYTES
        for packet in self._read_packets():
            if self._kept is not None:
                left -= packet.size + PACKET_BYTES
                self._kept.append(packet)
                if left <= 0:
                    self._kept = None
            yield packet

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return self._list.duration if self._list.duration is not None else super().duration

    @property
    def pixel_aspect(self) -> Fraction:
        """Width / height of a stored pixel, as players show it."""
        return pixel_aspect(self._stream)

    @property
    def num_chunks(self) -> int:
        """Number of frames in the file, including those that are hidden or have no data."""
        return self._list.num_chunks

    @property
    def ticks(self) -> np.ndarray | None:
        """Times int64 [num_frames] in steps of tick seconds; None if the file has no reliable timestamps."""
        return self._list.ticks

    @property
    def tick(self) -> Fraction:
        """Seconds per step of ticks, exact."""
        return self._list.tick

    def all_frames(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield (index, frame) of every decodable frame, in order; raises av.FFmpegError, OSError or DecodeError."""
        ((first, _),) = self._runs([0])
        everything, last = range(first, self._list.num_packets), -1
        for number, frame in self._frames_of(everything, everything):
            index = -1 if number is None else int(self._place[number])
            if index > last:
                last = index
                yield index, frame

    def _decode(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        self._deadline = Deadline(self._timeout)
        places = {int(self._shown[index]): place for place, index in enumerate(indices)}
        shape: tuple[int, ...] | None = None
        try:
            for number, frame in self._wanted_frames(indices):
                picture = to_picture(frame, self._converter)
                shape = shape or picture.shape
                if picture.shape != shape:  # the size changes within the stream
                    whole = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))
                    picture = whole.to_ndarray(format="rgb24", width=shape[1], height=shape[0])
                yield places[number], picture
        except (av.FFmpegError, OSError) as error:
            raise self._failed(error) from error

    def _wanted_frames(self, indices: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield the frames of these indices, each with the number of its packet."""
        runs = self._runs(indices)
        for done, (key, wanted) in enumerate(runs):
            missing = set(wanted)
            for number, frame in self._frames_of(range(key, self._list.end_of(max(wanted))), missing):
                if number == key > 0 and not (frame.key_frame or int(frame.pict_type) <= INTRA):
                    # FFmpeg takes every packet of H.261, and of H.263 in AVI, for a key frame
                    self._list.keys = self._list.keys[:0]
                    left = [int(self._place[number]) for _, numbers in runs[done:] for number in numbers]
                    yield from self._wanted_frames(left)
                    return
                if number in missing:
                    missing.remove(number)
                    yield number, frame
            if missing:  # a "key frame" can need what comes before it: decode everything from the start
                everything = range(self._list.end_of(max(wanted)))
                for number, frame in self._frames_of(everything, everything):
                    if number in missing:
                        missing.remove(number)
                        yield number, frame
            if missing:
                index = min(self._place[number] for number in missing)
                raise DecodeError(f"{self.path}: frame {index} of {self.num_frames} is damaged")

    def _runs(self, indices: list[int]) -> list[tuple[int, list[int]]]:
        """Return (first packet, wanted packets) of every stretch that can be decoded without what comes before it."""
        runs: dict[int, list[int]] = {}
        keys, places = self._list.keys, self._place
        for index in indices:
            number = int(self._shown[index])
            place = int(np.searchsorted(keys, number, side="right")) - 1
            # B frames can follow a key frame in the file but precede it on screen; they refer to what is before it
            while place >= 0 and places[keys[place]] > index:
                place -= 1
            runs.setdefault(int(keys[place]) if place >= 0 else 0, []).append(number)
        return sorted(runs.items())

    def _frames_of(self, numbers: range, wanted: Collection[int]) -> Iterator[tuple[int | None, av.VideoFrame]]:
        """Decode the packets of these numbers, skipping unwanted frames to which no other frame refers."""
        if isinstance(wanted, set):
            wanted = frozenset(wanted)  # the caller's set shrinks as frames arrive
        packets = self._packets_from(numbers.start)
        self._codec.flush_buffers()
        for number, packet in zip(numbers, packets, strict=False):
            self._deadline.check(self.path)
            packet.pts = number
            if self._list.begins_frame(number):
                self._codec.skip_frame = "DEFAULT" if number in wanted else self._discard
            for frame in self._codec.decode(packet):
                yield frame.pts, frame
        for frame in self._codec.decode(None):  # frames that wait for their turn on screen
            yield frame.pts, frame

    def _packets_from(self, number: int) -> Iterator[av.Packet]:
        if self._kept is not None:
            return islice(self._kept, number, None)
        self.close()
        self._open()
        self._kept = None
        return islice(self._read_packets(), number, None)

    def _read_packets(self) -> Iterator[av.Packet]:
        assert self._container is not None
        try:
            for packet in self._container.demux(self._stream):
                self._deadline.check(self.path)
                if packet.size:
                    yield packet
        except IndexError as error:  # from PyAV, when a stream appears that the start of the file did not announce
            raise DecodeError(f"{self.path}: a stream begins in the middle of the file") from error

    def _failed(self, error: Exception) -> DecodeError:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return DecodeError(f"{self.path}: cannot be decoded ({text.lower()})")

    def close(self) -> None:
        """Release the file."""
        self._kept = []
        if self._container is not None:
            self._container.close()
