"""Parameter groups, optimizers, class weights, and the learning rate as a pure function of the epochs done."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from videornn.training.lamb import Lamb

PARTS = ("head", "res5", "res4", "res3", "res2", "stem")  # of a ResNet3d, from the last to the first
FUSED_ON = ("cpu", "cuda")  # where torch 2.6 and later have one kernel for a whole step of SGD and of AdamW


def build_optimizer(
    model: nn.Module,
    *,
    name: Literal["sgd", "adamw", "lamb"],
    lr: float,
    momentum: float,
    betas: tuple[float, float],
    weight_decay: float,
    norm_weight_decay: float,
    layer_decay: float,
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, AdamW or LAMB over the parameters that require a gradient.

    Equal groups are one: without layer decay there are two, convolutions and the classifier, and the rest. Each carries
    its lr_scale, which set_lr multiplies by.

    Args:
        model: not wrapped; already on its device, which decides the kernels.
        momentum: of sgd.
        betas: of adamw and lamb.
        weight_decay: of parameters with more than one dimension; L2 for sgd, decoupled for adamw and lamb.
        norm_weight_decay: of one-dimensional parameters: norms, biases, gates.
        layer_decay: learning rate of each of PARTS as a multiple of the one before.

    Raises:
        ValueError: an unknown name.
    """
    groups = _groups(model, lr, weight_decay, norm_weight_decay, layer_decay)
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    kernels = {"fused": True} if devices.issubset(FUSED_ON) else {"foreach": True}
    if name == "sgd":
        optimizer = torch.optim.SGD(groups, lr, momentum=momentum, nesterov=momentum > 0, **kernels)
        if momentum > 0:
            for parameter in (member for group in groups for member in group["params"]):
                # torch's fused kernel makes this of uninitialised memory if a loss scaler leaves out the first step
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    if name == "adamw":
        return torch.optim.AdamW(groups, lr, betas=betas, **kernels)
    if name == "lamb":
        return Lamb(groups, lr, betas=betas)
    raise ValueError(f"no optimizer {name!r}; there are sgd, adamw, lamb")


def load_optimizer_(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Go back to a state_dict, also one whose weights lay in another order in memory.

    The fused kernels of the CPU read a parameter, its gradient and its state side by side as they lie in memory, and
    compute nonsense, silently, where these have different strides.
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


def scaled_lr(lr: float, *, batch_size: int, lr_batch_size: int | None) -> float:
    """The learning rate for batch_size, if lr is meant for lr_batch_size (None: for any), by the linear rule.

    Goyal et al. 2017, arXiv:1706.02677.
    """
    return lr if lr_batch_size is None else lr * batch_size / lr_batch_size


def lr_at(
    epoch: float,
    *,
    lr: float,
    epochs: float,
    schedule: Literal["cosine", "step", "polynomial"],
    end_lr: float,
    step_epochs: Sequence[float],
    step_factor: float,
    power: float,
    warmup_epochs: float,
    warmup_start: float,
) -> float:
    """Learning rate of the step that begins after `epoch` epochs, whole and part, in [0, epochs).

    The schedule runs from epoch 0 to epochs, as in the published recipes; the warm-up is a straight line from
    warmup_start * lr to where the schedule is at warmup_epochs.

    Args:
        lr: at epoch 0 of the schedule.
        end_lr: at epochs, as a share of lr (cosine, polynomial).
        step_epochs: epochs at which the rate falls to step_factor times itself (step).
        power: exponent of the polynomial.

    Raises:
        ValueError: an unknown schedule.
    """

    def scheduled(epoch: float) -> float:
        if schedule == "step":
            return lr * step_factor ** sum(epoch >= step for step in step_epochs)
        left = 1 - min(epoch / epochs, 1.0)
        if schedule == "cosine":
            left = 0.5 * (1 - math.cos(math.pi * left))
        elif schedule == "polynomial":
            left = left**power
        else:
            raise ValueError(f"no schedule {schedule!r}; there are cosine, step, polynomial")
        return lr * (end_lr + (1 - end_lr) * left)

    return warmed_up(epoch, scheduled, start=warmup_start * lr, warmup_epochs=warmup_epochs)


def warmed_up(epoch: float, scheduled: Callable[[float], float], *, start: float, warmup_epochs: float) -> float:
    """scheduled(epoch), but before warmup_epochs a straight line from start to what it is there."""
    if epoch >= warmup_epochs:
        return scheduled(epoch)
    return start + (scheduled(warmup_epochs) - start) * epoch / warmup_epochs


def class_weights(labels: Tensor, num_classes: int, mode: Literal["none", "sqrt", "balanced"]) -> Tensor | None:
    """Weights of the classes in the loss, whose mean over the training clips is 1, so that lr keeps its meaning.

    Args:
        labels: int64 [N], of the training videos.
        mode: a class of n videos weighs as n**-0.5 (sqrt), as n**-1 (balanced), or like any other (none).

    Returns:
        float32 [K], or None for none. A class without a video weighs 0, so that label smoothing does not ask for it.
    """
    if mode == "none":
        return None
    counts = torch.bincount(labels, minlength=num_classes).double()
    weights = torch.where(counts > 0, counts.clamp(min=1) ** (-0.5 if mode == "sqrt" else -1.0), 0.0)
    return (weights * (counts.sum() / (counts * weights).sum())).float()


def _groups(
    model: nn.Module, lr: float, weight_decay: float, norm_weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups of plain types, which load with weights_only; modules that are not of PARTS learn like the head."""
    parameters: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = name.split(".")[0]
            lr_scale = layer_decay ** (PARTS.index(part) if part in PARTS else 0)
            decay = weight_decay if parameter.ndim > 1 else norm_weight_decay
            parameters.setdefault((decay, lr_scale), []).append(parameter)
    return [
        {"params": members, "weight_decay": decay, "lr": lr * lr_scale, "lr_scale": lr_scale}
        for (decay, lr_scale), members in parameters.items()
    ]
