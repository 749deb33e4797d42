"""The interface of all video back ends: frames by index, the same frames by time, and PyTorchVideo's get_clip."""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import numpy as np
import torch
from pytorchvideo.data.video import Video
from torch import Tensor

from videornn.data.video.errors import errors_of_video, memory_of_video
from videornn.errors import DecodeError

Cut = Callable[[Tensor], Tensor]  # turns a frame uint8 [H, W, 3] into any uint8 tensor


class FrameVideo(Video):
    """A video with frames by index: num_frames, fps and frames_at, and PyTorchVideo's get_clip.

    Frames are numbered in the order in which they are shown. times are the seconds at which they appear, float64
    [num_frames], counted from the first; fps is their average rate.
    """

    path: str
    num_frames: int
    fps: Fraction
    times: np.ndarray

    @property
    def name(self) -> str:
        """Name of the file, which PyTorchVideo gives with its clips."""
        return os.path.basename(self.path)

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return float(self.num_frames / self.fps)

    def frames_at(self, indices: Tensor) -> Tensor:
        """Return RGB frames uint8 [N, H, W, 3] in the order of indices [N] (repeats allowed); raises as cuts_at does."""
        return self.cuts_at(indices[None], [lambda frame: frame])[0]

    def cuts_at(self, indices: Tensor, cuts: Sequence[Cut]) -> Tensor:
        """Apply cuts to RGB frames, to each as soon as it is decoded, so that memory holds one whole frame only.

        Args:
            indices: int64 [R, N], repeats allowed; a frame is decoded once, and cut once for each row.
            cuts: R functions, one for each row, of a frame uint8 [H, W, 3]; all results have one shape.

        Returns:
            uint8 [R, N, *shape].

        Raises:
            DecodeError: a frame cannot be decoded, or there is not enough memory.
            ValueError: an index is outside the video.
        """
        wanted = indices.numpy()
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.num_frames:
            raise ValueError(f"{self.path}: frames {wanted.min()} to {wanted.max()} of a video of {self.num_frames} frames")
        unique, places = np.unique(wanted, return_inverse=True)
        places = places.reshape(wanted.shape)  # numpy 2.0 returns them flat
        pieces: Tensor | None = None
        with memory_of_video(self.path):
            for number, picture in self._pictures(unique.tolist()):
                frame = torch.from_numpy(np.ascontiguousarray(picture))
                for row, cut in enumerate(cuts):
                    same = np.flatnonzero(places[row] == number).tolist()
                    if not same:
                        continue
                    piece = cut(frame)
                    if pieces is None:
                        pieces = torch.empty((*wanted.shape, *piece.shape), dtype=torch.uint8)
                    for place in same:
                        pieces[row, place] = piece
        assert pieces is not None
        return pieces

    def _pictures(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield what _decode does; whatever it raises, but nothing raised by the user of a frame, becomes a DecodeError."""
        with errors_of_video(self.path):
            yield from self._decode(indices)

    def on_screen(self, indices: Tensor) -> Tensor:
        """Return the frames that are on screen when a video of the constant rate fps would show these indices.

        This is the identity for a constant rate, however its timestamps are rounded.

        Args:
            indices: int64, any shape, in [0, num_frames).

        Returns:
            int64 of the same shape, in [0, num_frames).
        """
        middles = (indices.numpy() + 0.5) / float(self.fps)
        return torch.from_numpy(np.searchsorted(self.times, middles, side="right") - 1)

    def get_clip(self, start_sec: float, end_sec: float) -> dict[str, Tensor | None]:
        """Return all frames that appear in [start_sec, end_sec) as PyTorchVideo does: float32 [C, T, H, W] in 0..255."""
        # to a millionth of a second: 0.12 as a float and 3 / 25 are the same time
        first, end = np.searchsorted(self.times, [float(start_sec) - 1e-6, float(end_sec) - 1e-6]).tolist()
        if first >= end:
            return {"video": None, "audio": None}
        return {"video": self.frames_at(torch.arange(first, end)).permute(3, 0, 1, 2).float(), "audio": None}

    def __enter__(self) -> FrameVideo:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""

    @abstractmethod
    def _decode(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (position in indices, RGB frame uint8 [H, W, 3]) of sorted, unique, valid indices in any order, in one size.

        A frame may change once the next one is asked for.
        """


class Deadline:
    """A time after which work on a video is given up.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def check(self, path: str) -> None:
        """Raise DecodeError, naming the video, if the time has passed."""
        if time.monotonic() > self._end:
            raise DecodeError(f"{path}: took longer than {self._seconds:g} s to decode")
