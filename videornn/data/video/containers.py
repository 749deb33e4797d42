"""Open video files and streams with FFmpeg and pick the shown stream, in the same way with every version of PyAV."""

from __future__ import annotations

import errno
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
from av.stream import Disposition, Stream

from videornn.errors import DecodeError

# formats whose files hold their own frames; FFmpeg also takes playlists, which name other files, here or elsewhere
FORMATS = (
    "mov,mp4,avi,matroska,webm,mpeg,mpegts,mpegvideo,asf,flv,ogg,mxf,gxf,nut,dv,rm,wtv,nsv,swf,smk,bink,roq,gif,apng,ivf,obu,"
    "av1,h264,hevc,vvc,m4v,h261,h263,vc1,mjpeg,yuv4mpegpipe,jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,tiff_pipe"
)
LOCAL_ONLY = {"protocol_whitelist": "file"}  # for a playlist that is given by its URL
ITSELF_ONLY = LOCAL_ONLY | {"format_whitelist": FORMATS}
# some AVI files carry metadata that is not UTF-8; PyAV accepts it from version 19 on
LENIENT: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


class Readable(Protocol):
    """A file of Python, as far as FFmpeg needs one."""

    def read(self, size: int, /) -> bytes | None: ...


def open_container(source: str | Readable, **arguments: Any) -> av.container.InputContainer:
    """Open a source with av.open, whatever its metadata; raises av.FFmpegError, OSError or UnicodeError.

    Give options for FFmpeg as container_options: any others crash PyAV up to 17.0 on files that do not announce their
    streams, such as MPEG.
    """
    return av.open(source, "r", **LENIENT, **arguments)


def open_file(path: str, **options: str) -> av.container.InputContainer:
    """Open a video file of this machine, but never another file that it names.

    Args:
        options: of FFmpeg, for its format.

    Raises:
        DecodeError: its format is none of those that hold their own frames.
        av.FFmpegError, OSError or UnicodeError: it cannot be read.
    """
    try:
        return open_container(local_url(path), container_options=ITSELF_ONLY | options)
    except av.FFmpegError as error:
        if error.errno != errno.EINVAL:
            raise
        raise DecodeError(f"{path}: is damaged, or a playlist or another kind of file that is no video in itself") from error


def create_file(path: str | Path, **arguments: Any) -> av.container.OutputContainer:
    """Open an MP4 file for writing with av.open."""
    return av.open(local_url(str(path)), "w", format="mp4", **arguments)


def local_url(path: str) -> str:
    """Return the name of a file for FFmpeg, which would take the part before a colon in it for a protocol."""
    return f"file:{path}"


def video_streams(container: av.container.InputContainer) -> list[av.VideoStream]:
    """Return the video streams in their order, without the cover pictures of records."""
    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


def shown_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """Return the video stream that players show: the default, else the first; None if there is none."""
    streams = video_streams(container)
    default = (stream for stream in streams if stream.disposition & Disposition.default)
    return next(default, streams[0] if streams else None)


def pixel_aspect(stream: av.VideoStream) -> Fraction:
    """Return width / height of a stored pixel, as players show it; 1 if the file does not say."""
    aspect = stream.sample_aspect_ratio
    return Fraction(aspect.numerator, aspect.denominator) if aspect else Fraction(1)


def frame_rate(stream: av.VideoStream) -> Fraction | None:
    """Return the frames per second that a stream announces, on average or as FFmpeg guesses; None if they make no sense.

    PyAV 19 has its own type for such numbers, which rounds, and a zero where there was None.
    """
    announced = stream.average_rate or stream.guessed_rate
    rate = Fraction(announced.numerator, announced.denominator) if announced else Fraction(0)
    return rate if 0.01 < rate < 1000 else None


def time_base(stream: Stream) -> Fraction:
    """Return the seconds from one timestamp to the next; exact."""
    assert stream.time_base is not None  # every stream of a file has one
    return Fraction(stream.time_base.numerator, stream.time_base.denominator)
