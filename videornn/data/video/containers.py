"""Video files and streams as FFmpeg opens them: which of their streams is shown, the same with every version of PyAV."""

from __future__ import annotations

import errno
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
from av.stream import Disposition, Stream

from videornn.errors import DecodeError

# in these a file holds its own frames; FFmpeg takes playlists too, and they name other files, on this machine or elsewhere
FORMATS = (
    "mov,mp4,avi,matroska,webm,mpeg,mpegts,mpegvideo,asf,flv,ogg,mxf,gxf,nut,dv,rm,wtv,nsv,swf,smk,bink,roq,gif,apng,ivf,obu,"
    "av1,h264,hevc,vvc,m4v,h261,h263,vc1,mjpeg,yuv4mpegpipe,jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,tiff_pipe"
)
LOCAL_ONLY = {"protocol_whitelist": "file"}  # for a playlist that is asked for by its URL
ITSELF_ONLY = LOCAL_ONLY | {"format_whitelist": FORMATS}
# some AVI files carry metadata that is not UTF-8: PyAV takes it as it is from version 19 on
LENIENT: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


class Readable(Protocol):
    """A file of Python, as far as FFmpeg needs one."""

    def read(self, size: int, /) -> bytes | None: ...


def open_container(source: str | Readable, **arguments: Any) -> av.container.InputContainer:
    """av.open, whatever the metadata; raises av.FFmpegError, OSError or UnicodeError.

    Options for FFmpeg are to be given as container_options: the others crash PyAV up to 17.0 if a file does not announce its
    streams, as those of MPEG do not.
    """
    return av.open(source, "r", **LENIENT, **arguments)


def open_file(path: str, **options: str) -> av.container.InputContainer:
    """Open a video file of this machine, and never another file that it names.

    Args:
        options: of FFmpeg, for its format.

    Raises:
        DecodeError: it is in none of the formats that hold their own frames.
        av.FFmpegError, OSError or UnicodeError: it cannot be read.
    """
    try:
        return open_container(local_url(path), container_options=ITSELF_ONLY | options)
    except av.FFmpegError as error:
        if error.errno != errno.EINVAL:
            raise
        raise DecodeError(f"{path}: is damaged, or a playlist or another kind of file that is no video in itself") from error


def create_file(path: str | Path, **arguments: Any) -> av.container.OutputContainer:
    """av.open for writing an MP4 file."""
    return av.open(local_url(str(path)), "w", format="mp4", **arguments)


def local_url(path: str) -> str:
    """The name of a file for FFmpeg, which would take what stands before a colon in it for a protocol."""
    return f"file:{path}"


def video_streams(container: av.container.InputContainer) -> list[av.VideoStream]:
    """The video streams in their order; the cover picture of a record is none."""
    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


def shown_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The video stream that players show: the default, else the first; None if there is none."""
    streams = video_streams(container)
    default = (stream for stream in streams if stream.disposition & Disposition.default)
    return next(default, streams[0] if streams else None)


def pixel_aspect(stream: av.VideoStream) -> Fraction:
    """Width / height of a stored pixel, as players show it; 1 where the file does not say."""
    aspect = stream.sample_aspect_ratio
    return Fraction(aspect.numerator, aspect.denominator) if aspect else Fraction(1)


def frame_rate(stream: av.VideoStream) -> Fraction | None:
    """Frames per second that a stream announces, on average or else as FFmpeg guesses; None if that makes no sense.

    PyAV 19 has a type of its own for such numbers, which rounds, and a zero where there was None.
    """
    announced = stream.average_rate or stream.guessed_rate
    rate = Fraction(announced.numerator, announced.denominator) if announced else Fraction(0)
    return rate if 0.01 < rate < 1000 else None


def time_base(stream: Stream) -> Fraction:
    """Seconds from one timestamp to the next; exact."""
    assert stream.time_base is not None  # every stream of a file has one
    return Fraction(stream.time_base.numerator, stream.time_base.denominator)
