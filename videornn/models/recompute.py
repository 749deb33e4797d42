"""Activation checkpointing, to save memory, that lets batch norms count a batch once only."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

# the compiler takes no context_fn: torch 2.6's updates statistics in both runs, 2.15's in the first only. Versions that are
# not known to do the latter do not checkpoint; the compiler then saves memory in its own way
COMPILER_COUNTS_ONCE = torch.__version__ >= "2.15"  # compared as versions


def recompute(function: Callable[[Tensor], Tensor], x: Tensor, module: nn.Module) -> Tensor:
    """Compute function(x), keeping only x for the backward pass, which computes the rest once more.

    Outputs, gradients and buffers are those of function(x).

    Args:
        module: contains the batch norms that function runs, if any.
    """
    if not torch.is_grad_enabled():
        return function(x)
    if torch.compiler.is_compiling():
        return checkpoint(function, x, use_reentrant=False) if COMPILER_COUNTS_ONCE else function(x)
    return checkpoint(function, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _Uncounted(module)))


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Return a context that turns autocast off; it does nothing on the meta device, where shapes are tried."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class _Uncounted:
    """A context in which batch norms use this batch as before but do not count it again; entered for every backward pass."""

    def __init__(self, module: nn.Module) -> None:
        self.norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]

    def __enter__(self) -> None:
        self.before = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        not_kept = torch.tensor(0)  # some kinds of norm need a counter
        for norm in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, not_kept

    def __exit__(self, *exception: object) -> None:
        for norm, (momentum, num_batches) in zip(self.norms, self.before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches
