"""One training step and one evaluation step: explicit arguments, no files, no Config."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from videornn.data.transforms import normalize


def to_model_input(clips: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 clips [B, 3, T, H, W] on any device -> normalised float32 on the device of mean, channels last in memory."""
    clips = clips.to(mean.device, non_blocking=True)
    return normalize(clips, mean, std).contiguous(memory_format=torch.channels_last_3d)


def train_step(
    model: nn.Module,
    clips: Tensor,
    targets: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    precision: str = "fp32",
    label_smoothing: float = 0.0,
    clip_norm: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Forward, backward and update on one batch.

    Args:
        clips: float [B, 3, T, H, W], normalised, on the model's device.
        targets: labels int64 [B], or float [B, K] shares of the classes of mixed clips.
        precision: fp32, or bf16 for autocast.

    Returns:
        Loss (float32 scalar) and number of correct clips (int64 scalar), both detached and still on the device. A mixed
        clip is correct if the class of its largest share is found.
    """
    with torch.autocast(clips.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(clips)
    loss = nn.functional.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)
    loss.backward()
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    labels = targets.argmax(1) if targets.ndim == 2 else targets
    return loss.detach(), (logits.detach().argmax(1) == labels).sum()


@torch.inference_mode()
def predict_step(model: nn.Module, clips: Tensor, *, precision: str = "fp32") -> Tensor:
    """Softmax scores float32 [B, K] of normalised clips [B, 3, T, H, W]; the model must be in eval mode."""
    with torch.autocast(clips.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(clips)
    return logits.float().softmax(dim=1)
