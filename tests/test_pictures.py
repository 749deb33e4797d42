"""Pictures of frames: the right way up with every reader."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from display_matrix import TURNS, Matrix, set_display_matrix
from textures import write_textures

from videornn.data.decoding import open_video, why_not
from videornn.data.pictures import turn_of
from videornn.data.stream import VideoStream
from videornn.data.verify import inspect_video

READERS = ["pyav", "decord", "torchcodec", "stream"]


def _first_picture(path: Path, reader: str) -> np.ndarray:
    if reader == "stream":
        with VideoStream(str(path)) as stream:
            return next(stream.frames()).picture().copy()
    if reason := why_not(reader):
        pytest.skip(reason)
    with open_video(path, reader) as video:
        return video.frames_at(torch.tensor([0]))[0].numpy()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("matrix", TURNS)
def test_a_recording_is_shown_turned_and_mirrored_as_its_file_says(tmp_path: Path, reader: str, matrix: Matrix) -> None:
    path = write_textures(tmp_path / "a.mp4", 2, size=(128, 64))  # decord fails where rows are not whole words
    stored = _first_picture(path, reader).astype(float)
    set_display_matrix(path, matrix)
    shown, expected = _first_picture(path, reader), TURNS[matrix](stored)
    assert shown.shape == expected.shape
    # of a file with a turn torchcodec and decord convert colours another way
    assert np.abs(shown - expected).mean() < 1.5
    for other in TURNS.values():
        turned = other(stored)
        if turned.shape == expected.shape and not np.array_equal(turned, expected):
            assert np.abs(shown - turned).mean() > 10
    report = inspect_video(str(path))
    assert (report.height, report.width) == expected.shape[:2]


def test_a_turn_that_is_not_quite_a_right_angle_is_the_nearest(tmp_path: Path) -> None:
    path = write_textures(tmp_path / "a.mp4", 1, size=(64, 48))
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    for place, value in ((0, -1000), (1, 65530), (3, -65530), (4, -1000)):  # 90.9 degrees
        data[start + 4 * place : start + 4 * place + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert turn_of(next(container.decode(video=0))) == (True, True, False)


def test_side_data_that_pyav_cannot_name_leaves_the_rotation() -> None:
    class Frame:
        rotation = -90

        @property
        def side_data(self) -> dict:
            raise ValueError("31 is not a valid Type")

    picture = np.arange(12).reshape(3, 4, 1)
    for rotation, quarters in ((-180, 2), (-90, 3), (0, 0), (90, 1)):
        Frame.rotation = rotation
        assert np.array_equal(turn_of(Frame()).of(picture), np.rot90(picture, quarters))
