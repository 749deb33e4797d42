"""What every video back end offers: frames by index, the same frames by time, and PyTorchVideo's get_clip."""

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

Cut = Callable[[Tensor], Tensor]  # what is made of a frame uint8 [H, W, 3], as uint8


class FrameVideo(Video):
    """A video whose frames can be asked for by index: num_frames, fps and frames_at, and PyTorchVideo's get_clip.

    Frames are numbered in the order a viewer sees them. times are the seconds at which they appear, float64 [num_frames],
    counted from the first; fps is their average rate.
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
        """RGB frames uint8 [N, H, W, 3], in the order of indices [N] (repeats allowed); raises as cuts_at does."""
        return self.cuts_at(indices[None], [lambda frame: frame])[0]

    def cuts_at(self, indices: Tensor, cuts: Sequence[Cut]) -> Tensor:
        """What cuts make of RGB frames, each as soon as it is decoded: memory holds one whole frame.

        Args:
            indices: int64 [R, N], repeats allowed; a frame is decoded once, and cut once for each row.
            cuts: R functions, one for each row, of a frame uint8 [H, W, 3]; all they give is of one shape.

        Returns:
            uint8 [R, N, *shape].

        Raises:
            DecodeError: a frame cannot be decoded, or the memory is not enough.
            ValueError: an index is outside the video.
        """
        wanted = indices.numpy()
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.num_frames:
            raise ValueError(f"{self.path}: frames {wanted.min()} to {wanted.max()} of a video of {self.num_frames} frames")
        unique, places = np.unique(wanted, return_inverse=True)
        places = places.reshape(wanted.shape)  # numpy 2.0 gives them flat
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
        """What _decode gives; whatever that raises, and not what is done with a frame meanwhile, is a DecodeError."""
        with errors_of_video(self.path):
            yield from self._decode(indices)

    def on_screen(self, indices: Tensor) -> Tensor:
        """Where the frame rate varies, the frame that is on screen when a video of the constant rate fps shows index.

        The identity for a constant rate, whatever the rounding of its timestamps.

        Args:
            indices: int64, any shape, in [0, num_frames).

        Returns:
            int64 of the same shape, in [0, num_frames).
        """
        middles = (indices.numpy() + 0.5) / float(self.fps)
        return torch.from_numpy(np.searchsorted(self.times, middles, side="right") - 1)

    def get_clip(self, start_sec: float, end_sec: float) -> dict[str, Tensor | None]:
        """All frames that appear in [start_sec, end_sec), as PyTorchVideo gives them: float32 [C, T, H, W] in 0..255."""
        # a millionth of a second: 0.12 as a float and 3 / 25 are the same time
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
        """(place in indices, RGB frame uint8 [H, W, 3]) of sorted, unique, valid indices, in any order, all of one size.

        A frame may change once the next one is asked for.
        """


class Deadline:
    """A moment after which the work on a video is given up.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def check(self, path: str) -> None:
        """Raises DecodeError, naming the video, if the moment has passed."""
        if time.monotonic() > self._end:
            raise DecodeError(f"{path}: took longer than {self._seconds:g} s to decode")
