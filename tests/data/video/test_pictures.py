"""Pictures of frames: the right way up and in the right colours with every reader and version of PyAV."""

import gc
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter
from display_matrix import TURNS, Matrix, set_display_matrix
from textures import write_textures

from videornn.data.prepare.reencode import Encoding, reencode
from videornn.data.prepare.verify import inspect_video
from videornn.data.video.decoders import TorchcodecVideo, open_video, why_not
from videornn.data.video.pictures import to_picture, turn_of
from videornn.data.video.stream import VideoStream
from videornn.data.video.write import redraw_movie

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


@pytest.mark.parametrize("matrix", [(a, b, c, d) for a, b, c, d in TURNS if a * d > b * c])
@pytest.mark.parametrize("turns", [False, True])
def test_a_torchcodec_that_does_not_turn_its_pictures_has_them_turned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, matrix: Matrix, turns: bool
) -> None:
    path = write_textures(tmp_path / "a.mp4", 2, size=(128, 64))
    stored = _first_picture(path, "pyav")
    set_display_matrix(path, matrix)
    given = torch.from_numpy(TURNS[matrix](stored).copy() if turns else stored)

    class VideoDecoder:  # before and since 0.11
        metadata = SimpleNamespace(average_fps=25.0, **({"rotation": None} if turns else {}))

        def __init__(self, *_: object, **__: object) -> None: ...

        def __len__(self) -> int:
            return 2

        def get_frame_at(self, index: int) -> SimpleNamespace:
            return SimpleNamespace(data=given)

    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", SimpleNamespace(VideoDecoder=VideoDecoder))
    with open_video(path, "torchcodec") as video:
        assert type(video) is TorchcodecVideo
        assert np.array_equal(video.frames_at(torch.tensor([0]))[0], TURNS[matrix](stored))


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, 1)])
@pytest.mark.parametrize("aspect", [Fraction(64, 45), Fraction(1)])
def test_overlays_and_prepared_copies_keep_the_shape_of_pixels(tmp_path: Path, matrix: Matrix, aspect: Fraction) -> None:
    source, turned = tmp_path / "a.mp4", matrix[0] == 0
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 360, 288, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for index in range(2):
            frame = av.VideoFrame.from_ndarray(np.full((288, 360, 3), 90, np.uint8), format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    set_display_matrix(source, matrix)
    for _ in redraw_movie(str(source), tmp_path / "overlay.mp4", lambda picture, _: picture):
        pass
    reencode(str(source), tmp_path / "prepared.mp4", Encoding(short_side=144))
    for name, width in (("overlay.mp4", 360), ("prepared.mp4", 180)):
        with av.open(str(tmp_path / name)) as container:
            stream = container.streams.video[0]
            assert (stream.height if turned else stream.width) == width
            found = stream.sample_aspect_ratio or Fraction(1)
            assert Fraction(found.numerator, found.denominator) == (1 / aspect if turned else aspect)
    # the network sees pixels as they are stored
    assert _first_picture(source, "pyav").shape == ((360, 288, 3) if turned else (288, 360, 3))


def test_a_turn_that_is_not_quite_a_right_angle_is_the_nearest(tmp_path: Path) -> None:
    path = write_textures(tmp_path / "a.mp4", 1, size=(64, 48))
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    for place, value in ((0, -1000), (1, 65530), (3, -65530), (4, -1000)):  # 90.9 degrees
        data[start + 4 * place : start + 4 * place + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert turn_of(next(container.decode(video=0))) == (True, True, False)


def test_a_frame_is_gone_when_nobody_needs_it_any_more(tmp_path: Path) -> None:
    path = set_display_matrix(write_textures(tmp_path / "a.mp4", 3), (-1, 0, 0, 1))
    gc.collect()
    gc.disable()  # which may come minutes later, and frames are large
    try:
        assert _first_picture(path, "pyav").shape == _first_picture(path, "stream").shape == (96, 128, 3)
        assert not [thing for thing in gc.get_objects() if type(thing) is av.VideoFrame]
    finally:
        gc.enable()


def test_side_data_that_pyav_cannot_name_leaves_the_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(frame: object) -> dict:
        raise ValueError("31 is not a valid Type")

    monkeypatch.setattr("videornn.data.video.pictures.SideDataContainer", unknown)
    picture = np.arange(12).reshape(3, 4, 1)
    for rotation, quarters in ((-180, 2), (-90, 3), (0, 0), (90, 1)):
        frame = SimpleNamespace(rotation=rotation)
        assert np.array_equal(turn_of(frame).of(picture), np.rot90(picture, quarters))


MATRICES = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", MATRICES)
def test_colours_follow_the_matrix_and_the_range_that_a_frame_states(matrix: int, full_range: bool) -> None:
    y, u, v = 120, 90, 200
    frame = av.VideoFrame(64, 48, "yuv420p")
    for plane, value in zip(frame.planes, (y, u, v), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    frame.colorspace, frame.color_range = matrix, 2 if full_range else 1
    red, blue = MATRICES[matrix]
    luma = y / 255 if full_range else (y - 16) / 219
    u, v = ((value - 128) / (255 if full_range else 224) for value in (u, v))
    r, b = luma + 2 * (1 - red) * v, luma + 2 * (1 - blue) * u
    g = (luma - red * r - blue * b) / (1 - red - blue)
    expected = np.clip([255 * r, 255 * g, 255 * b], 0, 255)
    shown = to_picture(frame, VideoReformatter())
    assert np.abs(shown - expected).max() <= 2
