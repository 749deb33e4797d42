"""Pictures: what must be seen in them is in them."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image

from videornn.evaluation.plots import _plot_pairs, plot_confusion, plot_reliability


def test_the_pairs_beside_a_large_confusion_matrix_are_the_most_frequent_ones() -> None:
    confusion = torch.diag(torch.full((50,), 7))
    confusion[3, 9], confusion[9, 3], confusion[20, 4] = 5, 2, 6
    figure, axes = plt.subplots()
    _plot_pairs(axes, confusion, tuple(f"class {number}" for number in range(50)))
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "class 20 → class 4",
        "class 3 → class 9",
        "class 9 → class 3",
    ]
    assert [text.get_text().strip() for text in axes.texts] == ["6 of 13", "5 of 12", "2 of 9"]
    plt.close(figure)


@pytest.mark.parametrize("num_classes", [2, 40, 400])
def test_pictures_of_a_test_have_a_readable_size_for_any_number_of_classes_and_names(
    num_classes: int, tmp_path: Path
) -> None:
    names = tuple("a $very_{long} name of a class\udcff " * 3 + str(number) for number in range(num_classes))
    plot_confusion(tmp_path / "confusion.tmp", torch.eye(num_classes).long(), names)
    assert all(400 < side < 3000 for side in Image.open(tmp_path / "confusion.tmp").size)


def test_a_reliability_diagram_needs_no_video_in_any_bin(tmp_path: Path) -> None:
    counts, nothing = torch.tensor([0, 0, 1]), torch.tensor([float("nan"), float("nan"), 1.0])
    plot_reliability(tmp_path / "reliability.tmp", counts, nothing, nothing, 0.0)
    assert Image.open(tmp_path / "reliability.tmp").format == "PNG"
