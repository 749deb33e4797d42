"""Pictures: what must be seen in them is in them."""

from __future__ import annotations

import pytest
import torch

from videornn.explain import AttentionMaps, Query
from videornn.plots import shown_frames


@pytest.mark.parametrize("num_steps", [16, 32])  # in both, evenly spread frames miss the last step but one
def test_attention_sheet_shows_query_points_and_brightest_points(num_steps: int) -> None:
    """A map whose whole weight lies in one frame must not look empty."""
    num_frames, step = 32, num_steps - 2
    sharp = torch.zeros(num_steps, 4, 4)
    sharp[step, 1, 2] = 16.0
    maps = AttentionMaps("res4.0", torch.ones(num_steps, 4, 4), [Query(3, 0.5, 0.5)], [sharp])
    shown = shown_frames(maps, num_frames)
    assert 3 in shown and {0, 31} <= set(shown)
    assert step in {frame * num_steps // num_frames for frame in shown}  # as the heat of a frame is looked up


def test_short_clips_are_shown_whole() -> None:
    maps = AttentionMaps("res4.0", torch.ones(4, 2, 2), [], [])
    assert shown_frames(maps, 5) == [0, 1, 2, 3, 4]
