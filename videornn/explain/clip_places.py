"""Map points of a clip to places of a network's feature grid, and back.

A place of a grid is not a tile of the frame: strided layers are padded by half their kernel, so place i of their output lies
on place 2 i of their input, and the first one on the first pixel. Maps drawn as tiles would be off by half a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videornn.errors import UserError


@dataclass(frozen=True)
class Query:
    """A query point: a frame of the clip, and a point in it as shares of height and width in 0..1."""

    frame: int
    y: float
    x: float


@dataclass(frozen=True)
class Places:
    """The places of a grid [t, h, w] in a clip of size (T, H, W).

    frames: centres along time, in frames, float [t]; rows, columns: along height and width, in pixels, float [h] and [w].
    """

    frames: Tensor
    rows: Tensor
    columns: Tensor
    size: tuple[int, int, int]

    @property
    def grid(self) -> tuple[int, int, int]:
        return len(self.frames), len(self.rows), len(self.columns)

    def cell(self, query: Query) -> tuple[int, int, int]:
        """Return the place (t, y, x) that is nearest to a point of the clip."""
        y, x = query.y * self.size[1] - 0.5, query.x * self.size[2] - 0.5
        return self.step(query.frame), _nearest(self.rows, y), _nearest(self.columns, x)

    def step(self, frame: int) -> int:
        """Return the time step that is nearest to a frame."""
        return _nearest(self.frames, frame)

    def frame(self, step: int) -> int:
        """Return the first of the frames that are nearest to a time step."""
        return min(range(self.size[0]), key=lambda frame: (abs(float(self.frames[step]) - frame), frame))

    def query(self, cell: tuple[int, int, int]) -> Query:
        """Return the point of the clip in the middle of a place (t, y, x)."""
        y, x = (float(self.rows[cell[1]]) + 0.5) / self.size[1], (float(self.columns[cell[2]]) + 0.5) / self.size[2]
        return Query(self.frame(cell[0]), min(y, 1 - 1e-6), min(x, 1 - 1e-6))

    def pooled(self, kernel: tuple[int, ...]) -> Places:
        """Return the places of the grid after pooling with this kernel and stride, without padding."""
        axes = (self.frames, self.rows, self.columns)
        frames, rows, columns = (axis.unfold(0, k, k).mean(1) for axis, k in zip(axes, kernel, strict=True))
        return Places(frames, rows, columns, self.size)


def grid_places(size: tuple[int, int, int], grid: tuple[int, ...], *, temporal_pool: bool = False) -> Places:
    """Return the places of a grid that strided layers made of a clip of size (T, H, W).

    temporal_pool: one of them was a max-pool over pairs of frames, which is not padded.
    """
    frames, rows, columns = (_centres(length, count) for length, count in zip(size, grid, strict=True))
    if temporal_pool:
        frames = 2 * _centres(size[0] // 2, grid[0]) + 0.5
    return Places(frames, rows, columns, size)


def parse_query(text: str) -> Query:
    """Parse a query point written as T,Y,X; raises UserError if it is not one."""
    parts = text.split(",")
    try:
        frame, y, x = int(parts[0]), float(parts[1]), float(parts[2])
    except (ValueError, IndexError) as error:
        raise UserError(
            f"--query {text!r} is not T,Y,X: a frame number and two shares of 0..1, such as 4,0.5,0.5"
        ) from error
    if len(parts) != 3 or frame < 0 or not (0 <= y < 1 and 0 <= x < 1):
        raise UserError(f"--query {text!r}: T counts from 0, and Y and X are shares in 0..1 (1 left out)")
    return Query(frame, y, x)


def _centres(length: int, count: int) -> Tensor:
    """Return the places of the output of layers of stride 2, which halve a length and round up."""
    pitch = 1
    while -(-length // pitch) > count:
        pitch *= 2
    return torch.arange(count) * float(pitch)


def _nearest(centres: Tensor, place: float) -> int:
    return int((centres - place).abs().argmin())
