"""Write videos as H.264 in MP4, which every player and browser shows: from pictures, or redrawn with their sound."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from videornn.data.video.clock import SET_BACK, longest_step
from videornn.data.video.containers import create_file, open_file, time_base
from videornn.data.video.pictures import MAX_FRAME_PIXELS
from videornn.data.video.stream import VideoStream
from videornn.errors import DecodeError
from videornn.system.files import replacing

COPIED_SOUND = frozenset(["aac", "mp3", "mp3float", "ac3", "eac3", "alac", "opus", "libopus"])  # taken by MP4 as they are
AAC_RATES = frozenset([96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000])
CLOCK = Fraction(1, 90000)  # exact for all usual frame rates


def write_movie(path: Path, frames: Iterable[np.ndarray], fps: Fraction | int, *, crf: int = 19) -> None:
    """Encode pictures uint8 [H, W, 3], all of one even size, at a constant rate; the same pictures give the same bytes.

    The file is written as a whole or not at all. One thread encodes.
    """
    options = {"crf": str(crf), "preset": "veryfast", "threads": "1"}
    options["x264-params"] = "cpu-independent=1"  # without it x264's bytes differ from run to run
    with replacing(path) as temporary, create_file(temporary) as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.pix_fmt = "yuv420p"
        for index, picture in enumerate(frames):
            if index == 0:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, 1 / Fraction(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def redraw_movie(
    source: str,
    path: Path,
    draw: Callable[[np.ndarray, float], np.ndarray],
    max_pixels: int = MAX_FRAME_PIXELS,
    *,
    crf: int = 21,
) -> Iterator[float]:
    """Draw every frame of a video anew, at the time at which it appeared, with the sound of the source.

    Sound is copied packet by packet if MP4 takes its format, else encoded to AAC with one or two channels. It ends where it
    is damaged. If MP4 cannot take a damaged track, which shows only at the end, all is done again without sound.

    Args:
        path: the movie; it can be played when the iterator has come to its end.
        draw: called with an upright picture uint8 [H, W, 3] and its time in seconds; returns pictures of one even size.
        max_pixels: width x height that a frame of the source may have.

    Yields:
        After every frame, the share of the video, in 0..1, that is done; 0 if the file does not tell its length.

    Raises:
        DecodeError: the source is missing or has no frame that can be decoded, or its pictures cannot be encoded.
    """
    try:
        yield from _redraw(source, path, draw, max_pixels, crf, with_sound=True)
    except av.FFmpegError:
        try:
            yield from _redraw(source, path, draw, max_pixels, crf, with_sound=False)
        except av.FFmpegError as error:  # the sound was not the reason
            raise DecodeError(f"{source}: cannot be written as MP4 ({str(error.strerror).lower()})") from error


def _redraw(
    source: str,
    path: Path,
    draw: Callable[[np.ndarray, float], np.ndarray],
    max_pixels: int,
    crf: int,
    *,
    with_sound: bool,
) -> Iterator[float]:
    with VideoStream(source, max_pixels=max_pixels) as frames, create_file(path) as container:
        rate = frames.fps.limit_denominator(CLOCK.denominator)
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": "veryfast"})
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", CLOCK
        with _Sound(source if with_sound else None, container) as sound:
            for number, (seconds, convert) in enumerate(frames.frames()):
                picture = draw(convert(), seconds)
                if number == 0:
                    stream.height, stream.width = picture.shape[:2]
                    if frames.pixel_aspect != 1:
                        stream.codec_context.sample_aspect_ratio = frames.pixel_aspect
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = round(seconds / CLOCK), CLOCK
                container.mux(stream.encode(frame))
                sound.mux_until(seconds, frames.first_seconds)
                yield min(frames.end / frames.duration, 1.0) if frames.duration else 0.0
            container.mux(stream.encode(None))
            sound.mux_until(float("inf"), frames.first_seconds)


class _Sound:
    """The sound of a file on its way to a container; empty if the file has none, or there is no file."""

    def __init__(self, source: str | None, container: av.container.OutputContainer) -> None:
        self._container = container
        self._source: av.container.InputContainer | None = None
        self._packets: Iterator[av.Packet[av.AudioStream]] = iter(())
        self._waiting: av.Packet[av.AudioStream] | None = None  # the first after a jump of the clock
        self._zero: float | None = None  # of the clock of the last packet
        self._heard = -float("inf")  # seconds of the movie up to which there is sound
        if source is None or not Path(source).is_file():
            return
        self._source = open_file(source)
        stream = self._source.streams.best("audio")
        if not isinstance(stream, av.AudioStream) or stream.codec_context is None:
            return
        self._copies = stream.codec_context.name in COPIED_SOUND
        self._packets = self._source.demux(stream)
        self._longest = longest_step(self._source)
        self._last = float((stream.start_time or 0) * time_base(stream))
        if self._copies:
            self._stream = container.add_stream_from_template(stream)
        else:
            rate = stream.codec_context.sample_rate
            layout = "mono" if stream.codec_context.channels == 1 else "stereo"
            self._stream = container.add_stream("aac", rate=rate if rate in AAC_RATES else 48000, layout=layout)

    def mux_until(self, seconds: float, zero: float) -> None:
        """Pass on the sound up to a time of the video; zero is the source's clock, in seconds, at the first frame.

        Where that clock jumps, pictures and sound reach the jump one after the other; the first to reach it waits.
        """
        done, self._zero = -float("inf"), zero if self._zero is None else self._zero
        while done < seconds:
            try:
                packet, self._waiting = self._waiting or next(self._packets, None), None
                if packet is None:
                    return
                if packet.size:
                    if packet.pts is None or packet.dts is None:
                        continue
                    place = float(packet.dts * packet.time_base)
                    if self._is_ahead(place, seconds, zero):
                        self._waiting = packet
                        return
                    self._last, done = place, place - self._zero
                    if done <= self._heard:  # the sound of the previous clock went on a moment longer
                        continue
                    self._heard = done
                self._pass_on(packet, self._zero)
            except (av.FFmpegError, OSError, IndexError, OverflowError, ValueError):  # damaged from here on
                self._packets = iter(())
                return

    def _is_ahead(self, place: float, seconds: float, zero: float) -> bool:
        """Return whether the clock has jumped for the sound but not yet for the pictures; after both, follow the new one."""
        if -SET_BACK <= place - self._last <= self._longest:
            return False
        assert self._zero is not None
        have_jumped = abs(zero - self._zero) > SET_BACK
        is_pause = place > self._last and abs(place - zero - seconds) <= self._longest  # in the sound only
        self._zero = zero
        return not (have_jumped or is_pause)

    def _pass_on(self, packet: av.Packet[av.AudioStream], zero: float) -> None:
        if self._copies:
            if packet.size:
                assert packet.pts is not None and packet.dts is not None
                shift = round(zero / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = self._stream
                self._container.mux(packet)
            return
        for frame in packet.decode():
            if frame.pts is None or frame.time_base is None:
                continue
            frame.pts -= round(zero / frame.time_base)
            self._container.mux(self._stream.encode(frame))
        if not packet.size:
            self._container.mux(self._stream.encode(None))

    def __enter__(self) -> _Sound:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._source is not None:
            self._source.close()
