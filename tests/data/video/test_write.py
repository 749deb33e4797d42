"""Videos redrawn frame by frame: times, sound and their sync stay, compared packet by packet with the source."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from videornn.data.prepare.reencode import Encoding, output_size, reencode
from videornn.data.video.write import redraw_movie
from videornn.errors import DecodeError
from videornn.explain.job import load_clip
from videornn.inference.overlay import Overlay, redraw_whole, shown_size
from videornn.inference.predictor import load_predictor
from videornn.inference.timeline import Window, find_segments
from videornn.report.examples import _read_evenly

RATE = 44100


def write_clapper(path: Path, *, video_times: list[float], starts: float, audio_codec: str, seconds: float = 2.0) -> Path:
    """A video that turns bright, and a tone that sets in, both one second after the first frame, at `starts`."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream(audio_codec, rate=RATE, layout="mono")
        for time in video_times:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 235 if time >= 1 else 20, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(1000 * (starts + time)), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        samples = np.sin(np.arange(round(seconds * RATE)) * 0.1).astype(np.float32)
        samples[: round(1.0 * RATE)] = 0
        resampler = av.AudioResampler(format=audio.codec_context.format or "fltp", layout="mono", rate=RATE)
        for first in range(0, len(samples), 1024):
            frame = av.AudioFrame.from_ndarray(samples[None, first : first + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, round(starts * RATE) + first, Fraction(1, RATE)
            for part in resampler.resample(frame):
                container.mux(audio.encode(part))
        container.mux(audio.encode(None))
    return path


def onsets(path: Path) -> tuple[float, float, float, float]:
    """When it turns bright and when it gets loud, in seconds from the first frame, and how long video and audio last."""
    with av.open(str(path)) as container:
        frames = [(float(f.pts * f.time_base), f.to_ndarray(format="gray").mean()) for f in container.decode(video=0)]
    zero = frames[0][0]
    bright = next(time for time, grey in frames if grey > 128) - zero
    loud, last = None, 0.0
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            samples, start = frame.to_ndarray().reshape(-1).astype(float), float(frame.pts * frame.time_base) - zero
            scale = 32768 if np.abs(samples).max() > 2 else 1
            above = np.flatnonzero(np.abs(samples) > 0.2 * scale)
            if loud is None and len(above):
                loud = start + above[0] / RATE
            last = start + frame.samples / RATE
    return bright, loud, frames[-1][0] - zero, last


def redraw(source: Path, path: Path, draw: Callable[[np.ndarray, float], np.ndarray]) -> None:
    for _ in redraw_movie(str(source), path, draw):
        pass


STEADY = [k / 25 for k in range(50)]
VARIABLE = [0.0, 0.04, 0.4, 0.44, 0.98, 1.0, 1.5, 1.51, 1.96]


@pytest.mark.parametrize(
    ("name", "codec", "times", "starts"),
    [
        ("aac.mp4", "aac", STEADY, 0.0),
        ("late.mkv", "aac", VARIABLE, 5.0),
        ("mp3.mkv", "libmp3lame", VARIABLE, 0.0),
        ("pcm.mkv", "pcm_s16le", STEADY, 3.0),
        ("flac.mkv", "flac", VARIABLE, 0.0),
    ],
)
def test_sound_stays_in_sync_with_the_pictures(
    tmp_path: Path, name: str, codec: str, times: list[float], starts: float
) -> None:
    source = write_clapper(tmp_path / name, video_times=times, starts=starts, audio_codec=codec)
    seen = []
    redraw(source, tmp_path / "out.mp4", lambda picture, time: seen.append(time) or picture)
    bright, loud, end, sound_end = onsets(tmp_path / "out.mp4")
    was_bright, was_loud, was_end, was_sound_end = onsets(source)
    assert was_bright == pytest.approx(1.0, abs=0.002) and was_loud == pytest.approx(1.0, abs=0.03)
    assert bright == pytest.approx(was_bright, abs=0.001) and end == pytest.approx(was_end, abs=0.001)
    assert loud == pytest.approx(was_loud, abs=0.002)
    assert sound_end == pytest.approx(was_sound_end, abs=0.03)  # an AAC packet is 0.023 s
    np.testing.assert_allclose(seen, times, atol=0.0011)


def rises(levels: list[tuple[float, float]], threshold: float) -> list[float]:
    """When the level of (time, level) passes a threshold from below."""
    return [at for (at, level), (_, before) in zip(levels[1:], levels, strict=False) if level > threshold >= before]


@pytest.mark.parametrize("second", [0.0, 5000.0])
@pytest.mark.parametrize("codec", ["aac", "mp2"])
def test_sound_stays_in_sync_where_the_clock_of_the_source_jumps(tmp_path: Path, codec: str, second: float) -> None:
    parts = [
        write_clapper(tmp_path / f"{number}.ts", video_times=STEADY, starts=starts, audio_codec=codec, seconds=seconds)
        for number, (starts, seconds) in enumerate([(0.0, 2.1), (second, 2.0)])  # the sound of the first is the longer
    ]
    source = tmp_path / "joined.ts"
    source.write_bytes(b"".join(part.read_bytes() for part in parts))
    redraw(source, tmp_path / "out.mp4", lambda picture, _: picture)
    with av.open(str(tmp_path / "out.mp4")) as container:
        pictures = [(float(f.pts * f.time_base), f.to_ndarray(format="gray").mean()) for f in container.decode(video=0)]
    with av.open(str(tmp_path / "out.mp4")) as container:
        sounds = [(float(f.pts * f.time_base), float(np.abs(f.to_ndarray()).max())) for f in container.decode(audio=0)]
    np.testing.assert_allclose(rises(pictures, 128), [1.0, 3.0], atol=0.001)
    np.testing.assert_allclose(rises(sounds, 0.2), [1.0, 3.0], atol=0.05)  # a packet is 0.023 s
    assert sounds[-1][0] == pytest.approx(4.0, abs=0.15)


def test_a_frame_that_is_held_for_a_minute_is_held_and_the_sound_goes_on(tmp_path: Path) -> None:
    times = [*STEADY, *(62 + time for time in STEADY)]
    source = write_clapper(tmp_path / "held.mp4", video_times=times, starts=0.0, audio_codec="aac", seconds=64.0)
    redraw(source, tmp_path / "out.mp4", lambda picture, _: picture)
    bright, loud, end, sound_end = onsets(tmp_path / "out.mp4")
    assert (bright, end) == (pytest.approx(1.0, abs=0.002), pytest.approx(63.96, abs=0.002))
    assert (loud, sound_end) == (pytest.approx(1.0, abs=0.03), pytest.approx(64.0, abs=0.05))


def test_sound_that_mp4_takes_is_copied_packet_by_packet(tmp_path: Path) -> None:
    source = write_clapper(tmp_path / "a.mp4", video_times=STEADY, starts=0.0, audio_codec="aac")
    redraw(source, tmp_path / "out.mp4", lambda picture, _: picture)
    packets = []
    for path in (source, tmp_path / "out.mp4"):
        with av.open(str(path)) as container:
            packets.append([(packet.pts, bytes(packet)) for packet in container.demux(audio=0) if packet.size])
    assert packets[0] == packets[1] and len(packets[0]) > 80


def test_the_share_that_is_done_grows_to_all_of_it(make_video, tmp_path: Path) -> None:
    shares = list(redraw_movie(str(make_video(tmp_path / "a.mp4", 20)), tmp_path / "out.mp4", lambda picture, _: picture))
    np.testing.assert_allclose(shares, np.arange(1, 21) / 20, atol=1e-6)


def test_an_overlay_shows_the_label_of_the_moment_and_leaves_the_rest_of_the_picture(make_video, tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mp4", 50, size=(480, 320))
    windows = [Window(0, 1, torch.tensor([0.9, 0.1])), Window(1, 2, torch.tensor([0.2, 0.8]))]
    segments = find_segments(windows, ("run", "walk"))
    scores = torch.stack([window.scores for window in windows])
    overlay = Overlay(windows, segments, ("run", "walk"), scores=scores.numpy())
    redraw(source, tmp_path / "out.mp4", overlay)
    pictures = []
    for path in (source, tmp_path / "out.mp4"):
        with av.open(str(path)) as container:
            pictures.append([f.to_ndarray(format="rgb24").astype(int) for f in container.decode(video=0)])
    before, after = pictures
    assert len(before) == len(after) == 50 and after[0].shape == before[0].shape
    for k in (0, 24, 26, 49):
        assert np.abs(before[k] - after[k])[160:280, 300:].mean() < 3  # away from the panel
        assert np.abs(before[k] - after[k])[:60, :200].mean() > 8  # the panel
    # the panel changes with the segment and not within it
    labels = [picture[:60, 10:200] for picture in after]
    assert np.abs(labels[26] - labels[24]).mean() > 3 * np.abs(labels[20] - labels[22]).mean()


def test_of_sound_that_mp4_cannot_take_for_its_damage_there_is_none_and_all_pictures_are_there(tmp_path: Path) -> None:
    source = write_clapper(tmp_path / "a.mp4", video_times=STEADY, starts=0.0, audio_codec="ac3")
    data = bytearray(source.read_bytes())
    data[data.index(b"\x0b\x77") + 5] = 13 << 3  # the first frame of sound says that it is E-AC-3, which it is not
    source.write_bytes(data)
    with av.open(str(source)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
    redraw(source, tmp_path / "out.mp4", lambda picture, _: picture)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        assert sum(1 for _ in container.decode(video=0)) == 50


def test_what_cannot_be_encoded_is_a_sentence(make_video, tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mp4", 2)
    with pytest.raises(DecodeError, match=r"a\.mp4: cannot be written as MP4 \("):
        redraw(source, tmp_path / "out.mp4", lambda *_: np.zeros((48, 20000, 3), np.uint8))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 64), (320, 320)),
        ((1920, 1080),) * 2,
        ((321, 401), (322, 402)),
        ((1000, 2), (4000, 8)),
        ((1, 4097), (2, 4098)),
        ((32768, 1000), (16384, 500)),
    ],
)
def test_tiny_videos_are_scaled_up_and_all_sides_are_even(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert shown_size(*size) == expected


@pytest.mark.parametrize("size", [(1, 1), (1000, 2), (2, 1000), (17, 33)])
@pytest.mark.parametrize("num_frames", [1, 3])
def test_a_video_of_any_shape_has_an_overlay_maps_and_a_prepared_copy(
    tiny_run: Path, tmp_path: Path, size: tuple[int, int], num_frames: int
) -> None:
    width, height = size
    source = tmp_path / "a.mov"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "rgb24"
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 100, np.uint8), format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    names = ("run", "a name of a class that is much longer than the picture is wide")
    for _ in redraw_whole(str(source), tmp_path / "out.mp4", names, np.array([0.3, 0.7], np.float32)):
        pass
    with av.open(str(tmp_path / "out.mp4")) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == num_frames and pictures[0].shape == (*shown_size(*size)[::-1], 3)
    encoded = reencode(str(source), tmp_path / "prepared.mp4", Encoding())
    assert encoded.num_frames == num_frames and (encoded.width, encoded.height) == output_size(*size, 256)
    predictor = load_predictor(tiny_run / "checkpoints/last.pt", overrides=["data.num_workers=0"])
    assert len(predictor(source)) == 5 and len(list(predictor.windows(source, window=0.6))) == 1
    assert load_clip(predictor.trained, str(source)).frames.shape[1:] == (32, 32, 3)
    assert _read_evenly(str(source), predictor.trained.config.data)[0].shape[0] == 12
