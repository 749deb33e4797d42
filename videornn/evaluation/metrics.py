"""Measure accuracy and calibration of logits and scores against labels [N]; everything but the loss is in percent.

Memory grows with N + K*K even under torch.use_deterministic_algorithms, where torchmetrics counts a confusion matrix by
comparing all N with all K*K: 25 GB for the validation videos of Kinetics-400.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from videornn.models.forward import VIDEOS_AT_ONCE, Average, video_scores

NUM_BINS = 15  # of the calibration error, as in Guo et al.
SMALLEST = 1e-12  # floor of a score in a logarithm, so that no video's loss is infinite


def summarize(logits: Tensor, labels: Tensor, average: Average) -> dict[str, float]:
    """Summarize a test in numbers, from logits [N, V, K] of views and labels [N] of videos.

    Clip accuracies count every view by itself; all else is measured on scores averaged over a video's views. ece:
    calibration error; video_loss: mean of -log(score of the label).
    """
    scores = video_scores(logits, average)
    picked = scores.gather(1, labels[:, None]).clamp_min(SMALLEST)
    return {
        "video_top1": top_k_accuracy(scores, labels, 1),
        "video_top5": top_k_accuracy(scores, labels, 5),
        "clip_top1": _clip_accuracy(logits, labels, 1),
        "clip_top5": _clip_accuracy(logits, labels, 5),
        "mean_class_top1": mean_class_accuracy(confusion_matrix(scores, labels)),
        "ece": calibration_error(scores, labels),
        "video_loss": -picked.log().mean().item(),
    }


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """Return the percent of rows whose label is among the k highest scores; with fewer than k classes every row is right."""
    if k >= scores.shape[1]:
        return 100.0
    right = (scores.topk(k, dim=1).indices == labels[:, None]).any(dim=1)
    return 100 * right.double().mean().item()


def confusion_matrix(scores: Tensor, labels: Tensor) -> Tensor:
    """Count int64 [K, K]: rows are labels, columns are predictions."""
    num_classes = scores.shape[1]
    pairs = labels * num_classes + scores.argmax(dim=1)
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def class_accuracies(confusion: Tensor) -> Tensor:
    """Return the percent right of the videos of each class (its recall), float [K]; NaN for a class without a video."""
    return 100 * confusion.diagonal() / confusion.sum(dim=1)


def class_precisions(confusion: Tensor) -> Tensor:
    """Return the percent right of the videos predicted as each class, float [K]; NaN for a class never predicted."""
    return 100 * confusion.diagonal() / confusion.sum(dim=0)


def most_confused(confusion: Tensor) -> list[tuple[int, int, int]]:
    """List label, prediction and count of every mistake that was made, the most frequent first.

    Of mistakes as frequent as each other, the one that is the larger share of its class comes first.
    """
    labels, predictions = confusion.clone().fill_diagonal_(0).nonzero(as_tuple=True)
    columns = (labels, predictions, confusion[labels, predictions], confusion.sum(dim=1)[labels])
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [row[:3] for row in sorted(rows, key=lambda row: (-row[2], row[3]))]


def mean_class_accuracy(confusion: Tensor) -> float:
    """Average class_accuracies over the classes that have videos."""
    return torch.nanmean(class_accuracies(confusion)).item()


def calibration_error(scores: Tensor, labels: Tensor) -> float:
    """Compute the expected calibration error of scores [N, K]: mean distance of confidence and accuracy over bins.

    Guo et al. 2017, eq. 3, arXiv:1706.04599.
    """
    if scores.shape[1] == 1:  # always certain and right
        return 0.0
    return 100 * multiclass_calibration_error(_below_one(scores), labels, scores.shape[1], n_bins=NUM_BINS, norm="l1").item()


def calibration_bins(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return per bin of confidence the videos, int64 [NUM_BINS], and mean confidence and accuracy in 0..1, NaN if empty."""
    confidences, predictions = _below_one(scores).max(dim=1)
    bins = (confidences.double() * NUM_BINS).long()
    counts = bins.bincount(minlength=NUM_BINS)
    sums = (torch.bincount(bins, values, NUM_BINS) for values in (confidences.double(), (predictions == labels).double()))
    confidence, accuracy = (values / counts for values in sums)
    return counts, confidence, accuracy


def _below_one(scores: Tensor) -> Tensor:
    """Lower scores of 1 (or more, by rounding): torchmetrics has a separate bin for 1, and takes more than 1 for logits."""
    return scores.clamp(0, 1 - torch.finfo(scores.dtype).eps / 2)


def _clip_accuracy(logits: Tensor, labels: Tensor, k: int) -> float:
    """Return top_k_accuracy over single views [N, V, K]."""
    num_right = 0.0
    for views, view_labels in zip(logits.split(VIDEOS_AT_ONCE), labels.split(VIDEOS_AT_ONCE), strict=True):
        num_right += len(views) * top_k_accuracy(views.flatten(0, 1), view_labels.repeat_interleave(views.shape[1]), k)
    return num_right / len(logits)
