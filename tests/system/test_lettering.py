"""Names in pictures: letters of other fonts, and none that matplotlib would take for a formula."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from videornn.evaluation.plots import MAX_NAME, _shortened, plot_confusion
from videornn.inference.timeline import Segment, Window, plot_timeline
from videornn.system.lettering import fonts_for, plain

ELSEWHERE = "\N{UPPER LEFT OR LOWER RIGHT CURLY BRACKET SECTION}"  # in matplotlib's STIX fonts, not in DejaVu Sans


def _drawn(text: str) -> np.ndarray:
    figure = plt.figure(figsize=(1, 1))
    figure.text(0.3, 0.3, text, fontsize=30)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba()).copy()
    plt.close(figure)
    return pixels


def test_letters_that_the_font_lacks_are_drawn_with_another_one() -> None:
    before = list(matplotlib.rcParams["font.family"])
    with pytest.warns(UserWarning, match="missing from"):
        box = _drawn(ELSEWHERE)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Glyph|.*legend")  # and not what old libraries say of each other
        with fonts_for(["a", ELSEWHERE]):
            assert any("STIX" in name for name in matplotlib.rcParams["font.family"])
            assert (_drawn(ELSEWHERE) != box).any()
        with fonts_for(["plain"]):
            assert matplotlib.rcParams["font.family"] == ["DejaVu Sans"]
    assert matplotlib.rcParams["font.family"] == before


@pytest.mark.parametrize("name", ["日本語のクラス", "a $b_{c$ d", "tab\tand\nline", "\udce9", "$x^2$ {bad", "_under"])
def test_pictures_take_any_name_without_a_word(name: str, tmp_path: Path) -> None:
    names = (name, "other")
    segments = [Segment(0.0, 2.0, name, 0.7), Segment(2.0, 4.0, None, 0.2)]
    windows = [Window(2.0 * at, 2.0 * at + 2, torch.tensor([0.7, 0.3])) for at in range(2)]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Glyph|.*legend")  # and not what old libraries say of each other
        plot_timeline(tmp_path / "timeline.png", windows, segments, names, f"{name}.mp4")
        plot_confusion(tmp_path / "confusion.png", torch.eye(2).long(), names)


def test_a_long_name_keeps_both_ends() -> None:
    long = [f"passing an american football over a long way ({where} game)" for where in ("in", "not in")]
    short = [_shortened(name) for name in long]
    assert len(set(short)) == 2 and all(len(name) == MAX_NAME for name in short)
    assert short[1].startswith("passing") and short[1].endswith("(not in game)")
    assert plain("a $b$") == r"a \$b\$"
