"""Read a folder of images as a video: find its frames, and convert every kind of picture to the same RGB."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from videornn.data.annotations.find import FRAME_SUFFIXES, fault_of_file, is_hidden
from videornn.data.video.base import FrameVideo
from videornn.data.video.pictures import MAX_FRAME_PIXELS, TooLarge, check_frame_size
from videornn.errors import DecodeError

FOLDER_FPS = Fraction(30)  # a folder of frames does not say how fast they follow each other


class FrameFolder(FrameVideo):
    """A back end on a folder of images, one per frame, in the order of the numbers in their names, at 30 frames per second.

    The names of all frames differ only in numbers. Optical flow (flow*) and a single picture beside them are none.

    Raises:
        DecodeError: the folder cannot be read, has no image, or several series of them.
    """

    def __init__(self, path: str, *, max_pixels: int = MAX_FRAME_PIXELS) -> None:
        self.path = path
        self._max_pixels = max_pixels
        try:
            seen = [name for name in os.listdir(path) if not is_hidden(name)]
        except OSError as error:
            raise DecodeError(f"{path}: cannot be opened ({str(error.strerror).lower()})") from error
        names = [name for name in seen if Path(name).suffix.lower() in FRAME_SUFFIXES]
        if not names:
            raise DecodeError(f"{path}: is a folder without images ({', '.join(sorted(FRAME_SUFFIXES))})")
        self._names = sorted(
            _frames_among(path, names),
            key=lambda name: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)],
        )
        self.num_frames = len(self._names)
        self.fps = FOLDER_FPS
        self.times = np.arange(self.num_frames) / float(FOLDER_FPS)

    def _decode(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        size: tuple[int, int] | None = None
        for place, index in enumerate(indices):
            file = os.path.join(self.path, self._names[index])
            if fault := fault_of_file(file):  # opening a pipe waits for its writer
                raise DecodeError(f"{file}: {fault[1]}")
            try:
                with Image.open(file) as image:
                    width, height = image.size
                    check_frame_size(file, width, height, self._max_pixels)
                    picture = to_rgb(image)
            except TooLarge:
                raise
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise DecodeError(f"{file}: cannot be decoded ({reason.lower()})") from error
            size = size or picture.size
            yield place, np.array(picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any picture to 8-bit RGB, upright by its EXIF orientation; what alpha hides is shown, as in videos."""
    with suppress(SyntaxError, struct.error):  # unreadable EXIF
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # grey of 16 bits, which PIL's own conversion turns white
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((grey * 255 + 32895) >> 16).astype(np.uint8))  # rounded
    return image.convert("RGB")


def _frames_among(path: str, names: list[str]) -> list[str]:
    """Return the names of the one series of pictures that is the video; raises DecodeError if there are several."""
    series: dict[str, list[str]] = {}
    for name in names:
        stem = Path(name).stem
        pattern = re.sub(r"\d+", "*", stem)
        series.setdefault(pattern if pattern != stem else "", []).append(name)
    # each of these is left out if there are others
    series = {pattern: found for pattern, found in series.items() if not pattern.lower().startswith("flow")} or series
    series = {pattern: found for pattern, found in series.items() if pattern} or series  # names without a number
    series = {pattern: found for pattern, found in series.items() if len(found) > 1} or series
    if len(series) > 1:
        found = " and ".join(sorted(series)[:3])
        raise DecodeError(f"{path}: holds several series of pictures ({found}); a video is a folder with one")
    return next(iter(series.values()))
