"""A moving average of a network's weights: smoother than the last ones, and what is then validated, tested and used."""

from __future__ import annotations

import copy

import torch
from torch import nn


def start_ema(model: nn.Module) -> nn.Module:
    """A copy of a network that is not wrapped, in eval mode and without gradients, that update_ema_ moves."""
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    ema.zero_grad(set_to_none=True)
    return ema


@torch.no_grad()
def update_ema_(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema = decay * ema + (1 - decay) * model, parameters and batch norm's statistics; integer buffers are copied.

    The statistics of the last few batches would belong to the weights of today; averaged as slowly as the weights they
    belong to the same past. Nothing here waits for the device.

    Args:
        model: the inner network where it is compiled or wrapped by DistributedDataParallel.
    """
    averages, values = ([*network.parameters(), *network.buffers()] for network in (ema, model))
    pairs = list(zip(averages, values, strict=True))
    moving = [(average, value) for average, value in pairs if average.is_floating_point()]
    torch._foreach_lerp_([average for average, _ in moving], [value for _, value in moving], 1 - decay)
    for average, value in pairs:
        if not average.is_floating_point():
            average.copy_(value)


def decay_at(step: int, decay: float) -> float:
    """Decay of the update after `step` steps: (1 + step) / (10 + step), but at most decay.

    With 0.9999 from the start, the random first weights would still count for 90 % after a thousand steps.
    """
    return min(decay, (1 + step) / (10 + step))
