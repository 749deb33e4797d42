"""Video files and streams as FFmpeg opens them: which of their streams is shown, the same with every version of PyAV."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import av
from av.stream import Disposition

LOCAL_ONLY = {"protocol_whitelist": "file"}  # a playlist can name files on the network; nobody asked for those
# some AVI files carry metadata that is not UTF-8: PyAV takes it as it is from version 19 on
LENIENT = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


def open_container(source: str | io.RawIOBase, **arguments: Any) -> av.container.InputContainer:
    """av.open, whatever the metadata; raises av.FFmpegError, OSError or UnicodeError.

    Options for FFmpeg are to be given as container_options: the others crash PyAV up to 17.0 if a file does not announce its
    streams, as those of MPEG do not.
    """
    return av.open(source, **LENIENT, **arguments)


def shown_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The video stream that players show, or None; the cover picture of a record is none."""
    stream = container.streams.best("video")
    return None if stream is None or stream.disposition & Disposition.attached_pic else stream


def frame_rate(stream: av.VideoStream) -> Fraction | None:
    """Frames per second that a stream announces, on average or else as FFmpeg guesses; None if that makes no sense.

    PyAV 19 has a type of its own for such numbers, which rounds, and a zero where there was None.
    """
    announced = stream.average_rate or stream.guessed_rate
    rate = Fraction(announced.numerator, announced.denominator) if announced else Fraction(0)
    return rate if 0.01 < rate < 1000 else None


def time_base(stream: av.VideoStream) -> Fraction:
    """Seconds from one timestamp to the next; exact."""
    return Fraction(stream.time_base.numerator, stream.time_base.denominator)
