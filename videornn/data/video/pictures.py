"""Convert decoded frames to RGB pictures, in the right colours and the right way up, with every version of PyAV."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from videornn.errors import DecodeError

MAX_FRAME_PIXELS = 8192 * 4352  # the largest pictures in level 6 of H.264, HEVC and AV1
# PyAV up to 16 takes all YUV for limited BT.601 unless told to change matrix or range
KNOWS_COLOURS = int(av.__version__.split(".")[0]) >= 17
# newer ones start a thread a core for every video, which takes longer than converting all frames of a clip
ONE_THREAD = {"threads": 1}


class TooLarge(DecodeError):
    """Raised if frames have more pixels than may be decoded."""


class Turn(NamedTuple):
    """The turn from a stored to a shown picture: swap rows and columns, then mirror left to right, then top to bottom."""

    swapped: bool = False
    mirrored: bool = False
    upturned: bool = False

    def of(self, picture: np.ndarray) -> np.ndarray:
        """Return a stored picture [H, W, ...] as it is shown; a view."""
        picture = picture.swapaxes(0, 1) if self.swapped else picture
        return picture[:: -1 if self.upturned else 1, :: -1 if self.mirrored else 1]

    def of_pixel(self, aspect: Fraction) -> Fraction:
        """Return width / height of a pixel after the turn."""
        return 1 / aspect if self.swapped else aspect

    @property
    def flips(self) -> bool:
        """Whether this is no rotation: text would be mirrored."""
        return (self.swapped + self.mirrored + self.upturned) % 2 == 1


UPRIGHT = Turn()


def check_frame_size(name: str, width: int, height: int, max_pixels: int) -> None:
    """Raise TooLarge, naming the video, if its frames have more pixels than data.max_frame_pixels allows."""
    if width * height > max_pixels:
        size = f"{width} x {height} pixels"
        raise TooLarge(f"{name}: has frames of {size}, more than data.max_frame_pixels={max_pixels} allows")


def bound_frames(name: str, codec: av.VideoCodecContext, max_pixels: int) -> None:
    """Check the size of frames that a file announces, and have its decoder, not yet open, refuse much larger ones.

    Coded frames are larger than shown ones, by up to a block in width and height.
    """
    check_frame_size(name, codec.width, codec.height, max_pixels)
    codec.options = {**codec.options, "max_pixels": str(2 * max_pixels)}


def to_picture(frame: av.VideoFrame, converter: VideoReformatter) -> np.ndarray:
    """Convert a frame to RGB uint8 [H, W, 3], turned as the file's display matrix says; a view."""
    plane = converter.reformat(frame, format="rgb24", **(ONE_THREAD if KNOWS_COLOURS else _colours(frame))).planes[0]
    shape, strides = (plane.height, plane.width, 3), (plane.line_size, 3, 1)
    return turn_of(frame).of(np.ndarray(shape, np.uint8, buffer=memoryview(plane), strides=strides))


def turn_of(frame: av.VideoFrame) -> Turn:
    """Return how a frame is to be turned: the nearest of the eight turns that keep pixels whole."""
    try:
        # frame.side_data would keep the frame until the next garbage collection, because the two refer to each other
        matrix = SideDataContainer(frame).get("DISPLAYMATRIX")  # type: ignore[call-arg]  # PyAV does not say what it takes
    except ValueError:  # there is other side data that this version of PyAV has no name for: no flip is detected then
        quarters = frame.rotation // 90 % 4  # counter-clockwise
        return (UPRIGHT, Turn(True, False, True), Turn(False, True, True), Turn(True, True, False))[quarters]
    if matrix is None:
        return UPRIGHT
    # a point (x, y) of the stored picture is shown at (a x + c y, b x + d y), with y downwards
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Turn(True, c < 0, b < 0)
    return Turn(False, a < 0, d < 0)


def _colours(frame: av.VideoFrame) -> dict[str, int]:
    """Return the arguments of reformat that state matrix and range of a frame.

    The destination is RGB, whose matrix does not matter; it is only given so as to differ from the source's.
    """
    source = int(frame.colorspace)
    full = int(frame.color_range) == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    return {
        "src_colorspace": source,
        "dst_colorspace": int(Colorspace.FCC if source == Colorspace.ITU601 else Colorspace.ITU601),
        "src_color_range": int(ColorRange.JPEG if full else ColorRange.MPEG),
        "dst_color_range": int(ColorRange.JPEG),
    }
