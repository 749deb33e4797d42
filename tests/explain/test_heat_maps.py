"""Sheets and movies: what must be seen in them is in them."""

from __future__ import annotations

import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from videornn.explain.clip_places import Query, grid_places
from videornn.explain.heat_maps import HeatMap, Scene, draw_movie, draw_sheet, movie_fps, shown_frames


def _scene(heat: torch.Tensor, num_frames: int, size: int = 64, query: Query | None = None) -> Scene:
    places = grid_places((num_frames, size, size), tuple(heat.shape))
    frames = np.full((num_frames, size, size, 3), 90, np.uint8)
    seconds = [0.25 * frame for frame in range(num_frames)]
    heat_map = HeatMap("pairwise +1", "what it looks at", heat, places, query, 1)
    return Scene("a.mp4: recognised as wave (93 %)", ["A caption.", "Another one."], frames, seconds, [heat_map])


@pytest.mark.parametrize("num_steps", [16, 32])  # in both, evenly spread frames miss the last step but one
def test_sheets_show_query_points_and_brightest_points(num_steps: int) -> None:
    """A map whose whole weight lies in one frame must not look empty."""
    num_frames, step = 32, num_steps - 2
    sharp = torch.zeros(num_steps, 4, 4)
    sharp[step, 1, 2] = 16.0
    scene = _scene(sharp, num_frames, query=Query(3, 0.5, 0.5))
    shown = shown_frames(scene)
    assert 3 in shown and {0, 31} <= set(shown) and len(shown) == 8
    assert step in {scene.maps[0].places.step(frame) for frame in shown}
    assert max(np.diff(shown)) <= 9


def test_short_clips_are_shown_whole() -> None:
    assert shown_frames(_scene(torch.ones(5, 2, 2), 5)) == [0, 1, 2, 3, 4]


def test_a_bright_place_glows_in_its_row_and_frame_of_the_sheet(tmp_path: Path) -> None:
    heat = torch.zeros(4, 8, 8)
    heat[2, 1, 6] = 256.0  # on pixel (8, 48) of 64
    draw_sheet(tmp_path / "a.png", _scene(heat, 4))
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    glow = (picture[..., 0] - picture[..., 2] > 90) & (picture[..., 0] > 200)
    glow[:, -130:] = False  # the colour scale
    rows, columns = glow.nonzero()
    assert len(rows) >= 12
    # cells are 1.5 inches of 110 pixels, the last of four ends 0.18 + 0.85 + 0.05 inches before the right edge
    right = picture.shape[1] - 110 * (0.18 + 0.85 + 0.05)
    bottom = picture.shape[0] - 110 * (0.18 + 0.05)
    left, top = right - 110 * (2 * 1.5 + 0.05), bottom - 110 * 1.5
    assert columns.mean() == pytest.approx(left + 165 * 48.5 / 64, abs=3)
    assert rows.mean() == pytest.approx(top + 165 * 8.5 / 64, abs=3)


def test_what_is_negative_is_blue_and_nearly_even_maps_do_not_glow(tmp_path: Path) -> None:
    for name, value in (("cold", -3.0), ("even", 1.02)):
        draw_sheet(tmp_path / f"{name}.png", _scene(torch.full((2, 8, 8), value), 2))
    cold, even = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))[-100, -400] for name in ("cold", "even"))
    assert int(cold[2]) > int(cold[0]) + 30
    assert int(even[0]) < 200  # half of the scale


def test_a_movie_has_the_frames_of_the_clip_at_a_watchable_speed(tmp_path: Path) -> None:
    heat = torch.zeros(12, 8, 8)
    heat[7, 4, 4] = 700.0
    draw_movie(tmp_path / "a.mp4", _scene(heat, 12, query=Query(3, 0.5, 0.5)))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].average_rate == 4
        pictures = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    assert len(pictures) == 12 and all(size % 2 == 0 for size in pictures[0].shape[:2])
    glow = [int(((picture[..., 0] - picture[..., 2] > 90) & (picture[..., 0] > 180)).sum()) for picture in pictures]
    assert glow[7] > 80 + max(glow[:7] + glow[8:])  # the colour scale is in all


@pytest.mark.parametrize(
    ("seconds", "fps"),
    [([0, 0.25, 0.5], 4), ([0, 1 / 30, 2 / 30], 4), ([0, 0.5, 1.0, 1.0], 2), ([1.0, 1.0], 1), ([0, 5, 10], 1), ([0.4], 1)],
)
def test_movies_are_as_fast_as_the_clip_within_bounds(seconds: list[float], fps: int) -> None:
    assert movie_fps(seconds) == Fraction(fps)


def test_many_maps_and_long_names_fit(tmp_path: Path) -> None:
    scene = _scene(torch.rand(32, 4, 4), 32, query=Query(9, 0.9, 0.1))
    scene = Scene("long_name_" * 30, ["words " * 200], scene.frames, scene.seconds, list(scene.maps) * 6)
    draw_sheet(tmp_path / "a.png", scene)
    width, height = Image.open(tmp_path / "a.png").size
    assert width < 2000 and height < 2000


@pytest.mark.parametrize("name", ["日本語のクラス", "a $b_{c$ d", "byte\udce9"])
def test_names_of_any_letters_can_be_written(name: str, tmp_path: Path) -> None:
    scene = _scene(torch.ones(2, 2, 2), 2)
    scene = Scene(name, [name], scene.frames, scene.seconds, scene.maps)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Glyph")
        draw_sheet(tmp_path / "a.png", scene)
        draw_movie(tmp_path / "a.mp4", scene)
    assert len(list(tmp_path.iterdir())) == 2
