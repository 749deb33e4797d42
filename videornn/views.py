"""Scores of videos, averaged over the views that a network has seen of them."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Average = Literal["scores", "logits"]
VIDEOS_AT_ONCE = 512  # whose views are averaged together, so that a large test needs no second copy of its logits


def average_views(logits: Tensor, average: Average = "scores") -> Tensor:
    """Scores [..., K] in 0..1 of videos from logits [..., V, K] of their views: the mean softmax, or that of the mean."""
    return logits.softmax(dim=-1).mean(dim=-2) if average == "scores" else logits.mean(dim=-2).softmax(dim=-1)


def video_scores(logits: Tensor, average: Average) -> Tensor:
    """Scores float32 [N, K] of the logits [N, V, K] of any number of videos."""
    scores = logits.new_empty(len(logits), logits.shape[-1])
    # in place: results that lie between the large temporaries of the parts would keep their memory from being used again
    for part, place in zip(logits.split(VIDEOS_AT_ONCE), scores.split(VIDEOS_AT_ONCE), strict=True):
        place.copy_(average_views(part, average))
    return scores
