"""Re-encoded files show the same frames at the same times, and have the pattern of frames they promise."""

from __future__ import annotations

import math
import os
import signal
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.filter import Graph
from display_matrix import TURNS, Matrix, set_display_matrix
from textures import write_textures

import videornn.data.prepare.reencode
from videornn.data.prepare.reencode import Encoding, _graph, measure_quality, output_size, reencode
from videornn.data.prepare.verify import VideoFault
from videornn.data.video.decoders import open_video
from videornn.errors import UserError

I_FRAME, P_FRAME, B_FRAME = 1, 2, 3


def _pictures(path: Path, skip_frame: str = "DEFAULT") -> list[tuple[Fraction, int, bool]]:
    """(time since the first frame, picture type, is a key frame) of what a decoder gives, in the order shown."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.skip_frame = skip_frame
        shown = list(container.decode(stream))
        frames = [(frame.pts * stream.time_base, int(frame.pict_type), frame.key_frame) for frame in shown]
    return [(at - frames[0][0], *rest) for at, *rest in frames]


def _times(path: Path) -> list[Fraction]:
    return [at for at, _, _ in _pictures(path)]


def _write_at(path: Path, ticks: list[int], time_base: Fraction, *, size: tuple[int, int] = (64, 48)) -> Path:
    """A video whose frame i is grey of brightness 16 + 3 i and is shown at ticks[i]."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "4", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = time_base
        for index, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 16 + 3 * index, np.uint8), format="rgb24")
            frame.pts, frame.time_base = tick, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


# The pattern of frames -----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["disposable", "fastdecode"])
@pytest.mark.parametrize("stride", [1, 2, 8])
def test_only_disposable_frames_lie_between_the_strides(tmp_path: Path, variant: str, stride: int) -> None:
    num_frames = 150
    source = write_textures(tmp_path / "in.mp4", num_frames, sc_threshold="40")
    reencode(str(source), tmp_path / "out.mp4", Encoding(temporal_stride=stride, variant=variant))
    pictures = _pictures(tmp_path / "out.mp4")
    gop = 8 * stride
    for index, (_, kind, is_key) in enumerate(pictures):
        assert is_key == (index % gop == 0)
        # a closed group of pictures cannot end in a B frame
        is_last = index % gop == gop - 1 or index == num_frames - 1
        expected = I_FRAME if is_key else P_FRAME if index % stride == 0 or is_last else B_FRAME
        assert kind == expected, index
    kept = [at for at, _, _ in _pictures(tmp_path / "out.mp4", skip_frame="NONREF")]
    assert kept == [at for at, kind, _ in pictures if kind != B_FRAME]


def test_dense_has_a_key_frame_every_32_and_no_b_frames(tmp_path: Path) -> None:
    source = write_textures(tmp_path / "in.mp4", 100)
    reencode(str(source), tmp_path / "out.mp4", Encoding(variant="dense"))
    kinds = [kind for _, kind, _ in _pictures(tmp_path / "out.mp4")]
    assert [index for index, kind in enumerate(kinds) if kind == I_FRAME] == [0, 32, 64, 96]
    assert set(kinds) == {I_FRAME, P_FRAME}


def test_a_cut_in_the_film_does_not_change_the_pattern(make_video, tmp_path: Path) -> None:
    ticks = list(range(70))
    source = tmp_path / "in.mp4"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in ticks:
            rng = np.random.default_rng(index // 20)  # another picture every 20 frames
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (48, 64, 3), np.uint8), format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    reencode(str(source), tmp_path / "out.mp4", Encoding())
    kinds = [kind for _, kind, _ in _pictures(tmp_path / "out.mp4")]
    assert [i for i, kind in enumerate(kinds) if kind != B_FRAME] == [0, 8, 16, 24, 32, 40, 48, 56, 63, 64, 69]


# What is shown -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv"])
@pytest.mark.parametrize("fps", [6, 25])
def test_every_frame_is_there_once_in_order(make_video, read_frame_numbers, tmp_path: Path, name: str, fps: int) -> None:
    source = make_video(tmp_path / name, 75, fps=fps, bf="2")
    encoded = reencode(str(source), tmp_path / "out.mp4", Encoding(crf=10))
    assert (encoded.num_frames, encoded.width, encoded.height) == (75, 64, 48)
    assert encoded.fps == pytest.approx(fps, rel=1e-3)
    video = open_video(tmp_path / "out.mp4")
    assert video.num_frames == 75 and float(video.fps) == pytest.approx(fps, rel=1e-3)
    assert read_frame_numbers(video.frames_at(torch.arange(75))) == list(range(75))
    times = [Fraction(index, fps) for index in range(75)]
    if name.endswith(".mkv"):  # which keeps milliseconds
        times = [Fraction(round(1000 * at), 1000) for at in times]
    assert _times(tmp_path / "out.mp4") == times


@pytest.mark.parametrize("time_base", [Fraction(1, 90000), Fraction(1, 600), Fraction(1001, 30000)])
def test_variable_times_are_kept_and_start_at_zero(read_frame_numbers, tmp_path: Path, time_base: Fraction) -> None:
    gaps = np.random.default_rng(0).integers(1, 40, 60)
    ticks = (500 + np.cumsum(gaps)).tolist()
    source = _write_at(tmp_path / "in.mp4", ticks, time_base)
    reencode(str(source), tmp_path / "out.mp4", Encoding(crf=10))
    assert _times(tmp_path / "out.mp4") == [(tick - ticks[0]) * time_base for tick in ticks]
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert next(container.decode(video=0)).pts == 0
    assert read_frame_numbers(open_video(tmp_path / "out.mp4").frames_at(torch.arange(60))) == list(range(60))


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((340, 256), 256, (340, 256)),
        ((320, 240), 256, (320, 240)),
        ((640, 360), 256, (456, 256)),  # 455.1
        ((360, 640), 256, (256, 456)),
        ((65, 49), 256, (64, 48)),
        ((1921, 1081), 64, (114, 64)),  # 113.7
    ],
)
def test_sizes_are_even_and_never_grow(size: tuple[int, int], short_side: int, expected: tuple[int, int]) -> None:
    assert output_size(*size, short_side) == expected


def test_odd_sides_lose_a_line_and_nothing_is_scaled(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (49, 65, 3), np.uint8)
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 65, 49, "yuv420p"
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
        frame.pts = 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    luma = np.frombuffer(frame.planes[0], np.uint8).reshape(49, -1)[:48, :64]
    reencode(str(tmp_path / "in.mkv"), tmp_path / "out.mp4", Encoding(crf=1))
    with av.open(str(tmp_path / "out.mp4")) as container:
        shown = next(container.decode(video=0)).to_ndarray()[:48]
    assert shown.shape == luma.shape and np.abs(shown.astype(int) - luma).max() <= 2


def test_scaling_is_near_an_antialiased_one(tmp_path: Path) -> None:
    source = write_textures(tmp_path / "in.mp4", 4, size=(256, 192), crf="5")
    reencode(str(source), tmp_path / "out.mp4", Encoding(short_side=96, crf=1))
    wanted = open_video(source).frames_at(torch.tensor([2])).permute(0, 3, 1, 2).float()
    wanted = torch.nn.functional.interpolate(wanted, size=(96, 128), mode="bicubic", antialias=True)
    shown = open_video(tmp_path / "out.mp4").frames_at(torch.tensor([2])).permute(0, 3, 1, 2).float()
    assert shown.shape == wanted.shape
    shown, wanted = shown.mean(dim=1), wanted.mean(dim=1)  # grey: colours have half the lines and columns
    assert (shown - wanted).abs().mean() < 2.5  # of 255
    assert (shown[..., 1:] - wanted[..., :-1]).abs().mean() > 6  # what a shift by one pixel gives


@pytest.mark.parametrize("matrix", TURNS)
def test_a_turn_is_in_the_pixels(tmp_path: Path, matrix: Matrix) -> None:
    source = set_display_matrix(write_textures(tmp_path / "in.mp4", 5, crf="5"), matrix)
    reencode(str(source), tmp_path / "out.mp4", Encoding(crf=1))
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert "DISPLAYMATRIX" not in next(container.decode(video=0)).side_data
    with av.open(str(source)) as container:
        upright = TURNS[matrix](next(container.decode(video=0)).to_ndarray(format="rgb24")).astype(float)
    shown = open_video(tmp_path / "out.mp4").frames_at(torch.tensor([0]))[0].numpy()
    assert shown.shape == upright.shape
    assert np.abs(shown - upright).mean() < 3 < np.abs(shown[::-1] - upright).mean()


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuvj420p", "yuv444p", "rgb24"])
def test_other_pixel_formats_become_yuv420p_of_the_same_colours(tmp_path: Path, pix_fmt: str) -> None:
    ramp = np.linspace(20, 235, 64 * 48).reshape(48, 64).astype(np.uint8)
    picture = np.stack([ramp, ramp[::-1], np.full_like(ramp, 90)], axis=-1)
    source = tmp_path / ("in.mov" if pix_fmt == "rgb24" else "in.mkv")
    with av.open(str(source), "w") as container:
        stream = container.add_stream({"yuvj420p": "mjpeg", "rgb24": "png"}.get(pix_fmt, "ffv1"), rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        for index in range(3):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    reencode(str(source), tmp_path / "out.mp4", Encoding(crf=1))
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
        assert not container.streams.audio
    shown = open_video(tmp_path / "out.mp4").frames_at(torch.tensor([1]))[0]
    error = (shown.float() - torch.from_numpy(picture).float()).abs()
    assert error.mean() < 4, error.mean()  # the wrong range or matrix is off by 10 and more


def test_sound_is_dropped(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "in.mp4"), "w") as container:
        video, sound = container.add_stream("libx264", rate=25), container.add_stream("aac", rate=8000)
        video.width, video.height, video.pix_fmt, sound.layout = 64, 48, "yuv420p", "mono"
        for index in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), index, np.uint8), format="rgb24")
            frame.pts = index
            container.mux(video.encode(frame))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 8000, 0
        container.mux([*video.encode(None), *sound.encode(frame), *sound.encode(None)])
    assert reencode(str(tmp_path / "in.mp4"), tmp_path / "out.mp4", Encoding()).num_frames == 10
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]


@pytest.mark.skipif(not hasattr(Graph, "threads"), reason="PyAV before 17 frees filters at once")
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="only Linux lists threads there")
def test_filters_that_are_not_freed_yet_keep_no_threads(make_video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, graph_of = [], _graph
    monkeypatch.setattr("videornn.data.prepare.reencode._graph", lambda *form: kept.append(graph_of(*form)) or kept[-1])
    source = make_video(tmp_path / "a.mp4", 20)
    threads = set(os.listdir("/proc/self/task"))
    for number in range(3):
        reencode(source, tmp_path / f"{number}.mp4", Encoding(short_side=32))
    assert len(kept) == 3 and set(os.listdir("/proc/self/task")) <= threads


def test_the_index_comes_first_and_the_bytes_are_always_the_same(tmp_path: Path) -> None:
    source = write_textures(tmp_path / "in.mp4", 20)
    contents = set()
    for _ in range(2):
        reencode(str(source), tmp_path / "out.mp4", Encoding())
        contents.add((tmp_path / "out.mp4").read_bytes())
    assert len(contents) == 1
    data = contents.pop()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.slow
def test_real_odd_clips_keep_frames_and_times(shared_data: Path, tmp_path: Path) -> None:
    for source in sorted((shared_data / "clips/odd").iterdir()):
        encoded = reencode(str(source), tmp_path / "out.mp4", Encoding())
        video = open_video(source)
        assert encoded.num_frames == video.num_frames == len(_times(source)), source.name
        assert _times(tmp_path / "out.mp4") == _times(source), source.name
        landscape = video.frames_at(torch.tensor([0])).shape[2] >= video.frames_at(torch.tensor([0])).shape[1]
        assert (encoded.width >= encoded.height) == landscape, source.name


# Quality -------------------------------------------------------------------------------------------------


def test_quality_is_what_the_formulas_say(tmp_path: Path) -> None:
    source = write_textures(tmp_path / "in.mp4", 9)
    encoding = Encoding(crf=30)
    reencode(str(source), tmp_path / "out.mp4", encoding)

    def luma(path: Path) -> np.ndarray:
        with av.open(str(path)) as container:
            return np.stack([frame.to_ndarray()[:96].astype(float) for frame in container.decode(video=0)])

    psnr = [10 * math.log10(255**2 / error) for error in ((luma(source) - luma(tmp_path / "out.mp4")) ** 2).mean((1, 2))]
    quality = measure_quality(str(source), tmp_path / "out.mp4", encoding)
    assert quality.mean_psnr == pytest.approx(np.mean(psnr), abs=1e-3)
    assert quality.worst_psnr == pytest.approx(min(psnr), abs=1e-3)
    assert 0.5 < quality.worst_ssim <= quality.mean_ssim < 0.999
    same = measure_quality(str(source), source, encoding)
    assert same.worst_psnr == 100 and same.worst_ssim == pytest.approx(1, abs=2e-3)
    reencode(str(source), tmp_path / "out.mp4", Encoding(crf=15))
    better = measure_quality(str(source), tmp_path / "out.mp4", encoding)
    assert better.mean_psnr > quality.mean_psnr + 5 and better.mean_ssim > quality.mean_ssim


# Faults --------------------------------------------------------------------------------------------------


def test_what_does_not_decode_as_a_whole_leaves_no_file(make_video, tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.avi", 60)
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    with pytest.raises(VideoFault, match="of the 60 frames"):
        reencode(str(source), tmp_path / "out.mp4", Encoding())
    assert [path.name for path in tmp_path.iterdir()] == ["in.avi"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_a_full_disk_is_not_taken_for_a_bad_video(tmp_path: Path) -> None:
    import resource

    source = write_textures(tmp_path / "in.mp4", 30)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match=r"out\.mp4 cannot be written"):
            reencode(str(source), tmp_path / "out.mp4", Encoding())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


# Lists ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["_encode", "_check", "read_encoded"])
def test_a_file_that_another_process_takes_away_is_no_fault_of_the_video(
    make_video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Two prepares of one list: each removes what it takes for left by a killed one; the video was reported as missing."""
    source, out = make_video(tmp_path / "a.mp4", 5), tmp_path / "out.mp4"
    original = getattr(videornn.data.prepare.reencode, step)

    def begin_meanwhile(*arguments: object) -> object:
        for temporary in tmp_path.glob(".out.mp4.*.tmp"):
            temporary.unlink()
        if step == "_encode":  # as moving the index to the front of a file that is gone
            raise FileNotFoundError(2, "No such file or directory")
        return original(*arguments)

    monkeypatch.setattr(videornn.data.prepare.reencode, step, begin_meanwhile)
    with pytest.raises(UserError, match=r"out\.mp4 was taken away .* another prepare is at work on the same videos"):
        reencode(str(source), out, Encoding())
