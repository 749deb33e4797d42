"""Take one training step: explicit arguments, no files, no Config."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from videornn.models.forward import Precision, autocast


@dataclass(frozen=True)
class StepResult:
    """The result of a step, still on the device: reading it would wait for the device.

    loss: float32 scalar, mean over this rank's clips; correct: int64 scalar, how many of them are right (for a mixed clip,
    the class of its largest share counts); grad_norm: float32 scalar, of all ranks' gradient before clipping.
    """

    loss: Tensor
    correct: Tensor
    grad_norm: Tensor


class TrainStep:
    """The training step: backward for every part of a rank's batch, then one update by the gradient of their mean loss.

    Args:
        num_parts: equal parts of a batch, one after the other.
        scaler: scales the loss against underflow (fp16), and skips updates whose gradient is not finite.
        class_weights: float [K], see classification_loss.
        clip_norm: largest norm of the gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        num_parts: int = 1,
        scaler: torch.amp.GradScaler | None = None,
        precision: Precision = "fp32",
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        clip_norm: float | None = None,
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self._num_parts, self._precision, self._clip_norm = num_parts, precision, clip_norm
        self._label_smoothing, self._class_weights = label_smoothing, class_weights
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._buffers = list(model.buffers()) if self._scaler else []
        self._buffers_before: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._corrects: list[Tensor] = []

    def backward(self, clips: Tensor, targets: Tensor) -> None:
        """Add the gradient of one part of the batch.

        Args:
            clips: float [B, 3, T, H, W], normalised, on the model's device.
            targets: labels int64 [B], or float [B, K] shares of the classes of mixed clips.
        """
        if not self._losses:
            self._buffers_before = [buffer.clone() for buffer in self._buffers]
        is_last = len(self._losses) == self._num_parts - 1
        with _only_last_meets_other_ranks(self._model, is_last):
            with autocast(clips.device, self._precision):
                logits = self._model(clips)
            loss = classification_loss(logits.float(), targets, self._label_smoothing, self._class_weights) / self._num_parts
            (self._scaler.scale(loss) if self._scaler else loss).backward()
        labels = targets.argmax(1) if targets.ndim == 2 else targets
        self._losses.append(loss.detach())
        self._corrects.append((logits.detach().argmax(1) == labels).sum())

    def update(self) -> StepResult:
        """Update the weights by the gradient of all parts, then clear it."""
        if self._scaler:
            self._scaler.unscale_(self._optimizer)
        if self._clip_norm is None:
            gradients = (parameter.grad for parameter in self._model.parameters())
            grad_norm = nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        else:
            grad_norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._clip_norm)
        if self._scaler:
            self._scaler.step(self._optimizer)
            self._scaler.update()
            finite = grad_norm.isfinite()
            # non-finite values would stay in running averages for ever
            for buffer, old in zip(self._buffers, self._buffers_before, strict=True):
                buffer.copy_(torch.where(finite, buffer, old))
        else:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        result = StepResult(torch.stack(self._losses).sum(), torch.stack(self._corrects).sum(), grad_norm.detach())
        self._losses, self._corrects = [], []
        return result


def train_step(
    model: nn.Module, parts: Iterable[tuple[Tensor, Tensor]], optimizer: torch.optim.Optimizer, **options: Any
) -> StepResult:
    """Take one step over the parts of a batch, clips and targets; for arguments and options see TrainStep."""
    step = TrainStep(model, optimizer, **options)
    for clips, targets in parts:
        step.backward(clips, targets)
    return step.update()


def classification_loss(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Compute the mean cross-entropy of logits [B, K] to labels [B] or shares [B, K]; a scalar.

    With class_weights [K], each class's share of a target, from a label, a mix or smoothing, is multiplied by its weight.
    The sum is divided by B, not by the weights, so that the parts of a batch and the ranks add up to the whole.
    """
    losses = nn.functional.cross_entropy(logits, targets, class_weights, label_smoothing=label_smoothing, reduction="none")
    return losses.mean()


def build_scaler(device: torch.device, precision: Precision, *, skip_nonfinite: bool) -> torch.amp.GradScaler:
    """Build the loss scaler of fp16; in other precisions, a scale of 1 that skips non-finite steps, or a disabled scaler."""
    if precision == "fp16":
        return torch.amp.GradScaler(device.type)
    return torch.amp.GradScaler(device.type, init_scale=1.0, growth_interval=2**31 - 1, enabled=skip_nonfinite)


def _only_last_meets_other_ranks(model: nn.Module, last: bool) -> AbstractContextManager:
    """Return a context in which gradients are summed over the ranks only in the backward pass of the step's last part."""
    module = getattr(model, "_orig_mod", model)  # unwrap torch.compile
    return nullcontext() if last or not isinstance(module, DistributedDataParallel) else module.no_sync()
