"""Take one training step: explicit arguments, no files, no Config."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from videornn.models.forward import Precision, autocast


@dataclass(frozen=True)
class StepResult:
    """What a step did, still on the device: nothing here waits for it.

    loss: float32 scalar, mean over this rank's clips; correct: int64 scalar, how many of them are right (a mixed clip is if
    the class of its largest share is found); grad_norm: float32 scalar, of all ranks' gradient before clipping.
    """

    loss: Tensor
    correct: Tensor
    grad_norm: Tensor


def train_step(
    model: nn.Module,
    parts: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    *,
    num_parts: int = 1,
    scaler: torch.amp.GradScaler | None = None,
    precision: Precision = "fp32",
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    clip_norm: float | None = None,
) -> StepResult:
    """Forward and backward of every part of a batch, then one update by the gradient of their mean loss.

    Args:
        parts: num_parts equal parts of a rank's clips and targets, one at a time: float [B, 3, T, H, W], normalised, on the
            model's device; labels int64 [B], or float [B, K] shares of the classes of mixed clips.
        scaler: scales the loss against underflow (fp16), and leaves out an update whose gradient is not finite.
        class_weights: float [K], see classification_loss.
        clip_norm: largest norm of the gradient.
    """
    may_skip = scaler is not None and scaler.is_enabled()
    buffers = list(model.buffers()) if may_skip else []
    before = [buffer.clone() for buffer in buffers]
    losses, corrects = [], []
    for number, (clips, targets) in enumerate(parts, start=1):
        with _only_last_meets_other_ranks(model, number == num_parts):
            with autocast(clips.device, precision):
                logits = model(clips)
            loss = classification_loss(logits.float(), targets, label_smoothing, class_weights) / num_parts
            (scaler.scale(loss) if may_skip else loss).backward()
        labels = targets.argmax(1) if targets.ndim == 2 else targets
        losses.append(loss.detach())
        corrects.append((logits.detach().argmax(1) == labels).sum())
    if may_skip:
        scaler.unscale_(optimizer)
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    if clip_norm is None:
        grad_norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
    else:
        grad_norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    if may_skip:
        scaler.step(optimizer)
        scaler.update()
        finite = grad_norm.isfinite()
        for buffer, old in zip(buffers, before, strict=True):  # what is not finite would stay in running averages for ever
            buffer.copy_(torch.where(finite, buffer, old))
    else:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(torch.stack(losses).sum(), torch.stack(corrects).sum(), grad_norm.detach())


def classification_loss(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of logits [B, K] to labels [B] or shares [B, K]; a scalar.

    With class_weights [K] each class's share of a target, be it of a label, a mix or smoothing, counts as much as its class
    weighs. The sum is divided by B, not by the weights, so that the parts of a batch and the ranks add up to the whole.
    """
    losses = nn.functional.cross_entropy(logits, targets, class_weights, label_smoothing=label_smoothing, reduction="none")
    return losses.mean()


def build_scaler(device: torch.device, precision: Precision, *, skip_nonfinite: bool) -> torch.amp.GradScaler:
    """The loss scaler of fp16; in other precisions one that only leaves out what is not finite, or one that does nothing."""
    if precision == "fp16":
        return torch.amp.GradScaler(device.type)
    return torch.amp.GradScaler(device.type, init_scale=1.0, growth_interval=2**31 - 1, enabled=skip_nonfinite)


def _only_last_meets_other_ranks(model: nn.Module, last: bool) -> AbstractContextManager:
    """Gradients are summed over the ranks once per step, in the backward pass of its last part."""
    module = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    return nullcontext() if last or not isinstance(module, DistributedDataParallel) else module.no_sync()
