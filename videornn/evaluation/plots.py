"""Plot a confusion matrix and a reliability diagram."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from videornn.evaluation.metrics import most_confused
from videornn.system.lettering import fonts_for, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_NAMED = 40  # classes whose names and counts fit into a confusion matrix
MAX_PAIRS = 30  # confusions named beside a larger matrix
MAX_NAME = 32  # characters of a class name in a picture


def plot_confusion(path: Path, confusion: Tensor, class_names: tuple[str, ...]) -> None:
    """Plot a confusion matrix int64 [K, K] (rows: labels); for many classes also the pairs confused most often.

    The matrix shows names and counts where they are legible, up to MAX_NAMED classes.
    """
    with fonts_for(class_names):
        _plot_confusion(path, confusion, class_names)


def _plot_confusion(path: Path, confusion: Tensor, class_names: tuple[str, ...]) -> None:
    num_classes = len(class_names)
    share = confusion / confusion.sum(dim=1, keepdim=True).clamp_min(1)
    if num_classes <= MAX_NAMED:
        size = max(3.2, 1.2 + 0.42 * num_classes)
        longest = min(max(map(len, class_names)), MAX_NAME)
        names = 0.085 * longest  # inches, beside and below the matrix
        figure = Figure(figsize=(size + names + 1.6, size + names + 0.6), layout="constrained")
        axes = figure.subplots()
    else:
        figure = Figure(figsize=(17, 1.6 + 0.26 * MAX_PAIRS), layout="constrained")
        axes, pairs = figure.subplots(1, 2, width_ratios=[1, 0.62])
        _plot_pairs(pairs, confusion, class_names)
    # with many classes the few confusions would be too pale to see
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(1.0 if num_classes <= MAX_NAMED else 0.5, vmin=0, vmax=1))
    figure.colorbar(image, ax=axes, label="share of the label's videos", fraction=0.046, pad=0.02)
    if num_classes <= MAX_NAMED:
        short = [_shortened(name) for name in class_names]
        axes.set_xticks(range(num_classes), short, rotation=90)
        axes.set_yticks(range(num_classes), short)
        for row, column in confusion.nonzero().tolist():
            color = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(int(confusion[row, column])), ha="center", va="center", color=color)
    axes.set_xlabel("prediction" if num_classes <= MAX_NAMED else "prediction (classes by id)")
    axes.set_ylabel("label" if num_classes <= MAX_NAMED else "label (classes by id)")
    right, total = int(confusion.trace()), int(confusion.sum())
    figure.suptitle(f"{right} of {total} videos right ({100 * right / max(total, 1):.1f} %)")
    figure.savefig(path, dpi=110, format="png")


def _plot_pairs(axes: Axes, confusion: Tensor, class_names: tuple[str, ...]) -> None:
    """Plot the pairs (label, prediction) that are confused most often as bars."""
    pairs = most_confused(confusion)[:MAX_PAIRS]
    counts = [count for *_, count in pairs]
    axes.barh(range(len(counts)), counts, color="tab:red", alpha=0.6)
    for row, (label, _, count) in enumerate(pairs):
        axes.text(count, row, f" {count} of {int(confusion[label].sum())}", va="center", fontsize=8)
    names = [f"{_shortened(class_names[label])} → {_shortened(class_names[other])}" for label, other, _ in pairs]
    axes.set_yticks(range(len(counts)), names, fontsize=8)
    axes.set_ylim(MAX_PAIRS - 0.4, -0.6)
    axes.set_xlim(0, 1.18 * max(counts, default=1))
    locator = axes.xaxis.get_major_locator()
    assert isinstance(locator, MaxNLocator)
    locator.set_params(integer=True)
    axes.set_title("most often confused: label → prediction" if counts else "nothing is confused", fontsize=10)
    axes.set_xlabel("videos")
    axes.spines[["top", "right"]].set_visible(False)


def _shortened(name: str) -> str:
    """Shorten a name to MAX_NAME characters, keeping both ends, because names often differ only at the end."""
    if len(name) > MAX_NAME:
        name = f"{name[: MAX_NAME // 2]}\N{HORIZONTAL ELLIPSIS}{name[1 - MAX_NAME // 2 :]}"
    return plain(name)


def plot_reliability(path: Path, counts: Tensor, confidence: Tensor, accuracy: Tensor, ece: float) -> None:
    """Plot a reliability diagram: accuracy over confidence in bins, and the number of videos in each bin.

    Args:
        counts: int64 [bins]; confidence, accuracy: [bins] in 0..1, NaN in empty bins; all of equal bins of 0..1.
        ece: expected calibration error in percent.
    """
    num_bins = len(counts)
    centres = (np.arange(num_bins) + 0.5) / num_bins
    figure = Figure(figsize=(5.6, 6.6), layout="constrained")
    axes, below = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    filled = (counts > 0).numpy()
    x, width = centres[filled], 0.92 / num_bins
    right, sure = accuracy.numpy()[filled], confidence.numpy()[filled]
    axes.bar(x, right, width, color="tab:blue", alpha=0.75, label="share that is right")
    low, high = np.minimum(right, sure), np.maximum(right, sure)
    axes.bar(x, high - low, width, low, color="none", edgecolor="tab:red", hatch="///", label="gap to the score")
    axes.plot([0, 1], [0, 1], "--", color="black", linewidth=1, label="scores that can be believed")
    axes.set(ylabel="share of videos that is right", xlim=(0, 1), ylim=(0, 1.02))
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    total = int(counts.sum())
    mean = float((confidence.nan_to_num() * counts).sum()) / max(total, 1)
    share = float((accuracy.nan_to_num() * counts).sum()) / max(total, 1)
    axes.set_title(
        f"expected calibration error {ece:.1f} % ({total} videos)\nmean score {100 * mean:.1f} %, right {100 * share:.1f} %",
        fontsize=10,
    )
    below.bar(x, counts.numpy()[filled], width, color="tab:gray")
    for place, count in zip(x, counts[counts > 0].tolist(), strict=True):
        below.text(place, count, str(count), ha="center", va="bottom", fontsize=7)
    below.set(xlabel="score of the prediction", ylabel="videos", ylim=(0, 1.2 * max(int(counts.max()), 1)))
    below.yaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=110, format="png")
