"""Segments of windows, computed by hand, and their picture."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from videornn.inference.timeline import (
    Segment,
    Window,
    find_segments,
    plot_timeline,
    smooth_scores,
    time_text,
)

NAMES = ("run", "walk", "sit")


def windows_of(best: str, *, length: float = 2.0, stride: float = 1.0, score: float = 0.8) -> list[Window]:
    """One window per letter: r, w or s with the given score, or . with even scores."""
    windows = []
    for number, letter in enumerate(best):
        scores = torch.full((3,), 1 / 3)
        if letter != ".":
            scores = torch.full((3,), (1 - score) / 2)
            scores["rws".index(letter)] = score
        windows.append(Window(number * stride, number * stride + length, scores))
    return windows


def labels_of(best: str, **options: float) -> list[tuple[float, float, str | None]]:
    return [(s.start, s.end, s.label) for s in find_segments(windows_of(best), NAMES, **options)]


def test_segments_begin_and_end_half_way_between_the_middles_of_windows() -> None:
    # windows [0, 2], [1, 3], [2, 4], [3, 5], [4, 6] with middles 1, 2, 3, 4, 5
    assert labels_of("rrrww") == [(0.0, 3.5, "run"), (3.5, 6.0, "walk")]
    (run, walk) = find_segments(windows_of("rrrww"), NAMES)
    assert run.score == pytest.approx(0.8) and walk.score == pytest.approx(0.8)
    assert find_segments([], NAMES) == []


def test_below_the_threshold_there_is_no_label() -> None:
    assert labels_of("rr.ww", threshold=0.5) == [(0.0, 2.5, "run"), (2.5, 3.5, None), (3.5, 6.0, "walk")]
    assert labels_of("...", threshold=0.5) == [(0.0, 4.0, None)]
    (none,) = find_segments(windows_of("..."), NAMES, threshold=0.5)
    assert none.score == pytest.approx(1 / 3)
    assert [label for _, _, label in labels_of("rw", threshold=0.8 - 1e-6)] == ["run", "walk"]


def test_scores_are_averaged_over_the_windows_around() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(20, 3, generator=generator).softmax(dim=1)
    windows = [Window(0.5 * k, 0.5 * k + 2, row) for k, row in enumerate(scores)]
    expected = []
    for k in range(20):  # smooth = 2 s reaches two windows of 0.5 s to either side
        near = [j for j in range(20) if abs(j - k) <= 2]
        expected.append(np.mean([scores[j].numpy() for j in near], axis=0))
    np.testing.assert_allclose(smooth_scores(windows, 2.0), np.stack(expected), atol=1e-6)
    torch.testing.assert_close(smooth_scores(windows, 0.0), scores)


def test_flickers_shorter_than_the_smoothing_vanish_and_changes_stay() -> None:
    strong = windows_of("rrrrwrrrr", score=0.6)
    strong[4] = Window(4, 6, torch.tensor([0.0, 1.0, 0.0]))  # walk wins, and its neighbours do not outvote it at 1.5 s
    assert [s.label for s in find_segments(strong, NAMES, smooth=0)] == ["run", "walk", "run"]
    assert [(s.start, s.end, s.label) for s in find_segments(strong, NAMES, smooth=1.5)] == [(0.0, 10.0, "run")]
    # a short segment between two different ones is no flicker
    assert [label for _, _, label in labels_of("rrrrwssss", smooth=1.5)] == ["run", "walk", "sit"]
    # the shortest vanishes first, and what is then long enough stays
    assert [label for _, _, label in labels_of("rrrrwwwrwwwrrrr", smooth=1.9)] == ["run", "walk", "run"]


def test_segments_leave_no_gap_whatever_the_scores() -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        scores = (3 * torch.randn(40, 3, generator=generator)).softmax(dim=1)
        windows = [Window(0.7 * k, 0.7 * k + 1.4, row) for k, row in enumerate(scores)]
        segments = find_segments(windows, NAMES, smooth=seed % 4, threshold=0.5)
        assert segments[0].start == 0 and segments[-1].end == windows[-1].end
        for one, two in pairwise(segments):
            assert one.end == two.start and one.label != two.label


def test_the_picture_shows_every_label_in_a_colour_of_its_own(tmp_path: Path) -> None:
    windows = windows_of("rrrrwwww....ssss")
    segments = find_segments(windows, NAMES, threshold=0.5)
    plot_timeline(tmp_path / "a.png", windows, segments, NAMES, "a.mp4")
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    assert picture.shape[1] > 1000
    # in the row of bars, which the left part of the picture holds, every segment is one broad stretch of its colour
    row = picture[int(0.13 * len(picture)), : int(0.8 * picture.shape[1])]
    colors, counts = np.unique(row, axis=0, return_counts=True)
    broad = [tuple(color) for color, count in zip(colors, counts, strict=True) if count > 100]
    assert len(broad) == 4 and sum(max(color) - min(color) < 10 for color in broad) == 1  # the grey one is "none"


@pytest.mark.parametrize("num_classes", [1, 2, 400])
def test_any_number_of_classes_and_windows_can_be_drawn(tmp_path: Path, num_classes: int) -> None:
    names = tuple(f"doing something with a long name {k}" for k in range(num_classes))
    for count in (1, 300):
        windows = [Window(k, k + 2.0, torch.rand(num_classes).softmax(0)) for k in range(count)]
        plot_timeline(tmp_path / "a.png", windows, find_segments(windows, names, threshold=0.003), names, "a")
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_times_are_written_as_clocks_do() -> None:
    assert [time_text(t) for t in (0, 9.96, 59.99, 61.25, 3723.4)] == ["0:00.0", "0:10.0", "1:00.0", "1:01.2", "1:02:03.4"]
    assert Segment(0.0, 1.0, None, 0.2).label is None
