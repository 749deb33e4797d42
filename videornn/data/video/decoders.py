"""Read frames: choose the back end that opens a file, and handle its failures.

PyAV is always installed and is the fastest (`scripts/benchmark_data.py`). decord (x86-64 only) and torchcodec (needs
FFmpeg's libraries) can be chosen; a folder of images is a video too.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from videornn.data.annotations.find import fault_of_file
from videornn.data.video.base import Cut, FrameVideo
from videornn.data.video.containers import create_file, local_url, open_file, shown_stream
from videornn.data.video.errors import errors_of_video
from videornn.data.video.frame_folder import FrameFolder
from videornn.data.video.pictures import MAX_FRAME_PIXELS, UPRIGHT, Turn, bound_frames, turn_of
from videornn.data.video.pyav import PyAVVideo
from videornn.errors import DecodeError, Remark, UserError
from videornn.schema import Decoder


class DecordVideo(FrameVideo):
    """A back end on decord 0.6; it uses decord's array type and sets no process-wide bridge.

    Raises:
        DecodeError: decord is not installed, or cannot open the file.
    """

    def __init__(self, path: str) -> None:
        try:
            import decord
        except ImportError as error:
            raise DecodeError(f"{path}: decord is not installed (x86-64 only); use data.decoder=pyav") from error
        self.path = path
        self._errors = (decord.DECORDError, RuntimeError, OSError)
        try:
            self._reader = decord.VideoReader(local_url(path), num_threads=1)
            self.num_frames = len(self._reader)
            if self.num_frames == 0:
                raise DecodeError(f"{path}: has no frame that can be decoded")
            self.fps = Fraction(self._reader.get_avg_fps()).limit_denominator(1001)
            starts = self._reader.get_frame_timestamp(range(self.num_frames))[:, 0]
        except self._errors as error:
            raise DecodeError(f"{path}: decord cannot open it ({_first_line(error)})") from error
        self.times = (starts - starts[0]).astype(np.float64)

    def _decode(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        for place, index in enumerate(indices):
            try:
                frames = self._reader.get_batch([index])
            except self._errors as error:
                raise DecodeError(f"{self.path}: decord cannot decode it ({_first_line(error)})") from error
            # another library in the process may have set decord's bridge to torch
            yield place, (frames.numpy() if isinstance(frames, Tensor) else frames.asnumpy())[0]


class TorchcodecVideo(FrameVideo):
    """A back end on torchcodec, with exact seeking; PyAV tells when frames appear.

    Args:
        turn: rotates a stored picture as it is shown; no flip. torchcodec itself does so only since 0.11.

    Raises:
        DecodeError: torchcodec cannot be loaded, or cannot open the file.
    """

    def __init__(self, path: str, turn: Turn = UPRIGHT) -> None:
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, OSError, RuntimeError) as error:
            raise DecodeError(f"{path}: torchcodec cannot be loaded ({_first_line(error)})") from error
        self.path = path
        try:
            self._reader = VideoDecoder(local_url(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
            self.num_frames = len(self._reader)
            if self.num_frames == 0:
                raise DecodeError(f"{path}: has no frame that can be decoded")
            fps = self._reader.metadata.average_fps or 0.0  # broken files have 0, inf and nan
            self.fps = Fraction(fps).limit_denominator(1001) if 0.01 < fps < 10000 else Fraction(25)
        except (ValueError, IndexError, RuntimeError, OSError) as error:
            raise DecodeError(f"{path}: torchcodec cannot open it ({_first_line(error)})") from error
        self._turn = UPRIGHT if hasattr(self._reader.metadata, "rotation") else turn
        self.times = np.arange(self.num_frames) / float(self.fps)
        with suppress(DecodeError), PyAVVideo(path) as listed:  # torchcodec does not tell when its frames appear
            if listed.num_frames == self.num_frames:
                self.fps, self.times = listed.fps, listed.times

    def _decode(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        for place, index in enumerate(indices):
            try:
                yield place, self._turn.of(self._reader.get_frame_at(index).data.numpy())
            except (ValueError, IndexError, RuntimeError, OSError) as error:
                raise DecodeError(f"{self.path}: torchcodec cannot decode it ({_first_line(error)})") from error


def open_video(
    path: str | Path, decoder: Decoder = "auto", *, timeout: float = 60.0, max_pixels: int = MAX_FRAME_PIXELS
) -> FrameVideo:
    """Open a video file, or a folder of images, with a back end; auto is PyAV.

    Some files go to PyAV in any case: decord misnumbers the frames of AVI with B frames, and neither decord nor torchcodec
    mirrors what is to be shown mirrored.

    Args:
        timeout: seconds that PyAV may take for opening, and for each call of frames_at.
        max_pixels: width x height that a frame may have.

    Raises:
        DecodeError: the file is missing, is no video, or has no frame or too large ones.
    """
    path = os.fspath(path)
    with errors_of_video(path):
        if os.path.isdir(path):
            return FrameFolder(path, max_pixels=max_pixels)
        check_file(path)
        by_pyav = decoder in ("auto", "pyav") or path.lower().endswith(".avi")
        if by_pyav or (turn := _first_turn(path, max_pixels)).flips:
            return PyAVVideo(path, timeout=timeout, max_pixels=max_pixels)
        return DecordVideo(path) if decoder == "decord" else TorchcodecVideo(path, turn)


def _first_turn(path: str, max_pixels: int) -> Turn:
    """Return how the first frame is to be turned; if PyAV cannot read the file, the back end reports what is wrong.

    Raises:
        DecodeError: the frame is too large; the file only names other files, which decord and torchcodec would read.
    """
    try:
        with open_file(path) as container:
            stream = shown_stream(container)
            if stream is None or stream.codec_context is None:
                return UPRIGHT
            bound_frames(path, stream.codec_context, max_pixels)
            return next((turn_of(frame) for frame in container.decode(stream)), UPRIGHT)
    except (av.FFmpegError, OSError, UnicodeError):
        return UPRIGHT


def check_file(path: str) -> None:
    """Raise DecodeError if there is no file, or nothing in it."""
    if fault := fault_of_file(path):
        raise DecodeError(f"{path}: {fault[1]}")


def read_frames(
    path: str | Path,
    choose: Callable[[FrameVideo], Tensor],
    cuts: Sequence[Cut] | None = None,
    *,
    decoder: Decoder = "auto",
    timeout: float = 60.0,
    max_pixels: int = MAX_FRAME_PIXELS,
    on_refusal: Callable[[str], None] = lambda sentence: warnings.warn(Remark(sentence), stacklevel=3),
) -> Tensor:
    """Read frames of a video, uint8 [N, H, W, 3], or cuts of them; if decord or torchcodec fails, PyAV is tried once.

    Nothing replaces PyAV: decord hangs on some broken files, and torchcodec can crash the process.

    Args:
        choose: returns the frames of the opened video to read, int64 [N], or [R, N] for R cuts; for the second back end it
            is called again, as are the cuts.
        cuts: passed to FrameVideo.cuts_at, whose result is then returned.
        on_refusal: called with the reason if the chosen back end does not read a video that PyAV reads.

    Raises:
        DecodeError: the frames cannot be decoded; the message is that of the first back end.
    """

    def read(name: Decoder) -> Tensor:
        with open_video(path, name, timeout=timeout, max_pixels=max_pixels) as video:
            with errors_of_video(video.path):  # the choice, too, depends only on what the file says
                indices = choose(video)
            return video.frames_at(indices) if cuts is None else video.cuts_at(indices, cuts)

    try:
        return read(decoder)
    except DecodeError as error:
        if decoder in ("auto", "pyav") or not os.path.isfile(path):
            raise
        with suppress(DecodeError):
            frames = read("pyav")
            on_refusal(f"PyAV reads what data.decoder={decoder} does not: {error}")
            return frames
        raise


@lru_cache
def why_not(decoder: Decoder) -> str:
    """Return why a back end does not work here, found by decoding a video made on the spot; empty if it works."""
    grey = np.full((48, 64, 3), 128, dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "grey.mp4")
        with create_file(path) as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            for _ in range(3):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey)))
            container.mux(stream.encode(None))
        try:
            with open_video(path, decoder) as video:
                frame = video.frames_at(torch.tensor([1]))
        except DecodeError as error:
            return str(error).removeprefix(f"{path}: ")
    wrong = (frame.float() - 128).abs().max().item()
    return "" if wrong < 8 else f"decodes a grey picture with an error of {wrong:.0f} of 255"


def choose_decoder(decoder: Decoder) -> tuple[Decoder, str]:
    """Return the back end to use, and a sentence that says why.

    Raises:
        UserError: the chosen one does not work here.
    """
    rejected: list[str] = []
    for name in ("pyav", "torchcodec", "decord") if decoder == "auto" else (decoder,):
        reason = why_not(name)
        if not reason:
            why = f"since {'; '.join(rejected)}" if rejected else "the fastest" if decoder == "auto" else "as asked for"
            return name, f"decoder {name}, {why}; it decodes a test video"
        rejected.append(f"{name} does not work ({reason})")
    raise UserError(f"data.decoder={decoder}: {'; '.join(rejected)}; use data.decoder=auto")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
