"""A moving average of a network's weights: smoother than the last ones, and what is then validated, tested and used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import compress

import torch
from torch import nn


def start_ema(model: nn.Module) -> nn.Module:
    """A copy of a network that is not wrapped, in eval mode and without gradients, that ema_updates moves."""
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    ema.zero_grad(set_to_none=True)
    return ema


def ema_updates(ema: nn.Module, model: nn.Module) -> Callable[[float], None]:
    """What a decay makes of it: ema = decay * ema + (1 - decay) * model, parameters and batch norm's statistics.

    The statistics of the last few batches would belong to the weights of today; averaged as slowly as the weights they
    belong to the same past. Integer buffers are copied. Nothing here waits for the device, nor walks through the networks.

    Args:
        model: the inner network where it is compiled or wrapped by DistributedDataParallel.
    """
    averages, values = ([*network.parameters(), *network.buffers()] for network in (ema, model))
    moves = [average.is_floating_point() for average in averages]
    moving, moving_values = list(compress(averages, moves)), list(compress(values, moves))
    counting, counting_values = (
        [tensor for tensor, is_moving in zip(tensors, moves, strict=True) if not is_moving] for tensors in (averages, values)
    )

    @torch.no_grad()
    def update(decay: float) -> None:
        torch._foreach_lerp_(moving, moving_values, 1 - decay)
        if counting:
            torch._foreach_copy_(counting, counting_values)

    return update


def decay_at(step: int, decay: float) -> float:
    """Decay of the update after `step` steps: (1 + step) / (10 + step), but at most decay.

    With 0.9999 from the start, the random first weights would still count for 90 % after a thousand steps.
    """
    return min(decay, (1 + step) / (10 + step))
