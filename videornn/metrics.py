"""Accuracies of scores [N, K] against labels [N], by torchmetrics; all of them in percent."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

Average = Literal["scores", "logits"]


def average_views(logits: Tensor, average: Average = "scores") -> Tensor:
    """Scores [..., K] in 0..1 of videos from logits [..., V, K] of their views: the mean softmax, or that of the mean."""
    return logits.softmax(dim=-1).mean(dim=-2) if average == "scores" else logits.mean(dim=-2).softmax(dim=-1)


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """Percent of rows whose label is among the k highest scores; with fewer than k classes every row is right."""
    num_classes = scores.shape[1]
    if k >= num_classes:
        return 100.0
    return 100 * multiclass_accuracy(scores, labels, num_classes, average="micro", top_k=k).item()


def confusion_matrix(scores: Tensor, labels: Tensor) -> Tensor:
    """Counts int64 [K, K]: rows are labels, columns are predictions."""
    return multiclass_confusion_matrix(scores, labels, scores.shape[1])


def class_accuracies(confusion: Tensor) -> Tensor:
    """Percent right per class, float [K]; NaN for a class without a video."""
    return 100 * confusion.diagonal() / confusion.sum(dim=1)


def mean_class_accuracy(confusion: Tensor) -> float:
    """Mean of class_accuracies over the classes that have videos."""
    return torch.nanmean(class_accuracies(confusion)).item()
