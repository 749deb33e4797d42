import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from pytorchvideo.data.encoded_video_pyav import EncodedVideoPyAV

from videornn.data.decoding import open_video
from videornn.errors import DecodeError

FILES = {
    "plain.mp4": {},
    "long_gop.mp4": {"g": "100", "bf": "3"},
    "short_gop.mp4": {"g": "7", "bf": "2"},
    "every_frame_a_key.mp4": {"g": "1"},
    "b_frames.avi": {"bf": "2"},
    "matroska.mkv": {"g": "12"},
}
DECODERS = ["pyav"] + (["decord"] if sys.platform == "linux" else [])


@pytest.fixture(scope="module", params=FILES)
def video_file(request: pytest.FixtureRequest, make_video, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    return make_video(folder / request.param, 60, fps=25, **FILES[request.param])


@pytest.mark.parametrize("decoder", DECODERS)
def test_index_asked_for_is_the_frame_got(video_file: Path, decoder: str, read_frame_numbers) -> None:
    if decoder == "decord":
        pytest.importorskip("decord")
    video = open_video(video_file, decoder)
    assert (video.num_frames, video.fps) == (60, Fraction(25))
    for asked in ([0], [59], [3, 3, 50, 2], list(range(60)), [20, 19, 21]):
        frames = video.frames_at(torch.tensor(asked))
        assert frames.shape == (len(asked), 48, 64, 3) and frames.dtype == torch.uint8
        assert read_frame_numbers(frames) == asked
    video.close()


def test_frames_equal_a_plain_decode_bit_for_bit(video_file: Path) -> None:
    with av.open(str(video_file)) as container:
        plain = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    asked = torch.tensor([5, 17, 18, 44, 59])
    assert torch.equal(open_video(video_file).frames_at(asked), torch.from_numpy(plain)[asked])


def test_get_clip_is_pytorchvideos(make_video, tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4", 50, fps=25)
    with open(path, "rb") as file:
        theirs = EncodedVideoPyAV(file, decode_audio=False).get_clip(0.5, 1.1)["video"]
    ours = open_video(path).get_clip(0.5, 1.1)["video"]
    assert ours.dtype == theirs.dtype == torch.float32
    assert ours.shape[0] == 3 and ours.shape[2:] == theirs.shape[2:]
    # frames 13 .. 27 are shown in [0.5, 1.1); theirs closes the interval at its end
    torch.testing.assert_close(ours, theirs[:, : ours.shape[1]], rtol=0, atol=0)
    assert open_video(path).get_clip(9.0, 10.0)["video"] is None
    assert open_video(path).duration == 2.0


def test_indices_outside_the_video_are_refused(make_video, tmp_path: Path) -> None:
    video = open_video(make_video(tmp_path / "a.mp4", 10))
    for index in (-1, 10):
        with pytest.raises(ValueError, match="a video of 10 frames"):
            video.frames_at(torch.tensor([index]))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("content", [b"", b"this is text\n", bytes(range(256)) * 50])
def test_what_is_no_video_is_named_with_the_reason(tmp_path: Path, content: bytes, decoder: str) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(DecodeError, match=r"bad\.mp4: "):
        open_video(path, decoder)


def test_missing_files_folders_and_cut_files_are_named(make_video, tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match="no such file"):
        open_video(tmp_path / "none.mp4")
    with pytest.raises(DecodeError, match="is a folder"):
        open_video(tmp_path)
    path = make_video(tmp_path / "cut.mkv", 60)
    whole = open_video(path).num_frames
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    cut = open_video(path)
    assert 0 < cut.num_frames < whole


def test_rotation_in_the_metadata_is_applied(shared_data: Path) -> None:
    upright = open_video(shared_data / "clips/odd/video_0.mov").frames_at(torch.tensor([0]))
    assert upright.shape[1:3] == (320, 568)
    for degrees in (90, 270):
        assert open_video(shared_data / f"clips/odd/video_{degrees}.mov").frames_at(torch.tensor([0])).shape[1:3] == (
            568,
            320,
        )
    decord = pytest.importorskip("decord")
    for degrees in (0, 90, 180, 270):
        path = str(shared_data / f"clips/odd/video_{degrees}.mov")
        theirs = torch.from_numpy(decord.VideoReader(path)[0].asnumpy())
        ours = open_video(path).frames_at(torch.tensor([0]))[0]
        # another FFmpeg may differ at edges of colour; a wrong rotation differs everywhere
        assert (ours.float() - theirs.float()).abs().mean() < 1 < (ours.flip(0).float() - theirs.float()).abs().mean()


@pytest.mark.parametrize("folder", ["plain", "odd"])
def test_every_real_clip_has_as_many_frames_as_a_plain_decode(shared_data: Path, folder: str) -> None:
    for path in sorted((shared_data / "clips" / folder).iterdir()):
        with av.open(str(path), metadata_errors="ignore") as container:
            num_frames = sum(1 for _ in container.decode(video=0))
        video = open_video(path)
        assert video.num_frames == num_frames, path.name
        asked = torch.linspace(0, video.num_frames - 1, 5).long()
        assert video.frames_at(asked).shape[0] == 5
        video.close()


def test_no_broken_clip_does_more_than_raise_a_decode_error(shared_data: Path) -> None:
    outcomes = {}
    for path in sorted((shared_data / "clips/broken").iterdir()):
        try:
            video = open_video(path)
            outcomes[path.name] = tuple(video.frames_at(torch.tensor([0, video.num_frames - 1])).shape)
        except DecodeError as error:
            outcomes[path.name] = str(error)
    assert outcomes["one_frame.mp4"] == (2, 256, 340, 3)
    assert "no video stream" in outcomes["audio_only_SOX5yA1l24A.mp4"]
    assert "empty" in outcomes["empty.mp4"]
