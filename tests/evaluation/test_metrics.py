"""Accuracies and calibration against formulas written out in numpy, video by video."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from videornn.evaluation import metrics
from videornn.models.forward import Average, video_scores


def _softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _case(num_classes: int, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [600, 3, K], more videos than are averaged at once, and labels that are mostly right; class 1 has no video."""
    random = np.random.default_rng(num_classes)
    labels = random.integers(0, num_classes, 600)
    labels[labels == 1] = 0
    logits = random.normal(size=(600, 3, num_classes))
    logits[np.arange(600), :, labels] += 1.0
    return torch.tensor(scale * logits, dtype=torch.float32), torch.tensor(labels)


def _calibration_error(scores: np.ndarray, labels: np.ndarray) -> float:
    """Guo et al. 2017, eq. 3: fifteen bins (m/15, (m+1)/15]."""
    error = 0.0
    for low in range(15):
        members = [
            (row.max(), row.argmax() == label)
            for row, label in zip(scores, labels, strict=True)
            if low / 15 < row.max() <= (low + 1) / 15
        ]
        if members:
            sure, right = np.mean([member[0] for member in members]), np.mean([member[1] for member in members])
            error += len(members) / len(labels) * abs(right - sure)
    return 100 * error


@pytest.mark.parametrize("average", ["scores", "logits"])
@pytest.mark.parametrize("num_classes", [3, 12])
def test_the_numbers_of_a_test_are_those_of_the_formulas(average: Average, num_classes: int) -> None:
    logits, labels = _case(num_classes)
    ours = metrics.summarize(logits, labels, average)
    views, truth = logits.double().numpy(), labels.numpy()
    scores = _softmax(views).mean(1) if average == "scores" else _softmax(views.mean(1))
    places = np.array([(row > row[label]).sum() for row, label in zip(scores, truth, strict=True)])
    view_places = np.array([[(row > row[t]).sum() for row in video] for video, t in zip(views, truth, strict=True)])
    expected = {
        "video_top1": 100 * (places < 1).mean(),
        "video_top5": 100 * (places < 5).mean(),
        "clip_top1": 100 * (view_places < 1).mean(),
        "clip_top5": 100 * (view_places < 5).mean(),
        "mean_class_top1": 100 * np.mean([(places[truth == k] < 1).mean() for k in range(num_classes) if k != 1]),
        "ece": _calibration_error(scores, truth),
        "video_loss": -np.log(scores[np.arange(600), truth]).mean(),
    }
    assert ours == pytest.approx(expected, rel=1e-5)


def test_a_score_of_one_belongs_to_the_last_bin_of_the_calibration_error() -> None:
    """float32 rounds a sure score to 1, and torchmetrics alone would give those a bin of their own."""
    scores = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.95, 0.05], [0.95, 0.05]])
    labels = torch.tensor([0, 1, 0, 0])  # 3 of 4 right in one bin, mean confidence 0.975
    assert metrics.calibration_error(scores, labels) == pytest.approx(22.5)
    assert metrics.calibration_error(torch.tensor([[1.0000001, 0.0]]), torch.tensor([1])) == pytest.approx(100)
    counts, confidence, accuracy = metrics.calibration_bins(scores, labels)
    assert counts.tolist() == [0] * 14 + [4]
    assert (float(confidence[-1]), float(accuracy[-1])) == (pytest.approx(0.975), pytest.approx(0.75))


def test_the_bins_of_the_diagram_give_the_calibration_error() -> None:
    logits, labels = _case(5, scale=1.5)
    scores = video_scores(logits, "scores")
    counts, confidence, accuracy = metrics.calibration_bins(scores, labels)
    gaps = (confidence - accuracy).abs().nan_to_num()
    assert 100 * float((counts * gaps).sum() / counts.sum()) == pytest.approx(
        metrics.calibration_error(scores, labels), rel=1e-4
    )
    assert counts.sum() == 600 and confidence.isnan().any()


def test_precision_counts_columns_and_accuracy_rows() -> None:
    confusion = torch.tensor([[3, 1, 0], [0, 0, 0], [2, 0, 4]])
    assert metrics.class_precisions(confusion).tolist() == pytest.approx([60.0, 0.0, 100.0])
    assert metrics.class_accuracies(confusion).tolist() == pytest.approx([75.0, float("nan"), 100 * 4 / 6], nan_ok=True)
    assert metrics.class_precisions(torch.tensor([[1, 0], [1, 0]])).isnan().tolist() == [False, True]


def test_a_network_of_one_class_is_always_right_and_sure() -> None:
    numbers = metrics.summarize(torch.randn(5, 2, 1), torch.zeros(5, dtype=torch.int64), "scores")
    assert [numbers[name] for name in ("video_top1", "clip_top5", "mean_class_top1", "ece", "video_loss")] == [
        *(100.0, 100.0, 100.0),
        *(0.0, 0.0),
    ]


def test_the_most_frequent_mistakes_come_first_and_of_equal_ones_the_larger_share() -> None:
    confusion = torch.tensor([[9, 2, 0], [2, 1, 3], [0, 1, 0]])
    assert metrics.most_confused(confusion) == [(1, 2, 3), (1, 0, 2), (0, 1, 2), (2, 1, 1)]
    assert metrics.most_confused(torch.eye(3).long()) == []
