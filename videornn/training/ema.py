"""Keep a moving average of a network's weights: smoother than the last ones, and used to validate, test and infer."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn


def start_ema(model: nn.Module) -> nn.Module:
    """Copy an unwrapped network, in eval mode and without gradients, for ema_updates to move."""
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    ema.zero_grad(set_to_none=True)
    return ema


def ema_updates(ema: nn.Module, model: nn.Module) -> Callable[[float], None]:
    """Return a function of decay that sets ema = decay * ema + (1 - decay) * model, for parameters and norm statistics.

    The statistics of the last few batches would fit the current weights; averaged as slowly as the weights, they fit the
    averaged ones. Integer buffers are copied. The function neither waits for the device nor walks through the networks.

    Args:
        model: the inner network if it is compiled or wrapped by DistributedDataParallel.
    """
    averages, values = ([*network.parameters(), *network.buffers()] for network in (ema, model))
    moving, moving_values = ([x for x in tensors if x.is_floating_point()] for tensors in (averages, values))
    counting, counting_values = ([x for x in tensors if not x.is_floating_point()] for tensors in (averages, values))

    @torch.no_grad()
    def update(decay: float) -> None:
        torch._foreach_lerp_(moving, moving_values, 1 - decay)
        if counting:
            torch._foreach_copy_(counting, counting_values)

    return update


def decay_at(step: int, decay: float) -> float:
    """Return the decay of the update after `step` steps: (1 + step) / (10 + step), but at most decay.

    With 0.9999 from the start, the random first weights would still count for 90 % after a thousand steps.
    """
    return min(decay, (1 + step) / (10 + step))
