"""Pictures of numbers."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from torch import Tensor

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot_confusion(path: Path, confusion: Tensor, class_names: tuple[str, ...]) -> None:
    """Confusion matrix int64 [K, K] (rows: labels) as a picture; counts are printed where they can be read."""
    num_classes = len(class_names)
    share = confusion / confusion.sum(dim=1, keepdim=True).clamp_min(1)
    size = min(max(4.0, 1.8 + 0.55 * num_classes), 24.0)
    figure, axes = plt.subplots(figsize=(size + 1.2, size), layout="constrained")
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the class's videos", fraction=0.046, pad=0.04)
    if num_classes <= 60:
        axes.set_xticks(range(num_classes), class_names, rotation=90)
        axes.set_yticks(range(num_classes), class_names)
    if num_classes <= 30:
        for row in range(num_classes):
            for column in range(num_classes):
                if count := int(confusion[row, column]):
                    color = "white" if share[row, column] > 0.5 else "black"
                    axes.text(column, row, str(count), ha="center", va="center", color=color)
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    right, total = int(confusion.trace()), int(confusion.sum())
    axes.set_title(f"{right} of {total} videos right ({100 * right / max(total, 1):.1f} %)")
    figure.savefig(path, dpi=110)
    plt.close(figure)
