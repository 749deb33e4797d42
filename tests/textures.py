"""A video that is some work to encode."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def write_textures(path: Path, num_frames: int, *, size: tuple[int, int] = (128, 96), **options: str) -> Path:
    """A video of smooth noise that drifts, as much detail as a real one has."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(3, size[1] // 4 + num_frames, size[0] // 4 + num_frames, 3))
    fine = rng.normal(size=(size[1] + num_frames, size[0] + num_frames, 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "23", "g": "250", **options})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index in range(num_frames):
            blobs = np.kron(coarse[0, index // 4 :, index // 4 :][: size[1] // 4, : size[0] // 4], np.ones((4, 4, 1)))
            picture = 128 + 30 * blobs + 8 * fine[index:, index:][: size[1], : size[0]]
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
