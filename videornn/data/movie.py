"""Videos written frame by frame, as H.264 in MP4, which every player and browser shows."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from videornn.data.files import replacing


def write_movie(path: Path, frames: Iterable[np.ndarray], fps: Fraction | int, *, crf: int = 19) -> None:
    """Encode pictures uint8 [H, W, 3], all of one even size, at a constant rate; the same pictures give the same bytes.

    The file is whole or not there. One thread encodes.
    """
    options = {"crf": str(crf), "preset": "veryfast", "threads": "1"}
    options["x264-params"] = "cpu-independent=1"  # without it x264 makes other bytes from run to run
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.pix_fmt = "yuv420p"
        for index, picture in enumerate(frames):
            if index == 0:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, 1 / Fraction(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
