import os
import random
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter
from PIL import Image
from pytorchvideo.data.encoded_video_pyav import EncodedVideoPyAV

from videornn.data.video.containers import open_container
from videornn.data.video.decoders import choose_decoder, open_video, read_frames, why_not
from videornn.data.video.pictures import to_picture
from videornn.errors import DecodeError, UserError

FILES = {
    "plain.mp4": {},
    "long_gop.mp4": {"g": "100", "bf": "3"},
    "short_gop.mp4": {"g": "7", "bf": "2"},
    "every_frame_a_key.mp4": {"g": "1"},
    "b_frames.avi": {"bf": "2"},
    "matroska.mkv": {"g": "12"},
    "open_gop_pyramid.mp4": {"x264-params": "open-gop=1:keyint=9:min-keyint=9:bframes=5:b-pyramid=normal:b-adapt=0"},
    "disposable_b.mp4": {"x264-params": "keyint=64:bframes=7:b-pyramid=none:b-adapt=0:scenecut=0"},
    "intra_refresh.ts": {"x264-params": "intra-refresh=1:keyint=10"},
    "odd_gop.ts": {"g": "13", "bf": "1"},
    "hevc.mp4": {"codec": "libx265", "x265-params": "log-level=none:keyint=11:bframes=4:crf=4"},
    "vp8.webm": {"codec": "libvpx", "g": "10", "crf": "4", "b:v": "4M", "deadline": "realtime"},
    "vp9_hidden_frames.webm": {"codec": "libvpx-vp9", "crf": "4", "b:v": "4M", "lag-in-frames": "16", "auto-alt-ref": "1"},
    "av1.mp4": {"codec": "libsvtav1", "crf": "10", "preset": "12", "g": "20"},
    "mpeg2.mpg": {"codec": "mpeg2video", "g": "12", "bf": "2"},
}
DECODERS = ["pyav", "torchcodec"] + (["decord"] if sys.platform == "linux" else [])
# what torchcodec and decord read too: they refuse the others, or decord gives a neighbour of the frame asked for
EASY = {
    "plain.mp4",
    "long_gop.mp4",
    "short_gop.mp4",
    "every_frame_a_key.mp4",
    "b_frames.avi",
    "matroska.mkv",
    "disposable_b.mp4",
}


@pytest.fixture(scope="module", params=FILES)
def video_file(request: pytest.FixtureRequest, make_video, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    try:
        return make_video(folder / request.param, 60, fps=25, **FILES[request.param])
    except av.FFmpegError as error:
        if request.param != "av1.mp4":
            raise
        pytest.skip(f"this FFmpeg's encoder does not take so small a picture ({error})")


def _skip_without(decoder: str) -> None:
    if decoder != "pyav" and why_not(decoder):
        pytest.skip(why_not(decoder))


@pytest.mark.parametrize("decoder", DECODERS)
def test_index_asked_for_is_the_frame_got(video_file: Path, decoder: str, read_frame_numbers) -> None:
    _skip_without(decoder)
    if decoder != "pyav" and video_file.name not in EASY:
        pytest.skip(f"{decoder} cannot")
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


def test_a_variable_frame_rate_is_read_by_time(make_video, tmp_path: Path, read_frame_numbers) -> None:
    # ten frames a tick apart, then ten that stay for three ticks each: 40 ticks of 1 / 25 s, after a start that is not 0
    times = [*range(5, 15), *range(15, 45, 3)]
    video = open_video(make_video(tmp_path / "varying.mp4", 20, fps=25, times=times))
    assert video.num_frames == 20 and video.times.tolist() == pytest.approx([(time - 5) / 25 for time in times])
    assert float(video.fps) == pytest.approx(19 / (37 / 25))
    shown = video.on_screen(torch.arange(20))
    for index in range(20):  # what a viewer sees in the middle of frame `index` of the constant rate
        tick = (index + 0.5) * 37 / 19
        expected = int(tick) if tick < 10 else 10 + int((tick - 10) // 3)
        assert shown[index] == min(expected, 19), index
    assert read_frame_numbers(video.frames_at(shown)) == shown.tolist()
    assert video.get_clip(0.0, 0.401)["video"].shape[1] == 11  # ticks 0 to 10
    constant = open_video(make_video(tmp_path / "constant.mp4", 20, fps=25))
    assert constant.on_screen(torch.arange(20)).tolist() == list(range(20))


def test_a_video_larger_than_what_is_kept_reads_the_same(
    video_file: Path, monkeypatch: pytest.MonkeyPatch, read_frame_numbers
) -> None:
    monkeypatch.setattr("videornn.data.video.pyav.KEPT_BYTES", 500)
    video = open_video(video_file)
    assert video._kept is None
    for asked in ([3, 17, 44, 59], [0], [58, 59], list(range(60))):
        assert read_frame_numbers(video.frames_at(torch.tensor(asked))) == asked


def test_unwanted_frames_that_none_refers_to_are_not_decoded(make_video, tmp_path: Path) -> None:
    options = {"x264-params": "keyint=64:bframes=7:b-pyramid=none:b-adapt=0:scenecut=0"}
    video = open_video(make_video(tmp_path / "disposable.mp4", 64, **options))
    decoded = []
    frames_of = video._frames_of
    video._frames_of = lambda *arguments: (decoded.append(pair[0]) or pair for pair in frames_of(*arguments))
    video.frames_at(torch.tensor([16, 24, 33]))
    assert len(decoded) == 7  # frames 0, 8, 16, 24, 32, 40 are references, and 33 is asked for


def test_a_folder_of_frames_is_a_video(tmp_path: Path) -> None:
    for number in (1, 2, 10):  # the order of numbers, not of letters
        Image.new("RGB", (20, 10), (number * 20, 0, 0)).save(tmp_path / f"img_{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    video = open_video(tmp_path)
    assert video.num_frames == 3 and video.fps == 30
    frames = video.frames_at(torch.tensor([2, 0, 1]))
    assert frames.shape == (3, 10, 20, 3) and frames[:, 0, 0, 0].tolist() == [200, 20, 40]
    (tmp_path / "img_2.png").write_bytes(b"no picture")
    with pytest.raises(DecodeError, match=r"img_2\.png: cannot be decoded"):
        open_video(tmp_path).frames_at(torch.arange(3))


def test_a_back_end_that_fails_gives_way_once_and_the_first_reason_stays(
    make_video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_frame_numbers
) -> None:
    path = make_video(tmp_path / "good.mp4", 20)

    class Failing:
        def __init__(self, path: str, *_: object) -> None:
            raise DecodeError(f"{path}: torchcodec is out of order")

    monkeypatch.setattr("videornn.data.video.decoders.TorchcodecVideo", Failing)
    frames = read_frames(path, lambda video: torch.tensor([4, 7]), decoder="torchcodec")
    assert read_frame_numbers(frames) == [4, 7]
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(DecodeError, match="torchcodec is out of order"):
        read_frames(tmp_path / "bad.mp4", lambda video: torch.tensor([0]), decoder="torchcodec")


def test_a_decoder_is_chosen_because_it_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_decoder("auto") == ("pyav", "decoder pyav, the fastest; it decodes a test video")
    monkeypatch.setattr("videornn.data.video.decoders.why_not", lambda name: "" if name == "decord" else f"no {name} here")
    name, sentence = choose_decoder("auto")
    assert name == "decord" and "pyav does not work (no pyav here); torchcodec does not work" in sentence
    with pytest.raises(UserError, match=r"data.decoder=torchcodec: .*\(no torchcodec here\); use data.decoder=auto"):
        choose_decoder("torchcodec")


def test_a_video_that_takes_too_long_is_named(make_video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "slow.mp4", 20)
    video = open_video(path, timeout=20)
    clock = time.monotonic
    monkeypatch.setattr("time.monotonic", iter(clock() + 30 * step for step in range(1000)).__next__)
    with pytest.raises(DecodeError, match=r"slow\.mp4: took longer than 20 s"):
        video.frames_at(torch.tensor([19]))


def test_what_is_not_a_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it would wait for ever
    with pytest.raises(DecodeError, match=r"pipe\.mp4: is a device or a pipe, not a video file"):
        open_video(tmp_path / "pipe.mp4")


def _mutate(content: bytes, rng: random.Random) -> bytes:
    """Content with bits flipped, bytes of the header replaced, a piece cut off, zeroed, inserted or repeated."""
    mutated, place = bytearray(content), rng.randrange(len(content))
    kind = rng.choice(["flip", "header", "cut", "zero", "insert", "repeat"])
    if kind == "flip":
        for _ in range(rng.choice([1, 10, 200])):
            mutated[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "header":
        for _ in range(20):
            mutated[rng.randrange(min(len(content), 2000))] = rng.randrange(256)
    elif kind == "cut":
        del mutated[place:]
    elif kind == "zero":
        mutated[place : place + 500] = bytes(len(mutated[place : place + 500]))
    elif kind == "insert":
        mutated[place:place] = rng.randbytes(rng.randrange(1, 200))
    else:
        mutated[place:place] = mutated[place : place + rng.randrange(1, 5000)]
    return bytes(mutated)


def _resident_megabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.parametrize("num_mutations", [250, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_mutated_files_decode_or_are_refused_quickly_and_leave_no_memory_behind(
    make_video, tmp_path: Path, num_mutations: int
) -> None:
    names = ["short_gop.mp4", "b_frames.avi", "matroska.mkv", "odd_gop.ts", "vp8.webm", "hevc.mp4", "mpeg2.mpg"]
    sources = [make_video(tmp_path / name, 30, fps=25, **FILES[name]) for name in names]
    contents = [source.read_bytes() for source in sources]
    rng = random.Random(num_mutations)
    slowest, before, refused = 0.0, 0.0, 0
    for number in range(num_mutations):
        choice = rng.randrange(len(sources))
        path = tmp_path / f"mutated{sources[choice].suffix}"
        path.write_bytes(_mutate(contents[choice], rng))
        start = time.process_time()  # which other processes do not slow down
        try:
            frames = read_frames(path, lambda video: torch.linspace(0, video.num_frames - 1, 4).long(), timeout=20)
            assert frames.shape[0] == 4 and frames.dtype == torch.uint8
        except DecodeError as error:
            assert str(path) in str(error)
            refused += 1
        slowest = max(slowest, time.process_time() - start)
        if number == num_mutations // 5:
            before = _resident_megabytes()
    assert 0 < refused < num_mutations
    assert slowest < 10
    assert _resident_megabytes() - before < 40


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


@pytest.mark.parametrize("folder", [pytest.param("plain", marks=pytest.mark.slow), "odd"])
def test_real_clips_give_the_frames_of_a_plain_decode_bit_for_bit(shared_data: Path, folder: str) -> None:
    rng, converter = random.Random(0), VideoReformatter()
    for path in sorted((shared_data / "clips" / folder).iterdir()):
        with open_container(str(path)) as container:
            # by our converter, for PyAV up to 16 shows BT.709 in the colours of BT.601 unless told
            plain = [to_picture(frame, converter).copy() for frame in container.decode(video=0)]
        with open_video(path) as video:
            assert video.num_frames == len(plain), path.name
            for asked in (rng.sample(range(len(plain)), min(len(plain), 5)), [len(plain) // 2], [len(plain) - 1, 0]):
                frames = video.frames_at(torch.tensor(asked)).numpy()
                assert all(np.array_equal(frame, plain[index]) for frame, index in zip(frames, asked, strict=True)), (
                    path.name
                )


def test_an_edit_list_hides_frames_and_a_start_offset_none(shared_data: Path) -> None:
    assert open_video(shared_data / "clips/odd/discard_first_keyframe.mp4").num_frames == 25  # of 30 in the file
    late = open_video(shared_data / "clips/odd/test_non_zero_start.mp4")
    assert late.num_frames == 12 and late.times[0] == 0 and late.get_clip(0, 0.1)["video"].shape[1] == 3


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
