"""Run a network on decoded clips: normalise them, choose the precision, average views to videos."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from videornn.schema import Average, Precision

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
VIDEOS_AT_ONCE = 512  # averaged together, so that a large test needs no second copy of its logits


class Normalize(nn.Module):
    """Turn clips into the input of a network: uint8 [B, 3, T, H, W] on any device -> float32, channels last in memory.

    Args:
        mean: per channel, of values in 0..1.
        std: likewise.
        device: where the network is.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, 255 * torch.tensor(values, device=device).view(1, 3, 1, 1, 1))

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.mean.device

    def forward(self, clips: Tensor) -> Tensor:
        # not in place, which torch 2.6 cannot export
        pixels = (clips.to(self.device, non_blocking=True).float() - self.mean) / self.std
        return pixels.contiguous(memory_format=torch.channels_last_3d)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager:
    """Return a context that autocasts to the precision's type; it does nothing for fp32."""
    return torch.autocast(device.type, AUTOCAST[precision]) if precision in AUTOCAST else nullcontext()


@torch.inference_mode()
def predict_logits(
    model: nn.Module, normalize: Normalize, clips: Tensor, *, precision: Precision = "fp32", views_at_once: int
) -> Tensor:
    """Compute logits float32 [B, K], on the CPU, of clips uint8 [B, 3, T, H, W], views_at_once at a time on the device.

    The model must be in eval mode, on the device of normalize.
    """
    logits = []
    for part in clips.split(views_at_once):
        inputs = normalize(part)
        with autocast(inputs.device, precision):
            logits.append(model(inputs).float().cpu())
    return torch.cat(logits)


def average_views(logits: Tensor, average: Average = "scores") -> Tensor:
    """Average logits [..., V, K] of views to scores [..., K] in 0..1 of videos: mean of softmax, or softmax of mean."""
    return logits.softmax(dim=-1).mean(dim=-2) if average == "scores" else logits.mean(dim=-2).softmax(dim=-1)


def video_scores(logits: Tensor, average: Average) -> Tensor:
    """Compute scores float32 [N, K] of any number of videos from the logits [N, V, K] of their views."""
    scores = logits.new_empty(len(logits), logits.shape[-1])
    # in place: small results between the large temporaries would keep that memory from being used again
    for part, place in zip(logits.split(VIDEOS_AT_ONCE), scores.split(VIDEOS_AT_ONCE), strict=True):
        place.copy_(average_views(part, average))
    return scores
