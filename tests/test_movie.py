"""Videos redrawn frame by frame: times, sound and their sync stay, compared packet by packet with the source."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from videornn.data.movie import redraw_movie
from videornn.overlay import Overlay, shown_size
from videornn.timeline import Window, find_segments

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


@pytest.mark.parametrize(("size", "expected"), [((64, 64), (320, 320)), ((1920, 1080),) * 2, ((321, 401), (322, 402))])
def test_tiny_videos_are_scaled_up_and_all_sides_are_even(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert shown_size(*size) == expected
