"""Mixup and CutMix of a batch on its device: two videos in one clip, and soft targets to match.

Mixup: Zhang et al. 2017, arXiv:1710.09412; CutMix: Yun et al. 2019, arXiv:1905.04899. Random numbers are drawn on the CPU,
so that nothing waits for the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from videornn.config import DataConfig


@dataclass(frozen=True)
class Mixing:
    """A way to mix batches: with some probability, by mixup or CutMix, in one ratio for the whole batch.

    num_classes: K of the targets.
    mixup_alpha, cutmix_alpha: the share lambda of a clip's own video is Beta(alpha, alpha); 0 turns the method off.
    probability: share of the batches that are mixed.
    cutmix_share: share of CutMix among the mixed batches, if both alphas are set.
    """

    num_classes: int
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    probability: float = 1.0
    cutmix_share: float = 0.5

    def __call__(self, clips: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Mix every clip with the one half a batch before it.

        Args:
            clips: float [B, 3, T, H, W], normalised.
            labels: int64 [B].

        Returns:
            clips as they came in shape, memory format and device, and float32 targets [B, K] whose rows sum to 1.
        """
        targets = torch.zeros(len(labels), self.num_classes, device=labels.device).scatter_(1, labels[:, None], 1.0)
        apply, choice = rng.random(2)
        if apply >= self.probability:
            return clips, targets
        if choice < self._cutmix_probability():
            return cutmix(clips, targets, rng.beta(self.cutmix_alpha, self.cutmix_alpha), rng.random(2))
        return mixup(clips, targets, rng.beta(self.mixup_alpha, self.mixup_alpha))

    def _cutmix_probability(self) -> float:
        if self.mixup_alpha == 0 or self.cutmix_alpha == 0:
            return float(self.cutmix_alpha > 0)
        return self.cutmix_share


def batch_mixing(section: DataConfig, num_classes: int) -> Mixing | None:
    """Return how a config's data section mixes batches, or None if it does not."""
    if section.mixup_alpha == 0 and section.cutmix_alpha == 0:
        return None
    return Mixing(
        num_classes,
        mixup_alpha=section.mixup_alpha,
        cutmix_alpha=section.cutmix_alpha,
        probability=section.mix_probability,
        cutmix_share=section.cutmix_share,
    )


def mixup(clips: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Add share of each clip [B, ...] and of its target [B, K] to 1 - share of its partner's."""
    return _partners(clips).lerp_(clips, share), _partners(targets).lerp_(targets, share)


def cutmix(clips: Tensor, targets: Tensor, share: float, place: np.ndarray) -> tuple[Tensor, Tensor]:
    """Show the partner in a box of each clip [B, ..., H, W], the same in all frames; targets [B, K] go by the area left.

    Args:
        share: of the area that stays, before the box is clipped at the edges of the frame.
        place: middle of the box (x, y), in 0..1.
    """
    height, width = clips.shape[-2:]
    half_height, half_width = (int(0.5 * math.sqrt(1 - share) * length) for length in (height, width))
    x, y = int(place[0] * width), int(place[1] * height)
    rows = slice(max(y - half_height, 0), min(y + half_height, height))
    columns = slice(max(x - half_width, 0), min(x + half_width, width))
    mixed = clips.clone()
    mixed[..., rows, columns] = _partners(clips[..., rows, columns])
    share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    return mixed, _partners(targets).lerp_(targets, share)


def _partners(rows: Tensor) -> Tensor:
    """Move row i - B // 2 of [B, ...] to row i: neighbours may be clips of one video, so partners are far apart."""
    # cat, because roll loses channels last on GPUs
    middle = len(rows) - len(rows) // 2
    return torch.cat((rows[middle:], rows[:middle]))
