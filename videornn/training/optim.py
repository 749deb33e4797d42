"""Build optimizers, schedule the learning rate as a pure function of the epochs done, weigh classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from videornn.schema import ClassWeights, TrainConfig

PARTS = ("head", "res5", "res4", "res3", "res2", "stem")  # of a ResNet3d, last to first
FUSED_ON = ("cpu", "cuda")  # devices where torch 2.6 and later have one kernel for a whole step of SGD and of AdamW


def build_optimizer(model: nn.Module, section: TrainConfig) -> torch.optim.Optimizer:
    """Build the optimizer of a config's train section over the parameters of a network that require a gradient.

    Weights with more than one dimension have weight_decay, the others (norms, biases, gates) norm_weight_decay. Equal
    groups are merged: without layer decay there are two. Each has an lr_scale, by which set_lr multiplies.

    Args:
        model: not wrapped, and already on its device, which decides the kernels.
    """
    groups = _groups(model, section)
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    kernels = {"fused": True} if devices.issubset(FUSED_ON) else {"foreach": True}
    if section.optimizer == "adamw":
        return torch.optim.AdamW(groups, section.lr, betas=section.betas, **kernels)
    momentum = section.momentum
    optimizer = torch.optim.SGD(groups, section.lr, momentum=momentum, nesterov=momentum > 0, **kernels)
    if momentum > 0:
        for parameter in (member for group in groups for member in group["params"]):
            # torch's fused kernel leaves this uninitialised if a loss scaler skips the first step
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def load_optimizer_(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state_dict, even one whose weights had another memory layout.

    The fused kernels of the CPU read a parameter, its gradient and its state in the order of memory, and silently compute
    nonsense if their strides differ.
    """
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group this learning rate times its lr_scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def peak_lr(section: TrainConfig) -> float:
    """Scale the learning rate of a config's train section to its batch by the linear rule (Goyal et al. 2017).

    arXiv:1706.02677. Without lr_batch_size it is not scaled.
    """
    return section.lr if section.lr_batch_size is None else section.lr * section.batch_size / section.lr_batch_size


def lr_at(section: TrainConfig, epoch: float, num_epochs: float) -> float:
    """Compute the learning rate of the step that begins after epoch epochs, a fraction in [0, num_epochs).

    The schedule runs from epoch 0 to num_epochs, as in the published recipes; the warm-up rises linearly from warmup_start
    times the peak to the value of the schedule at warmup_epochs.

    Args:
        section: the train section of a config.
        num_epochs: of the run; multigrid's short cycle has more than section.epochs, and stretches step_epochs likewise.
    """
    peak = peak_lr(section)

    def scheduled(epoch: float) -> float:
        if section.schedule == "step":
            stretch = num_epochs / section.epochs
            return peak * section.step_factor ** sum(epoch >= step * stretch for step in section.step_epochs)
        left = 1 - min(epoch / num_epochs, 1.0)
        left = left**section.power if section.schedule == "polynomial" else 0.5 * (1 - math.cos(math.pi * left))
        return peak * (section.end_lr + (1 - section.end_lr) * left)

    return warmed_up(section, epoch, scheduled)


def warmed_up(section: TrainConfig, epoch: float, scheduled: Callable[[float], float]) -> float:
    """Evaluate a schedule at an epoch; before warmup_epochs, a straight line from the start to its value there."""
    if epoch >= section.warmup_epochs:
        return scheduled(epoch)
    start = section.warmup_start * peak_lr(section)
    return start + (scheduled(section.warmup_epochs) - start) * epoch / section.warmup_epochs


def class_weights(labels: Tensor, num_classes: int, mode: ClassWeights) -> Tensor | None:
    """Compute the weights of classes in the loss; their mean over the training clips is 1, so that lr keeps its meaning.

    Args:
        labels: int64 [N], of the training videos.
        mode: a class of n videos has a weight proportional to n**-0.5 (sqrt) or n**-1 (balanced), or no weight (none).

    Returns:
        float32 [K], or None for none. A class without videos has weight 0, so that label smoothing does not ask for it.
    """
    if mode == "none":
        return None
    counts = torch.bincount(labels, minlength=num_classes).double()
    weights = torch.where(counts > 0, counts.clamp(min=1) ** (-0.5 if mode == "sqrt" else -1.0), 0.0)
    return (weights * (counts.sum() / (counts * weights).sum())).float()


def _groups(model: nn.Module, section: TrainConfig) -> list[dict[str, Any]]:
    """Return parameter groups of plain types, which load with weights_only; modules outside PARTS learn like the head."""
    parameters: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = name.split(".")[0]
            lr_scale = section.layer_decay ** (PARTS.index(part) if part in PARTS else 0)
            decay = section.weight_decay if parameter.ndim > 1 else section.norm_weight_decay
            parameters.setdefault((decay, lr_scale), []).append(parameter)
    return [
        {"params": members, "weight_decay": decay, "lr": section.lr * lr_scale, "lr_scale": lr_scale}
        for (decay, lr_scale), members in parameters.items()
    ]
