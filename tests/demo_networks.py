"""Networks for tests of the demo. Every worker imports this file, so it does without torch."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from videornn.demo.analyst import Network
from videornn.errors import DecodeError, UserError


class Light(Network):
    """No network: the class of a video is where it lies and how large it is, or what a decoder can do to a process."""

    step_seconds = 2.0

    def load(self) -> dict:
        return {"num_classes": 2, "suffixes": [".mp4", ".webm"]}

    def classes(self, video: str) -> dict:
        content = Path(video).read_bytes()
        if content == b"crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if content in (b"hang", b"slow"):
            time.sleep(600 if content == b"hang" else 1)
        if content == b"grows":
            self.kept = b"x" * 10**8
        if content == b"large":
            raise MemoryError
        if content == b"broken":
            raise DecodeError(f"{video}: cannot be decoded (broken)")
        return {"top": [{"class": f"{video} {len(content)}", "score": 1.0}], "seconds": 1.0, "window": 2.0}

    def attention(self, video: str, name: str, class_name: str) -> list[dict[str, str]]:
        raise UserError(f"{video}: no attention")


class Known(Network):
    """A network with a timeline and pictures that are known beforehand."""

    def timeline(self, video: str, part: int) -> dict:
        segments = [("wave", 0.0, 1.5, 0.9), (None, 1.5, 2.5, 0.3), ("<b>bend</b>", 2.5, 4.0, 0.75)][: part + 1]
        keys = ("label", "start", "end", "score")
        found = [dict(zip(keys, segment, strict=True)) for segment in segments]
        return {"segments": found, "until": found[-1]["end"], "complete": part == 2}

    def attention(self, video: str, name: str, class_name: str) -> list[dict[str, str]]:
        import videornn.explain

        videornn.explain.explain = draw
        return super().attention(video, name, class_name)


def draw(trained: object, video: str, out: Path, queries: list, name: str, class_name: str) -> list[Path]:
    """A sheet, a movie and numbers, as explain writes them for a block."""
    import numpy as np
    from PIL import Image

    from videornn.data.video.write import write_movie

    assert class_name, "the answer of the network"
    files = [out / f"video_res3.0{suffix}" for suffix in (".png", ".mp4", ".json")]
    Image.new("RGB", (320, 200), (200, 60, 60)).save(files[0])
    write_movie(files[1], [np.full((32, 32, 3), 25 * i, np.uint8) for i in range(8)], 4)
    files[2].write_text("{}")
    return files
