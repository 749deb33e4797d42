"""Pictures of numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import torch.nn.functional as F
from torch import Tensor

matplotlib.use("Agg")
import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from videornn.explain import AttentionMaps

MAX_COLUMNS = 8


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


def plot_attention(path: Path, frames: Tensor, maps: AttentionMaps, title: str) -> None:
    """A sheet of the clip's frames uint8 [T, H, W, 3], its unary map, and the pairwise map of every query point."""
    columns = shown_frames(maps, len(frames))
    rows = [("frames", None, None)]
    if maps.unary is not None:
        rows.append(("unary: what every\npoint attends to", maps.unary, None))
    for number, (query, pairwise) in enumerate(zip(maps.queries, maps.pairwise, strict=True), start=1):
        rows.append((f"pairwise: what\npoint + {number} attends to", pairwise, query))
    height = frames.shape[1] / frames.shape[2]
    figure, grid = plt.subplots(
        len(rows),
        len(columns),
        figsize=(1.35 * len(columns) + 1.6, 1.42 * height * len(rows) + 0.9),
        squeeze=False,
        layout="constrained",
    )
    for axes_row, (name, heat, query) in zip(grid, rows, strict=True):
        top = 0.0 if heat is None else float(heat.max())
        for axes, frame in zip(axes_row, columns, strict=True):
            picture = frames[frame].numpy()
            axes.imshow(picture if heat is None else _overlay(picture, _frame_heat(heat, frame, len(frames), picture), top))
            axes.set_xticks([])
            axes.set_yticks([])
            if query is not None and query.frame == frame:
                x, y = query.x * picture.shape[1] - 0.5, query.y * picture.shape[0] - 0.5
                axes.plot(x, y, "+", color="white", markersize=13, markeredgewidth=4)
                axes.plot(x, y, "+", color="black", markersize=11, markeredgewidth=2)
        scale = "" if heat is None else f"\nbrightest: {top:.1f} x even"
        axes_row[0].set_ylabel(name + scale, rotation=0, ha="right", va="center", fontsize=8)
    for axes, frame in zip(grid[0], columns, strict=True):
        axes.set_title(f"frame {frame}", fontsize=8)
    figure.suptitle(f"{title}; attention after {maps.block.removesuffix('.attention')}", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def shown_frames(maps: AttentionMaps, num_frames: int) -> list[int]:
    """About MAX_COLUMNS frames, evenly spread, and those with a query point or with the brightest point of a map."""
    if num_frames <= MAX_COLUMNS:
        return list(range(num_frames))
    shown = {round(place * (num_frames - 1) / (MAX_COLUMNS - 1)) for place in range(MAX_COLUMNS)}
    brightest = {_brightest_frame(heat, num_frames) for heat in (maps.unary, *maps.pairwise) if heat is not None}
    return sorted(shown | brightest | {query.frame for query in maps.queries})


def _brightest_frame(heat: Tensor, num_frames: int) -> int:
    """The first frame of the time step of a map [t, h, w] that holds its largest value."""
    step = int(heat.flatten(1).amax(dim=1).argmax())
    return -(-step * num_frames // len(heat))


def _frame_heat(heat: Tensor, frame: int, num_frames: int, picture: np.ndarray) -> np.ndarray:
    """The part of a map [t, h, w] that belongs to a frame, as large as its picture."""
    part = heat[frame * len(heat) // num_frames][None, None]
    return F.interpolate(part, picture.shape[:2], mode="bilinear", align_corners=False)[0, 0].numpy()


def _overlay(picture: np.ndarray, heat: np.ndarray, top: float) -> np.ndarray:
    """The picture in grey, with the heat (0 to top) glowing over it."""
    grey = np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2) / 255
    share = np.clip(heat / max(top, 1e-12), 0, 1)
    glow = plt.get_cmap("inferno")(share)[..., :3]
    weight = 0.15 + 0.75 * share[..., None] ** 0.7
    return grey * (1 - weight) + glow * weight
