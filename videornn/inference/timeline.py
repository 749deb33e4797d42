"""Tell what happens when in a long video: windows with scores, the segments made from them, and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import torch
from torch import Tensor

THRESHOLD = 0.3  # default score that a class must reach to be a label
NONE_COLOR = "#c9c9c9"
MAX_CURVES = 6
MAX_LEGEND = 14


@dataclass(frozen=True, eq=False)
class Window:
    """Scores float32 [K] in 0..1 of a stretch of a video, from start to end in seconds."""

    start: float
    end: float
    scores: Tensor

    @property
    def middle(self) -> float:
        """Middle of the window in seconds."""
        return (self.start + self.end) / 2


@dataclass(frozen=True)
class Segment:
    """A stretch of a video with one label, from start to end in seconds.

    label: name of a class, or None if no class reached the threshold; score: the mean score, in 0..1, of the label (of the
    best class of each moment if it is None).
    """

    start: float
    end: float
    label: str | None
    score: float


def find_segments(
    windows: Sequence[Window], class_names: Sequence[str], *, smooth: float = 0.0, threshold: float = 0.0
) -> list[Segment]:
    """Find the segments of a video, without gaps, from windows in the order of time.

    A window stands for the time around its middle, half way to its neighbours. Its scores are averaged with those of the
    windows whose middles are within smooth / 2 seconds. A segment shorter than smooth seconds between two of the same label
    is a flicker and becomes part of them.

    Args:
        smooth: seconds; 0 leaves scores and flickers as they are.
        threshold: score in 0..1 that a class must reach to be the label.
    """
    if not windows:
        return []
    scores = smooth_scores(windows, smooth)
    best, classes = scores.max(dim=1)
    labels: list[int] = classes.masked_fill(best < threshold, -1).tolist()
    edges = window_edges(windows)
    stretches = [list(run) for _, run in groupby(range(len(windows)), key=labels.__getitem__)]
    runs = _without_flickers([(labels[run[0]], run[0], run[-1] + 1) for run in stretches], edges, smooth)
    return [
        Segment(
            edges[first],
            edges[end],
            None if label < 0 else class_names[label],
            (best[first:end] if label < 0 else scores[first:end, label]).mean().item(),
        )
        for label, first, end in runs
    ]


def half_window(windows: Sequence[Window]) -> float:
    """Return half the seconds of a window, over which scores are averaged by default."""
    return (windows[0].end - windows[0].start) / 2 if windows else 0.0


def smooth_scores(windows: Sequence[Window], smooth: float) -> Tensor:
    """Average scores to float32 [num_windows, K] over the windows whose middles are within smooth / 2 seconds."""
    scores = torch.stack([window.scores for window in windows])
    middles = torch.tensor([window.middle for window in windows], dtype=torch.float64)
    reach = smooth / 2 + 1e-6  # includes a window at exactly this distance
    first, end = torch.searchsorted(middles, middles - reach), torch.searchsorted(middles, middles + reach)
    sums = torch.cat([torch.zeros_like(scores[:1], dtype=torch.float64), scores.double().cumsum(dim=0)])
    return ((sums[end] - sums[first]) / (end - first)[:, None]).float()


def window_edges(windows: Sequence[Window]) -> list[float]:
    """Return, in seconds, where the time that each window stands for begins, and where that of the last one ends."""
    between = [(one.middle + two.middle) / 2 for one, two in pairwise(windows)]
    return [windows[0].start, *between, windows[-1].end]


def _without_flickers(runs: list[tuple[int, int, int]], edges: list[float], smooth: float) -> list[tuple[int, int, int]]:
    """Merge runs (label, first window, end) shorter than smooth between two of one label, the shortest first."""
    while True:
        flickers = [
            (edges[runs[place][2]] - edges[runs[place][1]], place)
            for place in range(1, len(runs) - 1)
            if runs[place - 1][0] == runs[place + 1][0]
        ]
        length, place = min(flickers, default=(smooth, 0))
        if length >= smooth:
            return runs
        runs = [*runs[: place - 1], (runs[place - 1][0], runs[place - 1][1], runs[place + 1][2]), *runs[place + 2 :]]


def class_colors(segments: Sequence[Segment], class_names: Sequence[str]) -> dict[str, str]:
    """Choose the colours of classes: different ones for those that fill most of the segments."""
    from matplotlib import color_sequences
    from matplotlib.colors import to_hex

    palette = [to_hex(color) for color in [*color_sequences["tab10"], *color_sequences["Dark2"]] if len(set(color)) > 1]
    filled = dict.fromkeys(class_names, 0.0)
    for segment in segments:
        if segment.label is not None:
            filled[segment.label] += segment.end - segment.start
    most_first = sorted(filled, key=filled.__getitem__, reverse=True)
    return {name: palette[place % len(palette)] for place, name in enumerate(most_first)}


def time_text(seconds: float) -> str:
    """Format seconds as 1:02:03.4 or 2:03.4: hours only if there are any, and tenths of a second."""
    tenths = round(10 * seconds)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{clock}:{tenths // 10:02d}.{tenths % 10}"


def plot_timeline(
    path: Path, windows: Sequence[Window], segments: Sequence[Segment], class_names: Sequence[str], title: str
) -> None:
    """Plot segments as coloured bars over time, above the scores, window by window, of the most important classes."""
    from videornn.system.lettering import fonts_for  # matplotlib takes a second to import

    with fonts_for([title, *class_names]):
        _plot_timeline(path, windows, segments, class_names, title)


def _plot_timeline(
    path: Path, windows: Sequence[Window], segments: Sequence[Segment], class_names: Sequence[str], title: str
) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from videornn.system.lettering import plain

    colors = class_colors(segments, class_names)
    labels = {segment.label for segment in segments}
    scores = torch.stack([window.scores for window in windows])
    ranked = sorted(range(len(class_names)), key=lambda k: (class_names[k] not in labels, -scores[:, k].amax().item()))
    start, end = windows[0].start, windows[-1].end
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    bars, curves = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2.6])
    for segment in segments:
        color = NONE_COLOR if segment.label is None else colors[segment.label]
        length = segment.end - segment.start
        bars.barh(0, length, left=segment.start, height=1, color=color, edgecolor="white", linewidth=0.8)
        name = f"{plain(segment.label or 'none')}\n{segment.score:.2f}"
        if length / max(end - start, 1e-9) > 0.0095 * max(len(segment.label or "none"), 4):  # the name fits into the bar
            ink = "black" if segment.label is None else "white"
            bars.text(segment.start + length / 2, 0, name, ha="center", va="center", fontsize=9, color=ink, clip_on=True)
    bars.set(yticks=[], ylim=(-0.5, 0.5), ylabel="segments")
    middles = [window.middle for window in windows]
    marker = "o" if len(windows) < 80 else None
    for k in ranked[:MAX_CURVES]:
        curves.plot(middles, scores[:, k].tolist(), color=colors[class_names[k]], marker=marker, markersize=3, linewidth=1.4)
    curves.set(ylim=(-0.02, 1.04), xlim=(start, max(end, start + 1e-3)), ylabel="score of a window", xlabel="time")
    curves.grid(alpha=0.3)
    curves.xaxis.set_major_formatter(lambda seconds, _: time_text(seconds).removesuffix(".0"))
    named = [k for k in ranked if class_names[k] in labels or k in ranked[:MAX_CURVES]]
    handles = [Patch(color=colors[class_names[k]], label=plain(class_names[k])) for k in named[:MAX_LEGEND]]
    if len(named) > MAX_LEGEND:
        handles.append(Patch(color="white", label=f"and {len(named) - MAX_LEGEND} more"))
    if None in labels:
        handles.append(Patch(color=NONE_COLOR, label="none (below the threshold)"))
    figure.legend(handles=handles, loc="outside right upper", fontsize=9, frameon=False)
    bars.set_title(plain(title), fontsize=11)
    figure.savefig(path, dpi=110, format="png")
