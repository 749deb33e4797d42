"""Video back ends behind PyTorchVideo's Video interface: they seek, and convert only the frames asked for.

PyAV is always there; decord (x86-64 wheels only) is the other. Frames are numbered in the order a viewer sees them.
"""

from __future__ import annotations

import bisect
import os
from abc import abstractmethod
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from pytorchvideo.data.video import Video
from torch import Tensor

from videornn.errors import DecodeError

Decoder = Literal["auto", "pyav", "decord"]


class FrameVideo(Video):
    """A video whose frames can be asked for by index: num_frames, fps and frames_at, and PyTorchVideo's get_clip."""

    path: str
    num_frames: int
    fps: Fraction

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return float(self.num_frames / self.fps)

    def frames_at(self, indices: Tensor) -> Tensor:
        """RGB frames uint8 [len(indices), H, W, 3], in the order of indices (repeats allowed).

        Raises:
            DecodeError: a frame cannot be decoded.
            ValueError: an index is outside the video.
        """
        wanted = indices.tolist()
        if wanted and not 0 <= min(wanted) <= max(wanted) < self.num_frames:
            raise ValueError(f"{self.path}: frames {min(wanted)} to {max(wanted)} of a video of {self.num_frames} frames")
        unique = sorted(set(wanted))
        frames = self._decode(unique)
        return torch.from_numpy(frames)[torch.tensor([bisect.bisect_left(unique, index) for index in wanted])]

    def get_clip(self, start_sec: float, end_sec: float) -> dict[str, Tensor | None]:
        """All frames shown in [start_sec, end_sec), as PyTorchVideo gives them: float32 [C, T, H, W] in 0..255."""
        first = max(0, -int(-Fraction(start_sec) * self.fps // 1))
        end = min(self.num_frames, -int(-Fraction(end_sec) * self.fps // 1))
        if first >= end:
            return {"video": None, "audio": None}
        return {"video": self.frames_at(torch.arange(first, end)).permute(3, 0, 1, 2).float(), "audio": None}

    @abstractmethod
    def _decode(self, indices: list[int]) -> np.ndarray:
        """RGB frames uint8 [len(indices), H, W, 3] of sorted, unique, valid indices."""


class PyAVVideo(FrameVideo):
    """Back end on PyAV: packets are listed without decoding; then it seeks to the key frame before each wanted frame.

    AVI stores no timestamps, and those that FFmpeg makes up for B frames are wrong, so frames of an AVI are counted from
    its start instead.

    Raises:
        DecodeError: the file is missing, is no video, or has no frame.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            # some AVI files carry metadata that is not UTF-8
            self._container = av.open(path, metadata_errors="ignore")
        except (av.FFmpegError, OSError, UnicodeError) as error:
            raise DecodeError(f"{path}: {_reason(error)}") from error
        try:
            self._open_stream()
        except BaseException:
            self.close()
            raise

    def _open_stream(self) -> None:
        if not self._container.streams.video:
            raise DecodeError(f"{self.path}: has no video stream")
        self._stream = self._container.streams.video[0]
        self._converter = VideoReformatter()
        self._stream.thread_type = "NONE"  # loaders run one process per core; threads would only compete
        try:
            packets = [packet for packet in self._container.demux(self._stream) if packet.size]
            # an edit list can hide packets that must be decoded all the same: their frames do not count
            shown = [packet.pts for packet in packets if not packet.is_discard]
            self._counted = self._container.format.name == "avi" or None in shown or len(set(shown)) < len(shown)
            if self._counted:
                self._timestamps: list[int] = []
                self.num_frames = sum(1 for _ in self._decode_from_start())
            else:
                self._timestamps = sorted(shown)
                self._keys = sorted(packet.pts for packet in packets if packet.is_keyframe and packet.pts is not None)
                self.num_frames = len(shown)
        except (av.FFmpegError, OSError) as error:
            raise DecodeError(f"{self.path}: {_reason(error)}") from error
        if self.num_frames == 0:
            raise DecodeError(f"{self.path}: has no frame that can be decoded")
        self.fps = self._frames_per_second()

    def _frames_per_second(self) -> Fraction:
        if not self._counted and self.num_frames > 1:
            span = (self._timestamps[-1] - self._timestamps[0]) * self._stream.time_base
            if span > 0:
                # the average over the file, so that variable frame rates keep their true duration
                return ((self.num_frames - 1) / span).limit_denominator(1001)
        return Fraction(self._stream.average_rate or self._stream.guessed_rate or 25)

    def _decode(self, indices: list[int]) -> np.ndarray:
        frames = self._decode_counting(indices) if self._counted else self._decode_seeking(indices)
        try:
            pictures = [self._picture(frame) for frame in frames]
            shapes = {picture.shape for picture in pictures}
            if len(shapes) > 1:  # the size changes in mid-stream: bring all frames to the first one's
                height, width = pictures[0].shape[:2]
                pictures = [
                    av.VideoFrame.from_ndarray(picture).to_ndarray(format="rgb24", width=width, height=height)
                    for picture in pictures
                ]
        except (av.FFmpegError, OSError) as error:
            raise DecodeError(f"{self.path}: {_reason(error)}") from error
        if len(pictures) < len(indices):
            raise DecodeError(f"{self.path}: frame {indices[len(pictures)]} of {self.num_frames} cannot be decoded")
        return np.stack(pictures)

    def _picture(self, frame: av.VideoFrame) -> np.ndarray:
        """RGB uint8 [H, W, 3], turned as the rotation in the file's metadata (counter-clockwise degrees) says."""
        # one converter for all frames: setting one up takes longer than converting a small frame
        rgb = self._converter.reformat(frame, format="rgb24").to_ndarray()
        return np.rot90(rgb, k=frame.rotation // 90 % 4)

    def _decode_counting(self, indices: list[int]) -> Iterator[av.VideoFrame]:
        wanted = set(indices)
        for index, frame in enumerate(self._decode_from_start()):
            if index in wanted:
                yield frame
            if index >= indices[-1]:
                return

    def _decode_from_start(self) -> Iterator[av.VideoFrame]:
        self._container.seek(0, backward=True)
        yield from self._container.decode(self._stream)

    def _decode_seeking(self, indices: list[int]) -> Iterator[av.VideoFrame]:
        """Yield the wanted frames in order; seek whenever a key frame lies between here and the next wanted one."""
        stream_frames: Iterator[av.VideoFrame] = iter(())
        position: int | None = None  # timestamp of the last decoded frame
        for index in indices:
            target = self._timestamps[index]
            key = self._keys[max(bisect.bisect_right(self._keys, target) - 1, 0)] if self._keys else self._timestamps[0]
            if position is None or key > position:
                self._container.seek(key, stream=self._stream, backward=True)
                stream_frames = self._container.decode(self._stream)
            for frame in stream_frames:
                position = frame.pts
                if position is not None and position >= target:
                    break
            else:
                return
            if position != target:
                raise DecodeError(f"{self.path}: frame {index} of {self.num_frames} is damaged")
            yield frame

    def close(self) -> None:
        """Release the file."""
        self._container.close()


class DecordVideo(FrameVideo):
    """Back end on decord 0.6: fast on sound files; its array type is used as it is, no process-wide bridge is set.

    Raises:
        DecodeError: decord is not installed, or cannot open the file.
    """

    def __init__(self, path: str) -> None:
        try:
            import decord
        except ImportError as error:
            raise DecodeError(f"{path}: decord is not installed (x86-64 only); use data.decoder=pyav") from error
        self.path = path
        self._error = decord.DECORDError
        try:
            self._reader = decord.VideoReader(path, num_threads=1)
            self.num_frames = len(self._reader)
            self.fps = Fraction(self._reader.get_avg_fps()).limit_denominator(1001)
        except (self._error, RuntimeError, OSError) as error:
            raise DecodeError(f"{path}: decord cannot open it ({str(error).splitlines()[0]})") from error
        if self.num_frames == 0:
            raise DecodeError(f"{path}: has no frame that can be decoded")

    def _decode(self, indices: list[int]) -> np.ndarray:
        try:
            frames = self._reader.get_batch(indices)
        except (self._error, RuntimeError) as error:
            raise DecodeError(f"{self.path}: decord cannot decode it ({str(error).splitlines()[0]})") from error
        # another library of the process may have set decord's bridge to torch
        return frames.numpy() if isinstance(frames, Tensor) else frames.asnumpy()


def open_video(path: str | Path, decoder: Decoder = "auto") -> FrameVideo:
    """Open a video with a back end; auto is PyAV, which decodes what decord does and more.

    AVI files go to PyAV in any case: decord numbers their frames wrongly when there are B frames.

    Raises:
        DecodeError: the file is missing, is no video, or has no frame.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        raise DecodeError(f"{path}: no such file")
    if os.path.isdir(path):
        raise DecodeError(f"{path}: is a folder, not a video")
    if os.path.getsize(path) == 0:
        raise DecodeError(f"{path}: is empty (0 bytes)")
    use_decord = decoder == "decord" and not path.lower().endswith(".avi")
    return DecordVideo(path) if use_decord else PyAVVideo(path)


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"cannot be decoded ({text.lower()})"
