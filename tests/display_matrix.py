"""Display matrices of MP4 files: how a picture is to be turned, as telephones write it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

Matrix = tuple[int, int, int, int]

# a, b, c, d and what players (and ffmpeg's autorotate) show: a point (x, y) is shown at (a x + c y, b x + d y)
TURNS: dict[Matrix, Callable[[np.ndarray], np.ndarray]] = {
    (1, 0, 0, 1): lambda picture: picture,
    (-1, 0, 0, -1): lambda picture: np.rot90(picture, 2),
    (0, 1, -1, 0): lambda picture: np.rot90(picture, -1),
    (0, -1, 1, 0): lambda picture: np.rot90(picture, 1),
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (0, 1, 1, 0): lambda picture: picture.swapaxes(0, 1),
    (0, -1, -1, 0): lambda picture: np.rot90(picture, 2).swapaxes(0, 1),
}


def set_display_matrix(path: Path, matrix: Matrix) -> Path:
    """Write a turn into the display matrix of an mp4's video track (ISO 14496-12, 8.3.2): a, b, c, d in 16.16."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes of other fields before the matrix
    a, b, c, d = (value << 16 for value in matrix)
    for place, value in ((0, a), (1, b), (3, c), (4, d)):
        data[start + 4 * place : start + 4 * place + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    return path
