"""Folders of images as videos: which images are frames, and what every kind of picture becomes."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from videornn.data.prepare.verify import inspect_video
from videornn.data.video.decoders import open_video
from videornn.data.video.stream import VideoStream
from videornn.errors import DecodeError


def _write(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        Image.new("L", (20, 10), number).save(folder / name)


def test_flow_beside_the_frames_and_what_systems_hide_are_no_frames(tmp_path: Path) -> None:
    """As MMAction2 extracts videos."""
    _write(tmp_path, *(f"{kind}_{number:05}.jpg" for number in (1, 2, 10) for kind in ("img", "flow_x", "flow_y")))
    (tmp_path / "._img_00001.jpg").write_bytes(b"what macOS leaves on other file systems")
    Image.new("L", (90, 80)).save(tmp_path / "cover.jpg")
    Image.new("L", (90, 80)).save(tmp_path / "thumbnail_1.png")
    video = open_video(tmp_path)
    assert video.num_frames == 3 and video.frames_at(torch.arange(3))[:, 5, 5, 0].tolist() == [0, 3, 6]
    with VideoStream(str(tmp_path)) as stream:
        assert [frame.picture()[5, 5, 0] for frame in stream.frames()] == [0, 3, 6]


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "2.png", "10.png"],
        ["0.04.png", "0.08.png", "1.00.png"],  # times
        ["a.png", "b.png", "c.png"],
        ["²1.png", "²2.png", "²10.png"],
        ["cam1_a1.png", "cam1_a2.jpg", "cam2_a1.png"],
        ["flow_x_1.png", "flow_x_2.png", "flow_x_3.png"],  # if that is all there is, it is meant
    ],
)
def test_a_series_of_any_names_is_a_video(tmp_path: Path, names: list[str]) -> None:
    _write(tmp_path, *names)
    assert open_video(tmp_path).frames_at(torch.arange(3))[:, 5, 5, 0].tolist() == [0, 1, 2]


def test_several_series_are_named_rather_than_mixed(tmp_path: Path) -> None:
    _write(tmp_path, "img_1.png", "img_2.png", "mask_1.png", "mask_2.png")
    with pytest.raises(DecodeError, match=r"holds several series of pictures \(img_\* and mask_\*\)"):
        open_video(tmp_path)


def test_verify_looks_at_every_picture_if_asked_to(tmp_path: Path) -> None:
    _write(tmp_path, *(f"img_{number}.png" for number in range(10)))
    (tmp_path / "img_3.png").write_bytes(b"no picture")
    assert inspect_video(str(tmp_path)).status == "ok"
    report = inspect_video(str(tmp_path), full=True)
    assert report.status == "damaged" and "img_3.png" in report.reason and report.num_frames == 10


GREY = np.arange(0, 65536, 331, dtype=np.uint16).reshape(18, 11)


def test_a_pipe_among_the_frames_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader worker would wait for its writer until it is killed for hanging."""
    _write(tmp_path, "1.png", "2.png", "4.png")
    os.mkfifo(tmp_path / "3.png")
    open_picture, opened = Image.open, []

    def open_and_note(file: str) -> Image.Image:
        opened.append(Path(file).name)
        return open_picture(file if opened[-1] != "3.png" else "/dev/null")

    monkeypatch.setattr(Image, "open", open_and_note)
    with pytest.raises(DecodeError, match=r"3\.png: is a device or a pipe"):
        open_video(tmp_path).frames_at(torch.arange(4))
    assert opened == ["1.png", "2.png"]


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("a.png", Image.fromarray(GREY), np.round(GREY / 257)),
        ("a.png", Image.new("1", (8, 6), 1), np.full((6, 8), 255)),
        ("a.png", Image.new("RGB", (8, 6), (9, 80, 200)).quantize(4), np.full((6, 8, 3), (9, 80, 200))),
        ("a.png", Image.new("RGBA", (8, 6), (9, 80, 200, 3)), np.full((6, 8, 3), (9, 80, 200))),
        ("a.png", Image.new("LA", (8, 6), (77, 0)), np.full((6, 8), 77)),
        ("a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), np.full((8, 8, 3), (255, 0, 0))),
    ],
    ids=["16 bit", "1 bit", "palette", "alpha", "grey with alpha", "CMYK"],
)
def test_every_kind_of_picture_is_what_it_shows(tmp_path: Path, name: str, image: Image.Image, expected: np.ndarray) -> None:
    image.save(tmp_path / name)
    shown = open_video(tmp_path).frames_at(torch.tensor([0]))[0].numpy().astype(int)
    expected = expected if expected.ndim == 3 else expected[..., None]
    assert shown.shape == (*expected.shape[:2], 3) and np.abs(shown - expected).max() <= (2 if name == "a.jpg" else 0)


def test_photographs_are_turned_as_their_camera_says(tmp_path: Path) -> None:
    picture = Image.new("RGB", (32, 16), "black")
    picture.paste("white", (0, 0, 16, 16))
    exif = picture.getexif()
    exif[0x0112] = 6  # orientation: turn clockwise
    picture.save(tmp_path / "1.jpg", exif=exif)
    shown = open_video(tmp_path).frames_at(torch.tensor([0]))[0].numpy()
    assert shown.shape == (32, 16, 3) and shown[:12].mean() > 250 and shown[20:].mean() < 5
    picture.save(tmp_path / "1.jpg", exif=b"Exif\0\0no such thing")  # then it is taken as it is
    assert open_video(tmp_path).frames_at(torch.tensor([0])).shape == (1, 16, 32, 3)
